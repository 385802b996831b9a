//! The raw declarations, generated from `include/triton_api.h`.
//!
//! Only this crate, the expansion of `export_backend!` and the fake server of the tests may use them.

#![allow(
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    clippy::undocumented_unsafe_blocks,
    reason = "generated; the comments are in the header, and bindgen's version decides which lints fire"
)]

include!(concat!(env!("OUT_DIR"), "/sys.rs"));
