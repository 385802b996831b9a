//! A safe layer over the C API that Triton Inference Server offers to backends.
//!
//! A backend consists of three types, which implement [`Backend`], [`Model`] and [`Instance`], and one use of
//! [`export_backend!`], which emits the `TRITONBACKEND_*` symbols. The crate does not depend on what a backend
//! computes. It guarantees:
//!
//! - No panic crosses the C boundary. A panic becomes an INTERNAL error, and an instance that
//!   panics in `execute` is [poisoned](Health).
//! - Requests are borrowed until [`RequestBatch::accept`] and owned afterwards. Each [`Slot`]
//!   answers its request once and releases it once, on every path and any thread.
//! - Every handle that Triton hands over has one owner, which releases it.
//! - Client data (ids, names, sizes, BYTES tensors) is checked before use.
//!
//! The crate does not link the server's library: the server process, which loads the backend, provides the symbols.
//! Tests link the crate `triton_fake` instead.

#[cfg(panic = "abort")]
compile_error!("a backend must be built with panic = \"unwind\": an abort would take the server down");

pub mod bytes;
pub mod config;
#[doc(hidden)]
pub mod export;
pub mod log;
pub mod metrics;
pub mod panic;
#[doc(hidden)]
pub mod sys;

mod backend;
mod error;
mod input;
mod instance;
mod model;
mod optional;
mod request;
mod response;
mod slot;
mod stats;
mod text;
mod types;

pub use backend::{Backend, BackendContext, Instance, Model};
pub use bytes::{BytesError, decode_bytes, encode_bytes};
pub use error::{Error, ErrorCode};
pub use input::Input;
pub use instance::{Health, InstanceContext, MemoryUsage};
pub use model::ModelContext;
pub use request::{Request, RequestBatch};
pub use response::{OutputTensor, Parameter};
pub use slot::Slot;
pub use stats::{Timestamps, steady_clock_ns};
pub use types::{DataType, InstanceKind, MemoryType};

// The unit tests need the server's symbols at link time.
#[cfg(test)]
use triton_fake as _;
