//! A Triton server in miniature, to test a backend in process.
//!
//! The crate defines the `TRITONSERVER_*` and `TRITONBACKEND_*` functions that `triton_api`
//! declares, so that a test binary links without the real server, and it counts every handle.
//! Handles are numbers and are never dereferenced: a freed, foreign or doubly released one is
//! found out and recorded instead of being undefined behaviour. Nothing here panics inside a
//! call from C; what went wrong is listed by [`FakeServer::violations`] and fails
//! [`FakeServer::assert_clean`].
//!
//! A test drives the symbols that the backend really exports:
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
//! Many objects (errors, messages) belong to no server in Triton's API, so the accounts are one
//! for the process: a second [`FakeServer::new`] waits until the first is dropped, and the tests
//! of one binary that use it run one after another.

mod c_api;
mod instance;
mod request;
mod server;
mod signatures;
mod state;
mod symbols;

pub use instance::{BatchStatistics, FakeInstance, InstanceSpec};
pub use request::{FakeOutput, FakeRequest, FakeResponse, ParameterValue, RequestBuilder, RequestStatistics, TimedOut};
pub use server::{FakeBackend, FakeModel, FakeServer, ModelSpec};
pub use signatures::DEFINED;
pub use state::{Counts, LogRecord};
pub use symbols::BackendSymbols;

/// The types that [`backend_symbols!`] names.
#[doc(hidden)]
pub use triton_api::sys;
