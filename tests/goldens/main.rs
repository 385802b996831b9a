//! Every model part, scheduler and pipeline against numbers that diffusers made from the same tiny
//! checkpoints (`tools/reference/make_goldens.py`).
//!
//! The committed numbers come from one processor; kernels differ between processors, so they are
//! held to a tolerance. `make parity` makes them anew on the machine at hand, names their folder in
//! `TRITON_DIFFUSION_PARITY`, and then every byte must be equal.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod depth;
mod images;
mod models;
mod pil;
mod safety;
mod schedulers;
mod support;
mod weighted;
