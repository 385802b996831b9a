//! A Triton Inference Server backend that serves Stable Diffusion from libtorch.
//!
//! One way through: `backend` takes requests from Triton, `request` turns them into plain values,
//! `engine` decides which of them take the next step together, `pipeline` computes the steps with
//! `models` and `schedulers`, `image` encodes what comes out, and `backend` answers.

#![deny(unsafe_code)]

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
