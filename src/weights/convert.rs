//! Conversion between the float dtypes of weights, rounding as libtorch does.
//!
//! libtorch's own conversion is not used: it would start a team of threads in each thread that loads.

use bytemuck::{AnyBitPattern, NoUninit, try_cast_slice, try_cast_slice_mut};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;
use tch::Kind;

use super::file;
use diffusion_core::{Error, Result};

/// Converts little-endian floats from one dtype to another: to the nearest value, ties to even.
///
/// # Errors
/// `InvalidArgument` if a finite value is beyond the range of `to`; `Unsupported` for a dtype that weights are not kept
/// in.
pub fn convert(bytes: &[u8], from: Dtype, to: Dtype) -> Result<Vec<u8>> {
    let float = |dtype| {
        file::kind(dtype).ok_or_else(|| Error::unsupported(format!("{dtype:?} is not a float dtype of weights")))
    };
    let (from_kind, to_kind) = (float(from)?, float(to)?);
    let length = bytes.len() / from_kind.elt_size_in_bytes() * to_kind.elt_size_in_bytes();
    // The buffers are aligned for every dtype.
    let source: Vec<u64> = bytemuck::pod_collect_to_vec(bytes);
    let source = &bytemuck::cast_slice(&source)[..bytes.len()];
    let mut target = vec![0u64; length.div_ceil(size_of::<u64>())];
    let target = &mut bytemuck::cast_slice_mut(&mut target)[..length];
    convert_into(source, from_kind, target, to_kind)?;
    if non_finite(target, to_kind)? > non_finite(source, from_kind)? {
        return Err(Error::invalid_argument(format!(
            "has a value beyond the range of {to:?}; bfloat16 has the range of float32"
        )));
    }
    Ok(target.to_vec())
}

/// Converts `source` into `target`, which has as many elements; both are aligned for their dtypes.
///
/// # Errors
/// `Internal` for slices that do not fit or are not aligned, and for a dtype that weights are not kept in.
pub fn convert_into(source: &[u8], from: Kind, target: &mut [u8], to: Kind) -> Result<()> {
    if source.len() / from.elt_size_in_bytes() != target.len() / to.elt_size_in_bytes() {
        return Err(Error::internal("conversion between slices of different lengths"));
    }
    match (from, to) {
        _ if from == to => target.copy_from_slice(source),
        (_, Kind::Float) => widen(source, from, cast_mut(target)?)?,
        (Kind::Float, _) => narrow(cast(source)?, target, to)?,
        _ => {
            let mut wide = vec![0f32; source.len() / from.elt_size_in_bytes()];
            widen(source, from, &mut wide)?;
            narrow(&wide, target, to)?;
        }
    }
    Ok(())
}

fn widen(source: &[u8], from: Kind, target: &mut [f32]) -> Result<()> {
    match from {
        Kind::Half => cast::<f16>(source)?.convert_to_f32_slice(target),
        Kind::BFloat16 => cast::<bf16>(source)?.convert_to_f32_slice(target),
        Kind::Double => std::iter::zip(target, cast::<f64>(source)?).for_each(|(to, &from)| *to = from as f32),
        other => return Err(unexpected(other)),
    }
    Ok(())
}

/// float64 comes here as float32, like in libtorch.
fn narrow(source: &[f32], target: &mut [u8], to: Kind) -> Result<()> {
    match to {
        Kind::Half => cast_mut::<f16>(target)?.convert_from_f32_slice(source),
        Kind::BFloat16 => cast_mut::<bf16>(target)?.convert_from_f32_slice(source),
        other => return Err(unexpected(other)),
    }
    Ok(())
}

/// Counts infinities and NaN.
fn non_finite(bytes: &[u8], kind: Kind) -> Result<usize> {
    Ok(match kind {
        Kind::Half => cast::<f16>(bytes)?.iter().filter(|value| !value.is_finite()).count(),
        Kind::BFloat16 => cast::<bf16>(bytes)?.iter().filter(|value| !value.is_finite()).count(),
        Kind::Float => cast::<f32>(bytes)?.iter().filter(|value| !value.is_finite()).count(),
        Kind::Double => cast::<f64>(bytes)?.iter().filter(|value| !value.is_finite()).count(),
        other => return Err(unexpected(other)),
    })
}

fn cast<T: AnyBitPattern>(bytes: &[u8]) -> Result<&[T]> {
    try_cast_slice(bytes).map_err(|error| Error::internal(format!("weights: {error}")))
}

fn cast_mut<T: AnyBitPattern + NoUninit>(bytes: &mut [u8]) -> Result<&mut [T]> {
    try_cast_slice_mut(bytes).map_err(|error| Error::internal(format!("weights: {error}")))
}

fn unexpected(kind: Kind) -> Error {
    Error::unsupported(format!("{kind:?} is not a float dtype of weights"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn convert_rounds_ties_to_even() {
        // Between 1 and the next float16, 1 + 2^-10, is 1 + 2^-11; the even fraction is that of 1.
        let tie = 1.0 + 2f32.powi(-11);
        let above = 1.0 + 3.0 * 2f32.powi(-11);
        let bytes = convert(&floats(&[tie, above, -0.0]), Dtype::F32, Dtype::F16).unwrap();
        let back = convert(&bytes, Dtype::F16, Dtype::F32).unwrap();
        assert_eq!(back, floats(&[1.0, 1.0 + 2f32.powi(-9), -0.0]));
    }

    #[test]
    fn convert_just_above_a_tie_rounds_up() {
        let values = floats(&[1.0 + 2f32.powi(-8) + 2f32.powi(-23)]);
        let bytes = convert(&values, Dtype::F32, Dtype::BF16).unwrap();
        assert_eq!(bytes, 0x3f81u16.to_le_bytes());
        let values = floats(&[1.0 + 2f32.powi(-11) + 2f32.powi(-23)]);
        let bytes = convert(&values, Dtype::F32, Dtype::F16).unwrap();
        assert_eq!(bytes, 0x3c01u16.to_le_bytes());
    }

    #[test]
    fn convert_beyond_the_range_is_refused() {
        for (value, to, fits) in [
            (65_504.0, Dtype::F16, true),
            (65_520.0, Dtype::F16, false),
            (1e38, Dtype::BF16, true),
            (f32::INFINITY, Dtype::F16, true),
        ] {
            let outcome = convert(&floats(&[value]), Dtype::F32, to);
            assert_eq!(outcome.is_ok(), fits, "{value} as {to:?}");
        }
        assert!(convert(&1e300f64.to_le_bytes(), Dtype::F64, Dtype::F32).is_err());
        assert!(convert(&[0; 8], Dtype::I64, Dtype::F16).is_err());
    }

    #[test]
    fn convert_between_half_dtypes_goes_over_float32() {
        let bytes = convert(&f16::from_f32(1.5).to_le_bytes(), Dtype::F16, Dtype::BF16).unwrap();
        assert_eq!(bytes, bf16::from_f32(1.5).to_le_bytes());
        let bytes = convert(&1.5f64.to_le_bytes(), Dtype::F64, Dtype::F16).unwrap();
        assert_eq!(bytes, f16::from_f32(1.5).to_le_bytes());
    }
}
