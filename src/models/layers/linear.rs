//! Linear layers.

use tch::{Device, Tensor};

use super::batch_split::BatchSplit;
use super::weight::Weight;
use crate::torch::kernels::{self, Activation, After};
use crate::weights::WeightPath;
use diffusion_core::Result;

/// A product with a learned matrix, and an optional bias.
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// use triton_diffusion::{models::layers::Linear, weights::load_component};
///
/// let folder = tempfile::tempdir()?;
/// let weight = Tensor::from_slice2(&[[1f32, 2.0], [3.0, 4.0]]);
/// let bias = Tensor::from_slice(&[0.5f32, 0.0]);
/// Tensor::write_safetensors(&[("weight", weight), ("bias", bias)], folder.path().join("model.safetensors"))?;
///
/// let weights = load_component(folder.path(), "model", Device::Cpu, Kind::Float)?;
/// let linear = Linear::new(&weights.root(), 2, 2)?;
/// let output = linear.forward(&Tensor::from_slice2(&[[1f32, 1.0]]))?;
/// assert_eq!(output, Tensor::from_slice2(&[[3.5f32, 7.0]]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    /// Whether the CPU kernels of this crate compute the layer.
    fast: bool,
}

impl Linear {
    /// Reads `weight` of shape `[outputs, inputs]` and `bias` of `[outputs]`.
    pub fn new(path: &WeightPath<'_>, inputs: i64, outputs: i64) -> Result<Self> {
        Self::with_bias(path, inputs, outputs, true)
    }

    /// Reads a layer with or without bias.
    pub fn with_bias(path: &WeightPath<'_>, inputs: i64, outputs: i64, bias: bool) -> Result<Self> {
        Ok(Self {
            weight: Weight::new(path, &[outputs, inputs])?,
            bias: bias.then(|| path.tensor("bias", &[outputs])).transpose()?,
            fast: path.is_fast(),
        })
    }

    /// Applies the layer to the whole batch.
    ///
    /// # Shapes
    /// - `input`: `[batch, .., inputs]`
    /// - returns `[batch, .., outputs]`
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        self.forward_split(input, BatchSplit::Joint)
    }

    /// Applies the layer to each job's entries; shapes as in [`Linear::forward`].
    pub fn forward_split(&self, input: &Tensor, split: BatchSplit<'_>) -> Result<Tensor> {
        if self.fast {
            return kernels::linear(input, &[self.kernel()], After::Activate(Activation::Identity));
        }
        self.weight.with(input.kind(), |weight| {
            split.map(input, |input| {
                if input.is_contiguous() {
                    Ok(input.f_linear(weight, self.bias.as_ref())?)
                } else if input.device() == Device::Cpu {
                    self.forward_strided(input, weight)
                } else {
                    // One product with its bias, where libtorch would add the bias by itself.
                    Ok(input.f_contiguous()?.f_linear(weight, self.bias.as_ref())?)
                }
            })
        })
    }

    /// Returns whether the CPU kernels of this crate compute the layer.
    pub fn is_fast(&self) -> bool {
        self.fast
    }

    /// The weights as the CPU kernels take them.
    pub(crate) fn kernel(&self) -> kernels::Weights<'_> {
        kernels::Weights {
            weight: self.weight.stored(),
            bias: self.bias.as_ref(),
        }
    }

    /// Applies the layer to each job's entries and adds `residual`, of the shape of the result.
    pub fn forward_add(&self, input: &Tensor, residual: &Tensor, split: BatchSplit<'_>) -> Result<Tensor> {
        if self.fast {
            return kernels::linear(input, &[self.kernel()], After::Add(residual));
        }
        Ok(self.forward_split(input, split)?.f_add(residual)?)
    }

    /// Computes one product for an input that is not contiguous.
    ///
    /// For such an input libtorch computes one product, or one product for each batch entry, depending on whether the
    /// weight could have a gradient (`should_fold` in `aten/src/ATen/native/LinearAlgebra.cpp`). The trained weights of
    /// diffusers can have one, so diffusers gets a single product. The weights of this crate cannot.
    fn forward_strided(&self, input: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let mut shape = input.size();
        let inputs = shape.pop().unwrap_or(1);
        shape.extend(weight.size().first());
        let product = input
            .f_reshape([-1, inputs])?
            .f_mm(&weight.f_transpose(0, 1)?)?
            .f_view(&shape[..])?;
        match &self.bias {
            Some(bias) => Ok(product.f_add(bias)?),
            None => Ok(product),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn forward_split_per_job_equals_separate_calls() {
        let noise = |shape: &[i64]| Tensor::randn(shape, tch::kind::FLOAT_CPU);
        let linear = Linear {
            weight: noise(&[7, 4]).into(),
            bias: Some(noise(&[7])),
            fast: false,
        };
        let (a, b) = (noise(&[1, 4]), noise(&[2, 4]));
        let together = Tensor::cat(&[&a, &b], 0);
        let joined = linear.forward_split(&together, BatchSplit::PerJob(&[1, 2])).unwrap();
        assert_eq!(joined.narrow(0, 0, 1), linear.forward(&a).unwrap());
        assert_eq!(joined.narrow(0, 1, 2), linear.forward(&b).unwrap());
    }
}
