#![no_main]

#[path = "../targets.rs"]
mod targets;

use triton_fake as _;

// The decoding of images catches the panics of its libraries. Other panics still end the fuzzer.
libfuzzer_sys::fuzz_target!(
    init: std::panic::set_hook(Box::new(|_| {})),
    |data: &[u8]| targets::image_file(data)
);
