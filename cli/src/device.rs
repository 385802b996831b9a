//! The device and the dtype of a computation, as arguments.

use clap::Args;
use diffusion_core::Result;
use diffusion_core::config::{Dtype, ModelParameters};
use triton_diffusion::pipelines::Device;

use crate::check::ParameterArguments;
use crate::dtype::Float;

/// Where and in what a model is computed.
#[derive(Args)]
pub struct DeviceArguments {
    /// The dtype of the computation [default: float32 on the CPU, float16 on a GPU]
    #[arg(long)]
    dtype: Option<Float>,
    /// cpu, or cuda:N for GPU N
    #[arg(long, default_value = "cpu", value_parser = device)]
    pub device: Device,
    #[command(flatten)]
    parameters: ParameterArguments,
}

/// Reads a device as torch names it: `cpu`, `cuda` or `cuda:N`.
fn device(text: &str) -> std::result::Result<Device, &'static str> {
    let index = match text {
        "cpu" => return Ok(Device::Cpu),
        "cuda" => Some(0),
        _ => text
            .strip_prefix("cuda:")
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok()),
    };
    index.map(Device::Cuda).ok_or("expected cpu or cuda:N")
}

impl DeviceArguments {
    /// Returns the model's parameters.
    ///
    /// # Errors
    /// Those of [`ParameterArguments::read`].
    pub fn parameters(&self) -> Result<ModelParameters> {
        let mut parameters = self.parameters.read()?;
        if let Some(dtype) = self.dtype {
            parameters.dtype = match dtype {
                Float::Float32 => Dtype::Float32,
                Float::Float16 => Dtype::Float16,
                Float::Bfloat16 => Dtype::Bfloat16,
            };
        }
        Ok(parameters)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn device_is_parsed_as_torch_names_it() {
        for (text, expected) in [
            ("cpu", Device::Cpu),
            ("cuda", Device::Cuda(0)),
            ("cuda:3", Device::Cuda(3)),
        ] {
            assert_eq!(device(text).unwrap(), expected);
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:+1", "CPU", "cuda:9999999999"] {
            assert!(device(text).is_err(), "{text}");
        }
    }
}
