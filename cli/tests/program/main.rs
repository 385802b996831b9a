//! The program as a user runs it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod convert;
mod embeddings;
mod generate;
mod gpu;
mod inspect;
mod invoke;
mod loras;
mod loras_convert;
mod original;
mod pack;
mod repo;
mod shell;
mod support;
