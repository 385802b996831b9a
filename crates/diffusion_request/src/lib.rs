//! From the texts and images of one batch element to a [`GenerateRequest`](generate_request::GenerateRequest): plain values,
//! validated once. No Triton, no tensors.

pub mod gen_args;
pub mod generate_request;
pub mod metadata;
pub mod prompt_syntax;
pub mod validate;
