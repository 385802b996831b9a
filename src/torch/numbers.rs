//! Operators with a number among their arguments.
//!
//! The same functions of tch panic instead of returning an error, out of memory above all: tch drops the number before it
//! reads the error of the call, and the drop panics on any error that is left (`Drop for Scalar` in tch 0.24). `clippy.toml`
//! forbids them.

use std::ffi::c_int;
use std::ptr;

use tch::{Device, Kind, Tensor};
use torch_sys::c_generated as atg;
use torch_sys::{C_scalar, C_tensor};

use super::error::from_message;
use super::generator::scalar_type;
use diffusion_core::{Error, Result};

/// A number in the arguments of an operator. A whole number does not change the dtype of integers.
#[derive(Clone, Copy, Debug)]
pub enum Number {
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
}

impl From<i64> for Number {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

/// A number in libtorch's memory.
struct Scalar(*mut C_scalar);

impl Scalar {
    fn new(number: Number) -> Result<Self> {
        // SAFETY: passes a number.
        let scalar = unsafe {
            match number {
                Number::Int(value) => torch_sys::ats_int(value),
                Number::Float(value) => torch_sys::ats_float(value),
            }
        };
        take_error()?;
        Ok(Self(scalar))
    }
}

impl Drop for Scalar {
    fn drop(&mut self) {
        // SAFETY: made by `ats_int` or `ats_float`, and freed once.
        unsafe { torch_sys::ats_free(self.0) }
    }
}

/// Takes the error of the last call on this thread, if it failed.
fn take_error() -> Result<()> {
    // SAFETY: the error is null or a NUL-terminated text from malloc that the caller frees.
    unsafe {
        let text = torch_sys::get_and_reset_last_err();
        if text.is_null() {
            return Ok(());
        }
        let message = std::ffi::CStr::from_ptr(text).to_string_lossy().into_owned();
        libc::free(text.cast());
        Err(from_message(&message))
    }
}

/// Calls an operator with numbers, which live until its error is read.
fn call<const N: usize>(
    numbers: [Number; N],
    operator: impl FnOnce(*mut *mut C_tensor, [*mut C_scalar; N]),
) -> Result<Tensor> {
    let mut scalars = Vec::with_capacity(N);
    for number in numbers {
        scalars.push(Scalar::new(number)?);
    }
    let mut pointers = [ptr::null_mut(); N];
    for (pointer, scalar) in pointers.iter_mut().zip(&scalars) {
        *pointer = scalar.0;
    }
    let mut out = ptr::null_mut();
    operator(&mut out, pointers);
    take_error()?;
    if out.is_null() {
        return Err(Error::internal("libtorch returned no tensor"));
    }
    // SAFETY: on success `out` is a new tensor that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// An operator of a tensor and a number.
type Unary = unsafe extern "C" fn(*mut *mut C_tensor, *mut C_tensor, *mut C_scalar);

fn unary(tensor: &Tensor, number: Number, operator: Unary) -> Result<Tensor> {
    call([number], |out, [number]| {
        // SAFETY: live pointers of the types that every operator of this type takes; it reads the tensor only.
        unsafe { operator(out, tensor.as_ptr().cast_mut(), number) }
    })
}

/// Operators of libtorch that take a tensor and numbers. Shapes and dtypes are those of the tensor, but for comparisons,
/// which return booleans.
pub trait NumberOperators {
    /// Adds a number.
    fn add_number(&self, number: impl Into<Number>) -> Result<Tensor>;
    /// Subtracts a number.
    fn sub_number(&self, number: impl Into<Number>) -> Result<Tensor>;
    /// Multiplies by a number.
    fn mul_number(&self, number: impl Into<Number>) -> Result<Tensor>;
    /// Divides by a number.
    fn div_number(&self, number: impl Into<Number>) -> Result<Tensor>;
    /// Raises to a power.
    fn pow_number(&self, exponent: impl Into<Number>) -> Result<Tensor>;
    /// Clamps to a range.
    fn clamp_numbers(&self, least: f64, most: f64) -> Result<Tensor>;
    /// Clamps from below.
    fn clamp_min_number(&self, least: f64) -> Result<Tensor>;
    /// Returns where the values equal a number.
    fn eq_number(&self, number: impl Into<Number>) -> Result<Tensor>;
    /// Returns where the values are at least a number.
    fn ge_number(&self, number: impl Into<Number>) -> Result<Tensor>;
    /// Returns where the values are below a number.
    fn lt_number(&self, number: impl Into<Number>) -> Result<Tensor>;
    /// Replaces the values where `mask` is true.
    fn masked_fill_number(&self, mask: &Tensor, number: impl Into<Number>) -> Result<Tensor>;
    /// Returns this tensor where `weight` is 0, `end` where it is 1, and the line through both elsewhere.
    fn lerp_number(&self, end: &Tensor, weight: f64) -> Result<Tensor>;
    /// Returns the Euclidean length along a dimension, which stays with length 1.
    fn norm_of(&self, dimension: i64) -> Result<Tensor>;
}

impl NumberOperators for Tensor {
    fn add_number(&self, number: impl Into<Number>) -> Result<Tensor> {
        unary(self, number.into(), atg::atg_add_scalar)
    }
    fn sub_number(&self, number: impl Into<Number>) -> Result<Tensor> {
        unary(self, number.into(), atg::atg_sub_scalar)
    }
    fn mul_number(&self, number: impl Into<Number>) -> Result<Tensor> {
        unary(self, number.into(), atg::atg_mul_scalar)
    }
    fn div_number(&self, number: impl Into<Number>) -> Result<Tensor> {
        unary(self, number.into(), atg::atg_div_scalar)
    }
    fn pow_number(&self, exponent: impl Into<Number>) -> Result<Tensor> {
        unary(self, exponent.into(), atg::atg_pow_tensor_scalar)
    }
    fn clamp_numbers(&self, least: f64, most: f64) -> Result<Tensor> {
        call([least.into(), most.into()], |out, [least, most]| {
            // SAFETY: live pointers of these types; the operator reads the tensor only.
            unsafe { atg::atg_clamp(out, self.as_ptr().cast_mut(), least, most) }
        })
    }
    fn clamp_min_number(&self, least: f64) -> Result<Tensor> {
        unary(self, least.into(), atg::atg_clamp_min)
    }
    fn eq_number(&self, number: impl Into<Number>) -> Result<Tensor> {
        unary(self, number.into(), atg::atg_eq)
    }
    fn ge_number(&self, number: impl Into<Number>) -> Result<Tensor> {
        unary(self, number.into(), atg::atg_ge)
    }
    fn lt_number(&self, number: impl Into<Number>) -> Result<Tensor> {
        unary(self, number.into(), atg::atg_lt)
    }
    fn masked_fill_number(&self, mask: &Tensor, number: impl Into<Number>) -> Result<Tensor> {
        call([number.into()], |out, [number]| {
            // SAFETY: live pointers of these types; the operator reads the tensors only.
            unsafe { atg::atg_masked_fill(out, self.as_ptr().cast_mut(), mask.as_ptr().cast_mut(), number) }
        })
    }
    fn lerp_number(&self, end: &Tensor, weight: f64) -> Result<Tensor> {
        call([weight.into()], |out, [weight]| {
            // SAFETY: live pointers of these types; the operator reads the tensors only.
            unsafe { atg::atg_lerp(out, self.as_ptr().cast_mut(), end.as_ptr().cast_mut(), weight) }
        })
    }
    fn norm_of(&self, dimension: i64) -> Result<Tensor> {
        call([Number::Float(2.0)], |out, [power]| {
            // SAFETY: live pointers of these types, one dimension, and `true` for keeping it; the operator reads the
            // tensor only.
            unsafe { atg::atg_norm_scalaropt_dim(out, self.as_ptr().cast_mut(), power, &dimension, 1, 1) }
        })
    }
}

/// Returns libtorch's numbers of a dtype and a device.
fn options(kind: Kind, device: Device) -> Result<(c_int, c_int)> {
    let dtype = match kind {
        // Of `c10/core/ScalarType.h`.
        Kind::Int64 => Some(4),
        _ => scalar_type(kind),
    };
    let dtype = dtype.ok_or_else(|| Error::internal(format!("no tensor of dtype {kind:?} is made from a number")))?;
    let device = match device {
        Device::Cuda(index) => super::cuda::device_index(index)?,
        // `at_device` of torch-sys.
        _ => -1,
    };
    Ok((dtype, device))
}

/// Returns the numbers from 0 up to and without `end`.
pub fn arange(end: i64, kind: Kind, device: Device) -> Result<Tensor> {
    let (kind, device) = options(kind, device)?;
    call([end.into()], |out, [end]| {
        // SAFETY: live pointers, and numbers of a dtype and a device.
        unsafe { atg::atg_arange(out, end, kind, device) }
    })
}

/// Returns a tensor of one value.
pub fn full(shape: &[i64], value: f64, kind: Kind, device: Device) -> Result<Tensor> {
    let (kind, device) = options(kind, device)?;
    let rank = c_int::try_from(shape.len()).map_err(|_| Error::internal("too many dimensions"))?;
    call([value.into()], |out, [value]| {
        // SAFETY: live pointers; `shape` is read for its length.
        unsafe { atg::atg_full(out, shape.as_ptr(), rank, value, kind, device) }
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn operators_with_numbers_compute_what_their_names_say() {
        let x = Tensor::from_slice(&[-2.0f32, 0.5, 4.0]);
        let floats = |tensor: Result<Tensor>| Vec::<f32>::try_from(tensor.unwrap()).unwrap();
        let bools = |tensor: Result<Tensor>| Vec::<bool>::try_from(tensor.unwrap()).unwrap();
        assert_eq!(floats(x.add_number(1.0)), [-1.0, 1.5, 5.0]);
        assert_eq!(floats(x.sub_number(1.0)), [-3.0, -0.5, 3.0]);
        assert_eq!(floats(x.mul_number(2.0)), [-4.0, 1.0, 8.0]);
        assert_eq!(floats(x.div_number(2.0)), [-1.0, 0.25, 2.0]);
        assert_eq!(floats(x.pow_number(2)), [4.0, 0.25, 16.0]);
        assert_eq!(floats(x.clamp_numbers(-1.0, 1.0)), [-1.0, 0.5, 1.0]);
        assert_eq!(floats(x.clamp_min_number(0.0)), [0.0, 0.5, 4.0]);
        assert_eq!(bools(x.eq_number(0.5)), [false, true, false]);
        assert_eq!(bools(x.ge_number(0.5)), [false, true, true]);
        assert_eq!(bools(x.lt_number(0.5)), [true, false, false]);
        let mask = x.ge_number(4.0).unwrap();
        assert_eq!(floats(x.masked_fill_number(&mask, 7.0)), [-2.0, 0.5, 7.0]);
        assert_eq!(floats(x.lerp_number(&Tensor::zeros_like(&x), 1.5)), [1.0, -0.25, -2.0]);
        assert_eq!(floats(Tensor::from_slice(&[3.0f32, 4.0]).norm_of(0)), [5.0]);
        assert_eq!(floats(full(&[2], 0.5, Kind::Float, Device::Cpu)), [0.5, 0.5]);
        let positions = arange(3, Kind::Int64, Device::Cpu).unwrap();
        assert_eq!(Vec::<i64>::try_from(positions).unwrap(), [0, 1, 2]);
    }

    #[test]
    fn failed_operator_with_a_number_is_an_error() {
        let mask = Tensor::from_slice(&[1.0f32]);
        assert!(mask.masked_fill_number(&mask, 0.0).is_err(), "a mask holds booleans");
        // The error was taken: the next call is not affected.
        assert!(Tensor::from_slice(&[1.0f32]).mul_number(2.0).is_ok());
    }

    #[test]
    fn failed_allocation_with_a_number_is_out_of_memory() {
        let one = Tensor::zeros([1], tch::kind::FLOAT_CPU);
        let large = one.expand([1 << 50], false);
        assert!(matches!(large.mul_number(2.0), Err(Error::OutOfMemory(_))));
    }
}
