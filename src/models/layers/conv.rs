//! Convolutions.

use tch::Tensor;

use super::batch_split::BatchSplit;
use super::chunked::{ChunkSize, convolve};
use super::low_rank::Delta;
use super::weight::Weight;
use crate::torch::kernels::{self, Resize};
use crate::weights::WeightPath;
use diffusion_core::Result;

/// How the CPU kernels of this crate compute a convolution.
#[derive(Clone, Copy)]
enum Kernel {
    Pointwise,
    Three(Resize),
}

/// A convolution with a square kernel.
pub struct Conv2d {
    /// The name of the layer in the files, for adapters.
    name: Box<str>,
    weight: Weight,
    bias: Option<Tensor>,
    stride: i64,
    padding: i64,
    /// Whether the CPU kernels of this crate compute the convolution.
    fast: bool,
}

impl Conv2d {
    /// Reads `weight` of shape `[outputs, inputs, kernel, kernel]` and `bias` of `[outputs]`.
    pub fn new(
        path: &WeightPath<'_>,
        inputs: i64,
        outputs: i64,
        kernel: i64,
        stride: i64,
        padding: i64,
    ) -> Result<Self> {
        Ok(Self {
            name: path.prefix().into(),
            weight: Weight::new(path, &[outputs, inputs, kernel, kernel])?,
            bias: Some(path.tensor("bias", &[outputs])?),
            stride,
            padding,
            fast: path.is_fast(),
        })
    }

    /// Reads a 3x3 convolution that keeps height and width.
    pub fn same(path: &WeightPath<'_>, inputs: i64, outputs: i64) -> Result<Self> {
        Self::same_with_bias(path, inputs, outputs, true)
    }

    /// Reads a [`Conv2d::same`] with or without bias.
    pub fn same_with_bias(path: &WeightPath<'_>, inputs: i64, outputs: i64, bias: bool) -> Result<Self> {
        Ok(Self {
            name: path.prefix().into(),
            weight: Weight::new(path, &[outputs, inputs, 3, 3])?,
            bias: bias.then(|| path.tensor("bias", &[outputs])).transpose()?,
            stride: 1,
            padding: 1,
            fast: path.is_fast(),
        })
    }

    /// Reads a 1x1 convolution.
    pub fn pointwise(path: &WeightPath<'_>, inputs: i64, outputs: i64) -> Result<Self> {
        Self::new(path, inputs, outputs, 1, 1, 0)
    }

