//! From Triton's tensors to plain, validated values.
//!
//! [`decode`] reads the tensors of a Triton request, where Triton's types end; [`resolve`] decides every
//! argument of the [`generate`] request that comes of it, [`gen_args`] and
//! [`prompt_syntax`] among them. They know nothing of
//! Triton.

pub mod decode;
pub mod gen_args;
pub mod generate;
pub mod metadata;
pub mod prompt_syntax;
pub mod resolve;
pub(crate) mod typo;
