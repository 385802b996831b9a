//! Floats of one width as floats of another.

use clap::ValueEnum;
use diffusion_core::{Error, Result};
use half::{bf16, f16};
use safetensors::Dtype;

/// A dtype that weights can be kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Float {
    /// 32 bits.
    Float32,
    /// 16 bits, 10 of them fraction.
    Float16,
    /// 16 bits, 7 of them fraction.
    Bfloat16,
}

impl Float {
    /// As safetensors calls it.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::Float32 => Dtype::F32,
            Self::Float16 => Dtype::F16,
            Self::Bfloat16 => Dtype::BF16,
        }
    }

    /// As `config.pbtxt` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
        }
    }
}

/// What tensors of `dtype` become where floats are to be `wanted`: whole numbers stay what they are.
pub fn target(dtype: Dtype, wanted: Option<Float>) -> Dtype {
    match wanted {
        Some(wanted) if is_float(dtype) => wanted.dtype(),
        _ => dtype,
    }
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Little-endian elements of `from` as elements of `to`, rounded to the nearest, ties to even.
///
/// # Errors
/// `InvalidArgument` if a finite value is beyond `to`, or `from` is not one of the floats that weights are kept in.
pub fn convert(bytes: &[u8], from: Dtype, to: Dtype) -> Result<Vec<u8>> {
    let values: Vec<f64> = match from {
        Dtype::F64 => elements(bytes, f64::from_le_bytes).collect(),
        Dtype::F32 => elements(bytes, |b| f32::from_le_bytes(b).into()).collect(),
        Dtype::F16 => elements(bytes, |b| f16::from_le_bytes(b).into()).collect(),
        Dtype::BF16 => elements(bytes, |b| bf16::from_le_bytes(b).into()).collect(),
        _ => return Err(unknown(from)),
    };
    let converted = match to {
        Dtype::F32 => write(&values, |v| v as f32, f32::is_finite, f32::to_le_bytes),
        // By way of float32, as libtorch does: `from_f64` of half looks at the upper half of the double alone where the processor has no
        // instruction for it, so that what lies just above a tie becomes one.
        Dtype::F16 => write(
            &values,
            |v| f16::from_f32(v as f32),
            |v| v.is_finite(),
            f16::to_le_bytes,
        ),
        Dtype::BF16 => write(
            &values,
            |v| bf16::from_f32(v as f32),
            |v| v.is_finite(),
            bf16::to_le_bytes,
        ),
        _ => return Err(unknown(to)),
    };
    converted.ok_or_else(|| {
        Error::invalid_argument(format!(
            "holds a value beyond the range of {to:?}; bfloat16 reaches as far as float32"
        ))
    })
}

fn unknown(dtype: Dtype) -> Error {
    Error::unsupported(format!("{dtype:?} is not a float that weights are kept in"))
}

fn elements<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f64) -> impl Iterator<Item = f64> {
    bytes.as_chunks::<N>().0.iter().map(move |chunk| read(*chunk))
}

/// `None` if a finite value became an infinite one.
fn write<T: Copy, const N: usize>(
    values: &[f64],
    narrow: impl Fn(f64) -> T,
    is_finite: impl Fn(T) -> bool,
    to_bytes: impl Fn(T) -> [u8; N],
) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(values.len() * N);
    for &value in values {
        let narrow = narrow(value);
        if value.is_finite() && !is_finite(narrow) {
            return None;
        }
        bytes.extend(to_bytes(narrow));
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn ties_go_to_even() {
        // Between 1 and the next float16, 2^-10 on, lies 1 + 2^-11; the even fraction is that of 1.
        let tie = 1.0 + 2f32.powi(-11);
        let above = 1.0 + 3.0 * 2f32.powi(-11);
        let bytes = convert(&floats(&[tie, above, -0.0]), Dtype::F32, Dtype::F16).unwrap();
        let back = convert(&bytes, Dtype::F16, Dtype::F32).unwrap();
        assert_eq!(back, floats(&[1.0, 1.0 + 2f32.powi(-9), -0.0]));
    }

    #[test]
    fn what_lies_just_above_a_tie_goes_up() {
        let values = floats(&[1.0 + 2f32.powi(-8) + 2f32.powi(-23)]);
        let bytes = convert(&values, Dtype::F32, Dtype::BF16).unwrap();
        assert_eq!(bytes, 0x3f81u16.to_le_bytes());
        let values = floats(&[1.0 + 2f32.powi(-11) + 2f32.powi(-23)]);
        let bytes = convert(&values, Dtype::F32, Dtype::F16).unwrap();
        assert_eq!(bytes, 0x3c01u16.to_le_bytes());
    }

    #[test]
    fn what_is_too_large_is_refused() {
        for (value, to, fits) in [
            (65_504.0, Dtype::F16, true),
            (65_520.0, Dtype::F16, false),
            (1e38, Dtype::BF16, true),
            (f32::INFINITY, Dtype::F16, true),
        ] {
            let outcome = convert(&floats(&[value]), Dtype::F32, to);
            assert_eq!(outcome.is_ok(), fits, "{value} as {to:?}");
        }
    }

    #[test]
    fn whole_numbers_stay() {
        assert_eq!(target(Dtype::I64, Some(Float::Float16)), Dtype::I64);
        assert_eq!(target(Dtype::F32, Some(Float::Float16)), Dtype::F16);
        assert_eq!(target(Dtype::F32, None), Dtype::F32);
        assert!(convert(&[0; 8], Dtype::I64, Dtype::F16).is_err());
    }
}
