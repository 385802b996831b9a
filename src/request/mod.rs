//! From Triton's tensors to plain, validated values.
//!
//! [`decode`] reads the tensors of a Triton request, where Triton's types end; [`generate`] and
//! [`gen_args`] know nothing of Triton.

pub mod decode;
pub mod gen_args;
pub mod generate;
pub(crate) mod typo;
