//! A safe layer over the C API that Triton Inference Server offers to backends.
//!
//! A backend is three types that implement [`Backend`], [`Model`] and [`Instance`], and one
//! line, [`export_backend!`], that emits the `TRITONBACKEND_*` symbols which the server looks
//! up. The crate knows nothing of what the backend computes. It answers for this:
//!
//! - No panic crosses the C boundary. A panic becomes an INTERNAL error, and an instance that
//!   panicked while it executed is [poisoned](Health).
//! - Requests are borrowed until [`RequestBatch::accept`] and owned from there on. Each [`Slot`]
//!   answers its request once and releases it once, on every path, from whatever thread.
//! - Every handle that Triton gives away has one owner here, which gives it back.
//! - What comes from a client (ids, names, sizes, BYTES tensors) is checked before it is used.
//!
//! The server's library is not linked: it has loaded the backend and its symbols are found in
//! the process. Tests link the crate `triton_fake` in its place.

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
