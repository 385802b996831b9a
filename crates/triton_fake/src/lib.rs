//! A fake Triton server for in-process tests of a backend.
//!
//! The crate defines the `TRITONSERVER_*` and `TRITONBACKEND_*` functions that `triton_api`
//! declares, so a test binary links without the real server. The fake server counts every handle.
//! Handles are numbers that are never dereferenced: using a freed or foreign handle, or releasing
//! one twice, is recorded instead of being undefined behavior. No call from C panics. Errors are
//! listed by [`FakeServer::violations`] and fail [`FakeServer::assert_clean`].
//!
//! A test calls the symbols that the backend exports:
//!
//! ```text
//! use my_backend as _; // links the exported symbols
//!
//! let server = FakeServer::new(triton_fake::backend_symbols!());
//! let backend = server.load_backend()?;
//! let model = backend.load_model(ModelSpec::new("sd_base").repository(path).config(json))?;
//! let instance = model.load_instance(InstanceSpec::default())?;
//! let request = server.request().bytes_input("prompt", &[1, 1], &["a cat"]).output("y").build();
//! instance.execute(&[&request])?;
//! let response = request.wait(Duration::from_secs(5))?;
//! drop(instance); // finalizes
//! drop(model);
//! drop(backend);
//! server.assert_clean();
//! ```
//!
//! In Triton's API, many objects (errors, messages) belong to no server, so the record of handles is global
//! to the process. A second [`FakeServer::new`] waits until the first server is dropped, so the tests of one
//! binary that use a server run one after another.

mod c_api;
mod instance;
mod request;
mod server;
mod signatures;
mod state;
mod symbols;

pub use instance::{BatchStatistics, FakeInstance, InstanceSpec, execute_from_shared_queue};
pub use request::{FakeOutput, FakeRequest, FakeResponse, ParameterValue, RequestBuilder, RequestStatistics, TimedOut};
pub use server::{FakeBackend, FakeModel, FakeServer, ModelSpec};
pub use signatures::DEFINED;
pub use state::{Counts, LogRecord};
pub use symbols::BackendSymbols;

/// The types that [`backend_symbols!`] uses.
#[doc(hidden)]
pub use triton_api::sys;
