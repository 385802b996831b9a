//! The exported symbols of the backend, driven in process by a server in miniature that counts
//! every handle. Each test ends with the accounts: every request was answered once and released
//! once, and nothing is left over.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use triton_diffusion as _;

mod bad_input;
mod bad_models;
#[cfg(feature = "failpoints")]
mod bases;
mod cancel_and_unload;
mod checkpoints;
#[cfg(feature = "failpoints")]
mod faults;
mod gpu;
mod previews;
mod progress;
mod sharing;
mod success;
mod support;
mod weights;
