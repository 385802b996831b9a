//! Pictures: from tensors, and into files.

pub mod convert;
pub mod encode;
pub mod metadata;
