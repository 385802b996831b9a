//! Convolutions.

use tch::Tensor;

use super::batch_split::BatchSplit;
use super::chunked::{ChunkSize, convolve};
use super::weight::Weight;
use crate::weights::WeightPath;
use diffusion_core::Result;

/// A convolution with a square kernel.
pub struct Conv2d {
    weight: Weight,
    bias: Option<Tensor>,
    stride: i64,
    padding: i64,
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
            weight: Weight::new(path, &[outputs, inputs, kernel, kernel])?,
            bias: Some(path.tensor("bias", &[outputs])?),
            stride,
            padding,
        })
    }

    /// Reads a 3x3 convolution that keeps height and width.
    pub fn same(path: &WeightPath<'_>, inputs: i64, outputs: i64) -> Result<Self> {
        Self::same_with_bias(path, inputs, outputs, true)
    }

    /// Reads a [`Conv2d::same`] with or without bias.
    pub fn same_with_bias(path: &WeightPath<'_>, inputs: i64, outputs: i64, bias: bool) -> Result<Self> {
        Ok(Self {
            weight: Weight::new(path, &[outputs, inputs, 3, 3])?,
            bias: bias.then(|| path.tensor("bias", &[outputs])).transpose()?,
            stride: 1,
            padding: 1,
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

    /// Returns the bias `[outputs]`, if there is one.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Does what [`Conv2d::forward_split`] does with another bias `[outputs]`, or without one.
    pub fn forward_with_bias(
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
            weight: noise(&[5, 4, 3, 3]).into(),
            bias: Some(noise(&[5])),
            stride: 1,
            padding: 1,
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
