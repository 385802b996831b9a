//! Single float32 numbers through libtorch's own functions.
//!
//! diffusers keeps ᾱ, σ and the like as tensors without dimensions, so a root or a logarithm of one
//! is libtorch's, whose last bit is not always that of the C library or of the processor's square
//! root (`x ** 0.5` is not `sqrt(x)`). Sums, products and quotients of such tensors are plain float32
//! arithmetic.

use tch::Tensor;

use diffusion_core::Result;

fn scalar(value: f32) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(&[value])?.f_view([] as [i64; 0])?)
}

/// `value ** exponent`.
///
/// # Errors
/// Out of memory.
pub fn pow(value: f32, exponent: f64) -> Result<f32> {
    Ok(f32::try_from(scalar(value)?.f_pow_tensor_scalar(exponent)?)?)
}

/// `value ** 0.5`.
///
/// # Errors
/// Out of memory.
pub fn root(value: f32) -> Result<f32> {
    pow(value, 0.5)
}

/// `torch.sqrt(value)`.
///
/// # Errors
/// Out of memory.
pub fn sqrt(value: f32) -> Result<f32> {
    Ok(f32::try_from(scalar(value)?.f_sqrt()?)?)
}

/// `torch.log(value)`.
///
/// # Errors
/// Out of memory.
pub fn log(value: f32) -> Result<f32> {
    Ok(f32::try_from(scalar(value)?.f_log()?)?)
}

/// `torch.exp(value)`.
///
/// # Errors
/// Out of memory.
pub fn exp(value: f32) -> Result<f32> {
    Ok(f32::try_from(scalar(value)?.f_exp()?)?)
}

/// `torch.expm1(value)`.
///
/// # Errors
/// Out of memory.
pub fn expm1(value: f32) -> Result<f32> {
    Ok(f32::try_from(scalar(value)?.f_expm1()?)?)
}
