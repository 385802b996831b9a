//! The GPU path, on a pretend GPU: a library in place of `libtorch_cuda.so` (tests/gpu/pretend) that computes with the
//! CPU's kernels, logs what it is asked for, and fails where a test arms a failure.
//!
//! Each test runs in its own process, because libtorch registers CUDA once in the life of a process.

mod adapters;
mod budgets;
mod devices;
mod failures;
mod images;
mod memory;
mod pretend;
mod previews;
pub mod support;
