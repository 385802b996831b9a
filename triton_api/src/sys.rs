//! The raw declarations, generated from `include/triton_api.h`.
//!
//! For this crate, for what `export_backend!` expands to and for the fake server of the tests;
//! nothing else may call them.

#![allow(
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    clippy::undocumented_unsafe_blocks,
    reason = "generated; the header carries the comments, and which lints it meets depends on bindgen"
)]

include!(concat!(env!("OUT_DIR"), "/sys.rs"));
