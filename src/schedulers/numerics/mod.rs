//! Scalar functions that return the bits of numpy, scipy and torch, which other implementations do not.

pub mod beta_distribution;
pub mod numpy_log;
pub mod quadrature;
pub mod torch_scalar;
