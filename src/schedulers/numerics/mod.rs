//! Scalar functions that return the same bits as numpy, scipy and torch.
//!
//! The samples must be equal to those of diffusers byte by byte, so the last bit of a logarithm or a quantile counts.
//! Crates such as `statrs` and `puruspe` are as accurate, but round differently from the functions that diffusers
//! calls.

pub mod beta_distribution;
pub mod numpy_log;
pub mod quadrature;
pub mod torch_scalar;
