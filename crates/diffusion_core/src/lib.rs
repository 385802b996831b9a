//! Errors, configuration and limits: plain values that all other crates use. No Triton, no tensors.

pub mod config;
pub mod error;
pub mod failpoint;
pub mod libtorch;
pub mod memory;
pub mod quote;
pub mod suggest;

pub use error::{Context, Error, ErrorKind, Result};
