//! What must hold for a sampler whatever its reference does: properties over random runs, and
//! identities from the papers.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod alpha_space;
mod every_class;
mod refusals;
mod sigma_space;
mod solvers;
mod support;
