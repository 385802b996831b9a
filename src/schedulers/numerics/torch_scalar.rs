//! Functions of single float32 numbers, computed by libtorch.
//!
//! diffusers keeps ᾱ, σ and the like as tensors without dimensions. The last bit of libtorch's roots and logarithms is
//! not always that of the C library or the processor, and `x ** 0.5` is not always `torch.sqrt(x)`. Sums, products and
//! quotients of such tensors are plain float32 arithmetic.

use tch::{Kind, Tensor};

use crate::torch::numbers::NumberOperators;
use diffusion_core::Result;

fn scalar(value: f32) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(&[value])?.f_view([] as [i64; 0])?)
}

/// Rounds a number to `kind`, as a tensor without dimensions on the CPU. An operator with tensors of a GPU takes it as an
/// argument of the kernel, without a copy.
pub fn host_scalar(value: f32, kind: Kind) -> Result<Tensor> {
    Ok(scalar(value)?.f_to_kind(kind)?)
}

/// Computes `value ** exponent`.
pub fn pow(value: f32, exponent: f64) -> Result<f32> {
    Ok(f32::try_from(scalar(value)?.pow_number(exponent)?)?)
}

/// Computes `value ** 0.5`.
pub fn pow_half(value: f32) -> Result<f32> {
    pow(value, 0.5)
}

/// Computes `torch.sqrt(value)`.
pub fn sqrt(value: f32) -> Result<f32> {
    Ok(f32::try_from(scalar(value)?.f_sqrt()?)?)
}

/// Computes `torch.log(value)`.
pub fn log(value: f32) -> Result<f32> {
    Ok(f32::try_from(scalar(value)?.f_log()?)?)
}

/// Computes `torch.exp(value)`.
pub fn exp(value: f32) -> Result<f32> {
    Ok(f32::try_from(scalar(value)?.f_exp()?)?)
}

/// Computes `torch.expm1(value)`.
pub fn expm1(value: f32) -> Result<f32> {
    Ok(f32::try_from(scalar(value)?.f_expm1()?)?)
}
