//! CPU kernels of triton-diffusion: float32 results from weights in any float dtype.
//!
//! Maps have the order `[batch, height, width, channels]` (libtorch's channels-last). Weights stay as they are in their
//! file: a kernel widens and reorders the part that it needs next, in the caches of the processor. That takes less time
//! than reading a larger copy from memory, and no memory.
//!
//! All kernels are batch-invariant: the bytes of a batch entry do not depend on the other entries, nor on the number of
//! threads.

mod activation;
mod attention;
mod conv;
mod copy;
mod direct;
mod linear;
mod map;
mod norm;
pub mod pool;
mod product;
mod scratch;
mod shared;
mod simd;
mod values;
mod winograd;

pub use activation::Activation;
pub use attention::{Attention, Vectors};
pub use conv::{Conv3x3, Method};
pub use copy::join_channels;
pub use linear::{Linear, Matrix, Then};
pub use map::Shape;
pub use norm::{GroupNorm, LayerNorm};
pub use simd::Level;
pub use values::Values;
