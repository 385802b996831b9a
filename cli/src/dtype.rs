//! The dtypes that weights are written in.

use clap::ValueEnum;
use safetensors::Dtype;

/// A float dtype of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Float {
    /// 32 bits.
    Float32,
    /// 16 bits, 10 of them for the fraction.
    Float16,
    /// 16 bits, 7 of them for the fraction.
    Bfloat16,
}

impl Float {
    /// Returns the dtype of safetensors.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::Float32 => Dtype::F32,
            Self::Float16 => Dtype::F16,
            Self::Bfloat16 => Dtype::BF16,
        }
    }

    /// Returns the name in `config.pbtxt`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
        }
    }
}

/// Returns the dtype in which a tensor of `dtype` is written: `wanted` for floats, its own dtype for others.
pub fn target(dtype: Dtype, wanted: Option<Float>) -> Dtype {
    match wanted {
        Some(wanted) if matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16) => wanted.dtype(),
        _ => dtype,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_dtype_of_integers_stays() {
        assert_eq!(target(Dtype::I64, Some(Float::Float16)), Dtype::I64);
        assert_eq!(target(Dtype::F32, Some(Float::Float16)), Dtype::F16);
        assert_eq!(target(Dtype::F32, None), Dtype::F32);
    }
}
