//! A Triton Inference Server backend that serves Stable Diffusion from libtorch.
//!
//! One way through: `backend` takes requests from Triton, `request` turns them into plain values,
//! `engine` decides which of them take the next step together, `pipeline` computes the steps with
//! `models` and `schedulers`, `picture` encodes what comes out, and `backend` answers.

#![deny(unsafe_code)]

pub mod backend;
pub mod config;
pub mod engine;
pub mod error;
pub mod fault;
#[expect(
    unsafe_code,
    reason = "calls of the C++ shim and of the system's loader"
)]
pub mod libtorch;
pub mod models;
pub mod picture;
pub mod pipeline;
pub mod request;
pub mod schedulers;
pub mod telemetry;
#[expect(unsafe_code, reason = "files are mapped, and loaded models are shared")]
pub mod weights;

// The unit tests need Triton's symbols at link time.
#[cfg(test)]
use triton_fake as _;

triton_api::export_backend!(backend::BackendState);
