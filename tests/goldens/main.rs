//! Compares every component, scheduler and pipeline with numbers of diffusers for the same tiny checkpoints
//! (`tools/reference/make_goldens.py`).
//!
//! The committed numbers come from one processor. Kernels differ between processors, so these numbers have a tolerance.
//! `make parity` computes them again on the present machine and names their folder in `TRITON_DIFFUSION_PARITY`. Then
//! every byte must be equal.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod adapters;
mod approximations;
mod depth;
mod images;
mod models;
mod pil;
mod safety;
mod schedulers;
mod sdxl;
mod support;
mod textual_inversion;
mod weighted;