    /// Applies the convolution to the whole batch.
    ///
    /// # Shapes
    /// - `input`: `[batch, inputs, height, width]`
    /// - returns `[batch, outputs, height', width']`
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        self.forward_split(input, BatchSplit::Joint, None)
    }

    /// Applies the convolution to each job's entries; shapes as in [`Conv2d::forward`].
    ///
    /// With a `chunk_size`, a 3x3 convolution that keeps the size is computed chunk by chunk. For some convolutions
    /// libtorch writes down the neighborhood of each value, which needs many times the memory of the map.
    pub fn forward_split(
        &self,
        input: &Tensor,
        split: BatchSplit<'_>,
        chunk_size: Option<ChunkSize>,
    ) -> Result<Tensor> {
        self.forward_with_bias(input, self.bias.as_ref(), split, chunk_size)
    }

    /// Returns whether the CPU kernels of this crate compute the convolution.
    pub fn is_fast(&self) -> bool {
        self.fast
    }

    /// Returns the bias `[outputs]`, if there is one.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Does what [`Conv2d::forward_split`] does, and adds `residual`, of the shape of the result.
    pub fn forward_add(
        &self,
        input: &Tensor,
        residual: &Tensor,
        split: BatchSplit<'_>,
        chunk_size: Option<ChunkSize>,
    ) -> Result<Tensor> {
        match self.kernel() {
            Some(kernel) => {
                let output = self.forward_fast(kernel, input, self.bias.as_ref(), Some(residual))?;
                self.adapt(input, output, split)
            }
            None => Ok(residual.f_add(&self.forward_split(input, split, chunk_size)?)?),
        }
    }

    /// Adds what adapters add to the `output` of the convolution.
    fn adapt(&self, input: &Tensor, output: Tensor, split: BatchSplit<'_>) -> Result<Tensor> {
        if let Some(jobs) = split.adapted(&self.name) {
            let delta = |delta: &Delta, input: &Tensor| delta.conv2d(input, self.stride, self.padding);
            jobs.add(&self.name, input, &output, delta)?;
        }
        Ok(output)
    }

    /// Returns how the CPU kernels of this crate compute the convolution; `None` if libtorch computes it.
    fn kernel(&self) -> Option<Kernel> {
        let sides = self.weight.stored().size();
        match (self.fast, sides.as_slice(), self.stride, self.padding) {
            (true, &[_, _, 1, 1], 1, 0) => Some(Kernel::Pointwise),
            (true, &[_, _, 3, 3], 1, 1) => Some(Kernel::Three(Resize::Same)),
            (true, &[_, _, 3, 3], 2, 1) => Some(Kernel::Three(Resize::Halve { pad_end: false })),
            _ => None,
        }
    }

    fn forward_fast(
        &self,
        kernel: Kernel,
        input: &Tensor,
        bias: Option<&Tensor>,
        add: Option<&Tensor>,
    ) -> Result<Tensor> {
        let weights = kernels::Weights {
            weight: self.weight.stored(),
            bias,
        };
        match kernel {
            Kernel::Pointwise => kernels::conv1x1(input, weights, add),
            Kernel::Three(resize) => kernels::conv3x3(input, weights, resize, add),
        }
    }

    /// Enlarges the input to a height and a width by repetition, and applies a 3x3 convolution that keeps the size.
    pub fn forward_enlarged(
        &self,
        input: &Tensor,
        (height, width): (i64, i64),
        split: BatchSplit<'_>,
        chunk_size: Option<ChunkSize>,
    ) -> Result<Tensor> {
        let larger = || input.f_upsample_nearest2d([height, width], None, None);
        if self.fast {
            let enlarge = Kernel::Three(Resize::Enlarge(height, width));
            let output = self.forward_fast(enlarge, input, self.bias.as_ref(), None)?;
            return match split.adapted(&self.name) {
                Some(_) => self.adapt(&larger()?, output, split),
                None => Ok(output),
            };
        }
        self.forward_split(&larger()?, split, chunk_size)
    }

    /// Applies a 3x3 convolution of stride 2 with a line of zeros at the bottom and at the right.
    pub fn forward_padded_at_end(&self, input: &Tensor, split: BatchSplit<'_>) -> Result<Tensor> {
        if self.fast {
            let halve = Kernel::Three(Resize::Halve { pad_end: true });
            return self.forward_fast(halve, input, self.bias.as_ref(), None);
        }
        self.forward_split(&input.f_constant_pad_nd([0, 1, 0, 1])?, split, None)
    }

    /// Does what [`Conv2d::forward_split`] does with another bias, `[outputs]` or `[batch, outputs]`.
    pub fn forward_with_bias(
        &self,
        input: &Tensor,
        bias: Option<&Tensor>,
        split: BatchSplit<'_>,
        chunk_size: Option<ChunkSize>,
    ) -> Result<Tensor> {
        if let Some(kernel) = self.kernel() {
            let output = self.forward_fast(kernel, input, bias, None)?;
            return self.adapt(input, output, split);
        }
        let of_entries = bias.filter(|bias| bias.dim() == 2);
        let bias = bias.filter(|bias| bias.dim() != 2);
        let output = self.convolve(input, bias, split, chunk_size)?;
        let output = self.adapt(input, output, split)?;
        match of_entries {
            Some(bias) => Ok(output.f_add(&bias.f_unsqueeze(-1)?.f_unsqueeze(-1)?)?),
            None => Ok(output),
        }
    }

    /// Applies the convolution with libtorch.
    fn convolve(
        &self,
        input: &Tensor,
        bias: Option<&Tensor>,
        split: BatchSplit<'_>,
        chunk_size: Option<ChunkSize>,
    ) -> Result<Tensor> {
        self.weight.with(input.kind(), |weight| {
            let stride = [self.stride, self.stride];
            let padding = [self.padding, self.padding];
            let conv = |input: &Tensor| Ok(input.f_conv2d(weight, bias, stride, padding, [1, 1], 1)?);
            split.map(input, |input| match (chunk_size, self.stride, self.padding) {
                (Some(size), 1, 1) => convolve(input, size, conv),
                _ => conv(input),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn noise(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, tch::kind::FLOAT_CPU)
    }

    fn conv() -> Conv2d {
        Conv2d {
            name: "".into(),
            weight: noise(&[5, 4, 3, 3]).into(),
            bias: Some(noise(&[5])),
            stride: 1,
            padding: 1,
            fast: false,
        }
    }

    #[test]
    fn forward_split_per_job_equals_separate_calls() {
        let conv = conv();
        let (a, b) = (noise(&[1, 4, 5, 7]), noise(&[2, 4, 5, 7]));
        let together = Tensor::cat(&[&a, &b], 0);
        let split = BatchSplit::PerJob(&[1, 2]);
        let joined = conv.forward_split(&together, split, None).unwrap();
        assert_eq!(joined.narrow(0, 0, 1), conv.forward(&a).unwrap());
        assert_eq!(joined.narrow(0, 1, 2), conv.forward(&b).unwrap());
    }

    #[test]
    fn forward_split_chunked_is_the_whole_but_for_rounding() {
        let conv = conv();
        let input = noise(&[3, 4, 13, 7]);
        let whole = conv.forward(&input).unwrap();
        for split in [BatchSplit::Joint, BatchSplit::PerJob(&[1, 2])] {
            let chunked = conv
                .forward_split(&input, split, Some(ChunkSize { values: 1 }))
                .unwrap();
            assert!(chunked.allclose(&whole, 1e-4, 1e-5, false));
        }
    }
}
