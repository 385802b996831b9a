//! Reads the tensors of a Triton request. Triton's types end here.

pub mod tensors;
