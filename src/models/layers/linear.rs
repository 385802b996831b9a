//! Linear layers.

use tch::{Device, Tensor};

use super::batch_split::BatchSplit;
use super::low_rank::{AdaptedJobs, Delta};
use super::operands::fold_strided;
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
    /// The name of the layer in the files, for adapters.
    name: Box<str>,
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
            name: path.prefix().into(),
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
        let output = self.product(input, split)?;
        self.adapt(input, output, split)
    }

    /// Computes the layer without adapters.
    fn product(&self, input: &Tensor, split: BatchSplit<'_>) -> Result<Tensor> {
        if self.fast {
            return kernels::linear(input, &[self.kernel()], After::Activate(Activation::Identity));
        }
        self.weight.with(input.kind(), |weight| {
            split.map_adapted(input, |input, adapted| {
                // With adapters, diffusers' other weights cannot have a gradient: see `fold_strided`.
                if input.is_contiguous() || (adapted && input.device() == Device::Cpu) {
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

    /// Adds what adapters add to the `output` of the layer.
    ///
    /// # Shapes
    /// - `input`: `[batch, .., inputs]`
    /// - `output` and the result: `[batch, .., outputs]`
    pub(crate) fn adapt(&self, input: &Tensor, output: Tensor, split: BatchSplit<'_>) -> Result<Tensor> {
        let Some(jobs) = split.adapted(&self.name) else {
            return Ok(output);
        };
        if self.fast {
            return self.adapt_fast(input, output, jobs);
        }
        jobs.add(&self.name, input, &output, Delta::linear)?;
        Ok(output)
    }

    /// Does what [`Linear::adapt`] does with the CPU kernels of this crate.
    fn adapt_fast(&self, input: &Tensor, mut output: Tensor, jobs: AdaptedJobs<'_>) -> Result<Tensor> {
        let batch = output.size().first().copied().unwrap_or(0);
        for (start, size, deltas) in jobs.of(&self.name) {
            let input = input.f_narrow(0, start, size)?;
            for delta in deltas {
                let mut entries = output.f_narrow(0, start, size)?;
                let sum = delta.add_linear_fast(&input, &entries)?;
                if size == batch {
                    output = sum;
                } else {
                    entries.f_copy_(&sum)?;
                }
            }
        }
        Ok(output)
    }

    /// Applies the layer with the CPU kernels of this crate and an activation. `with_adapters` applies the activation to
    /// the entries of a job with adapters, whose results are not activated yet.
    pub(crate) fn forward_fast(
        &self,
        input: &Tensor,
        after: After<'_>,
        split: BatchSplit<'_>,
        with_adapters: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let Some(jobs) = split.adapted(&self.name) else {
            return kernels::linear(input, &[self.kernel()], after);
        };
        let mut outputs = Vec::with_capacity(jobs.sizes.len());
        for (index, (start, size, deltas)) in jobs.of(&self.name).enumerate() {
            let input = input.f_narrow(0, start, size)?;
            outputs.push(if deltas.is_empty() {
                kernels::linear(&input, &[self.kernel()], after)?
            } else {
                let one = AdaptedJobs {
                    sizes: &[size],
                    deltas: &jobs.deltas[index..=index],
                    apart: false,
                };
                with_adapters(&self.forward_split(&input, BatchSplit::Adapted(one))?)?
            });
        }
        Ok(Tensor::f_cat(&outputs, 0)?)
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
            let output = kernels::linear(input, &[self.kernel()], After::Add(residual))?;
            return self.adapt(input, output, split);
        }
        Ok(self.forward_split(input, split)?.f_add(residual)?)
    }

    fn forward_strided(&self, input: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let product = fold_strided(input, weight)?;
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
            name: "".into(),
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
