//! Errors, configuration and limits: plain values that every other crate uses. No Triton, no tensors.

pub mod config;
pub mod error;
pub mod failpoint;
pub mod libtorch;
pub mod suggest;

pub use error::{Context, Error, ErrorKind, Result};
