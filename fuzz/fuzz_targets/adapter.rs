#![no_main]

#[path = "../targets.rs"]
mod targets;

use triton_fake as _;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::adapter_files(data));
