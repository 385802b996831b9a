//! What must hold for a sampler independently of diffusers: properties over random runs, and identities from the
//! papers.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod alpha_schedule;
mod config;
mod every_class;
mod lambda_schedule;
mod refusals;
mod sigma_schedule;
mod support;
