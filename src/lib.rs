//! A Triton Inference Server backend that serves Stable Diffusion from libtorch.
//!
//! # The way of a request
//!
//! 1. Triton calls [`backend::ModelInstanceState`] on its own thread. [`request::tensors`] reads the tensors, and
//!    `diffusion_request` validates them into one plain `GenerateRequest` per batch element.
//! 2. `diffusion_engine` owns the jobs of an instance on one thread. Before every step it decides which jobs share a batch.
//! 3. [`pipelines::DiffusionPipeline`] computes: it prepares a job, advances a batch by one UNet call, and turns latents
//!    into images.
//! 4. An encoder thread encodes the images and answers the request.
//!
//! # Modules
//!
//! | module | contents |
//! |---|---|
//! | [`backend`] | Triton's life cycle: backend, model, instance, responses, metrics |
//! | [`request`] | the tensors of a Triton request |
//! | [`pipelines`] | the pipelines of diffusers, and loading a model folder |
//! | [`processors`] | the image processors of transformers and diffusers |
//! | [`schedulers`] | the schedulers of diffusers |
//! | [`models`] | the networks |
//! | [`weights`] | safetensors files to tensors, one copy of equal ones |
//! | [`torch`] | what tch lacks of libtorch |
//!
//! A module imports only modules that are below it in this table. `docs/architecture.md` explains the parts, and `docs/adr`
//! the decisions.
//!
//! # Errors
//!
//! Every function that creates a tensor can fail with `Error::OutOfMemory`. The `# Errors` sections list the other causes.

#![deny(unsafe_code)]

pub mod adapters;
pub mod backend;
pub mod models;
pub mod pipelines;
pub mod processors;
pub mod request;
pub mod schedulers;
#[expect(unsafe_code, reason = "calls of the C++ shim and of the system's loader")]
pub mod torch;
#[expect(unsafe_code, reason = "files are mapped, and loaded models are shared")]
pub mod weights;

// The unit tests need Triton's symbols at link time.
#[cfg(test)]
use triton_fake as _;

triton_api::export_backend!(backend::BackendState);
