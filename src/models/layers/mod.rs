//! The layers that the models are made of, and how a call's rows divide among jobs.
//!
//! libtorch chooses CPU kernels by the size of the batch: a 3x3 convolution of one row goes to
//! another kernel than one of two (`use_mkldnn` in `aten/src/ATen/native/Convolution.cpp`: a batch of
//! one below 20,480 elements), a matrix product of few rows to another than one of many, and the
//! vectorised activations treat the tail of a chunk apart. So a row's bytes would depend on who
//! shares its call. [`Rows`] says where each job's rows lie, and the layers whose kernels look at the
//! batch run over each job's rows on their own when bytes are to be kept.

pub mod attention;
pub mod chunked;
pub mod group_norm;
pub mod resnet;
pub mod weight;

use tch::{Kind, Tensor};

use crate::weights::WeightPath;
use chunked::{ChunkSize, Map, convolve};
use diffusion_core::Result;
use weight::Weight;

/// libtorch's CPU allocator aligns to this many bytes (`c10/core/alignment.h`); MKL's sums may
/// depend on the alignment of what it reads.
const ALIGNMENT: usize = 64;

/// How the rows (dimension 0) of one call divide among jobs, and whether memory is short.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    sizes: Option<&'a [i64]>,
    /// Convolutions are computed in chunks of this size.
    chunks: Option<ChunkSize>,
}

impl<'a> Rows<'a> {
    /// All rows in one piece, as one caller's batch.
    pub const WHOLE: Rows<'static> = Rows {
        sizes: None,
        chunks: None,
    };

    /// All rows in one piece, with convolutions a chunk of the map at a time: libtorch lays out the surroundings of
    /// every value beside each other for some of them, which takes many times the memory of the map.
    pub fn chunked(size: ChunkSize) -> Self {
        Self {
            sizes: None,
            chunks: Some(size),
        }
    }

    /// Consecutive pieces of these sizes, each computed as if it were alone.
    pub fn apart(sizes: &'a [i64]) -> Self {
        Self {
            sizes: (sizes.len() > 1).then_some(sizes),
            chunks: None,
        }
    }

    /// `f` over each piece of `input`, joined again.
    ///
    /// # Errors
    /// What `f` says, or out of memory.
    pub fn each(self, input: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        self.each_with(&[input], |pieces| f(pieces[0]))
    }

    /// As [`Rows::each`], over several tensors that divide alike.
    ///
    /// # Errors
    /// What `f` says, or out of memory.
    pub fn each_with(self, inputs: &[&Tensor], f: impl Fn(&[&Tensor]) -> Result<Tensor>) -> Result<Tensor> {
        let Some(sizes) = self.sizes else {
            return f(inputs);
        };
        let mut outputs = Vec::with_capacity(sizes.len());
        let mut start = 0;
        for &size in sizes {
            let pieces = inputs
                .iter()
                .map(|input| aligned(input.f_narrow(0, start, size)?))
                .collect::<Result<Vec<_>>>()?;
            outputs.push(f(&pieces.iter().collect::<Vec<_>>())?);
            start += size;
        }
        Ok(Tensor::f_cat(&outputs, 0)?)
    }
}

/// The tensor at an address as aligned as a fresh one would have.
fn aligned(piece: Tensor) -> Result<Tensor> {
    if (piece.data_ptr() as usize).is_multiple_of(ALIGNMENT) {
        Ok(piece)
    } else {
        let mut fresh = piece.f_empty_like()?;
        fresh.f_copy_(&piece)?;
        Ok(fresh)
    }
}

/// A learned product with a matrix, and a bias.
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

impl Linear {
    /// `weight` of shape `[outputs, inputs]` and `bias` of `[outputs]`.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn new(path: &WeightPath<'_>, inputs: i64, outputs: i64) -> Result<Self> {
        let bias = Some(path.tensor("bias", &[outputs])?);
        Ok(Self {
            weight: Weight::new(path, &[outputs, inputs])?,
            bias,
        })
    }

    /// As [`Linear::new`], without bias.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn without_bias(path: &WeightPath<'_>, inputs: i64, outputs: i64) -> Result<Self> {
        Ok(Self {
            weight: Weight::new(path, &[outputs, inputs])?,
            bias: None,
        })
    }

    /// `[rows, .., inputs]` to `[rows, .., outputs]`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn forward(&self, input: &Tensor, rows: Rows<'_>) -> Result<Tensor> {
        self.weight.with(input.kind(), |weight| {
            rows.each(input, |input| {
                if input.is_contiguous() {
                    Ok(input.f_linear(weight, self.bias.as_ref())?)
                } else {
                    self.forward_strided(input, weight)
                }
            })
        })
    }

    /// One product over the rows of an input whose layout is not its shape's.
    ///
    /// libtorch makes one product or a product for each row of such an input, by whether the weight
    /// could have a gradient (`should_fold` in `aten/src/ATen/native/LinearAlgebra.cpp`). A trained
    /// weight in Python can, and so diffusers gets one; ours cannot.
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

/// A square convolution over `[rows, channels, height, width]`.
pub struct Conv2d {
    weight: Weight,
    bias: Option<Tensor>,
    stride: i64,
    padding: i64,
}

impl Conv2d {
    /// `weight` of shape `[outputs, inputs, kernel, kernel]` and `bias` of `[outputs]`.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
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

    /// As [`Conv2d::same`], without bias.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn same_without_bias(path: &WeightPath<'_>, inputs: i64, outputs: i64) -> Result<Self> {
        Ok(Self {
            weight: Weight::new(path, &[outputs, inputs, 3, 3])?,
            bias: None,
            stride: 1,
            padding: 1,
        })
    }

    /// A 3x3 convolution that keeps height and width.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn same(path: &WeightPath<'_>, inputs: i64, outputs: i64) -> Result<Self> {
        Self::new(path, inputs, outputs, 3, 1, 1)
    }

    /// A 1x1 convolution.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn pointwise(path: &WeightPath<'_>, inputs: i64, outputs: i64) -> Result<Self> {
        Self::new(path, inputs, outputs, 1, 1, 0)
    }

    /// `[rows, inputs, height, width]` to `[rows, outputs, height', width']`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn forward(&self, input: &Tensor, rows: Rows<'_>) -> Result<Tensor> {
        if let (Some(size), 1, 1) = (rows.chunks, self.stride, self.padding) {
            let map = Map::Whole(input.shallow_clone());
            return convolve(&map, size, |chunk| self.forward(chunk, Rows::WHOLE));
        }
        self.weight.with(input.kind(), |weight| {
            rows.each(input, |input| {
                Ok(input.f_conv2d(
                    weight,
                    self.bias.as_ref(),
                    [self.stride, self.stride],
                    [self.padding, self.padding],
                    [1, 1],
                    1,
                )?)
            })
        })
    }
}

/// Normalisation over the last dimension.
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    size: i64,
    eps: f64,
}

impl LayerNorm {
    /// `weight` and `bias` of shape `[size]`.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn new(path: &WeightPath<'_>, size: i64, eps: f64) -> Result<Self> {
        let weight = path.tensor("weight", &[size])?;
        Ok(Self {
            weight,
            bias: path.tensor("bias", &[size])?,
            size,
            eps,
        })
    }

    /// The shape of the input, `[rows, .., size]`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        Ok(input.f_layer_norm([self.size], Some(&self.weight), Some(&self.bias), self.eps, true)?)
    }
}

/// A table of vectors.
pub struct Embedding {
    /// Perhaps in half precision, as [`WeightPath::stored`] says.
    weight: Tensor,
    kind: Kind,
}

impl Embedding {
    /// `weight` of shape `[entries, size]`.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn new(path: &WeightPath<'_>, entries: i64, size: i64) -> Result<Self> {
        Ok(Self {
            weight: path.stored("weight", &[entries, size])?,
            kind: path.kind(),
        })
    }

    /// int64 indices of any shape to `[.., size]`.
    ///
    /// # Errors
    /// An index outside of the table.
    pub fn forward(&self, indices: &Tensor) -> Result<Tensor> {
        let vectors = Tensor::f_embedding(&self.weight, indices, -1, false, false)?;
        Ok(vectors.f_to_kind(self.kind)?)
    }
}

/// x·σ(x), elementwise.
///
/// # Errors
/// Out of memory.
pub fn silu(input: &Tensor, rows: Rows<'_>) -> Result<Tensor> {
    rows.each(input, |input| Ok(input.f_silu()?))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use tch::Device;

    fn noise(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    #[test]
    fn pieces_are_computed_as_if_alone() {
        let conv = Conv2d {
            weight: noise(&[5, 4, 3, 3]).into(),
            bias: Some(noise(&[5])),
            stride: 1,
            padding: 1,
        };
        let linear = Linear {
            weight: noise(&[7, 4]).into(),
            bias: Some(noise(&[7])),
        };
        let (a, b) = (noise(&[1, 4, 5, 7]), noise(&[2, 4, 5, 7]));
        let together = Tensor::cat(&[&a, &b], 0);
        let rows = Rows::apart(&[1, 2]);
        let joined = conv.forward(&together, rows).unwrap();
        assert_eq!(joined.narrow(0, 0, 1), conv.forward(&a, Rows::WHOLE).unwrap());
        assert_eq!(joined.narrow(0, 1, 2), conv.forward(&b, Rows::WHOLE).unwrap());

        let (a, b) = (
            a.mean_dim([2, 3].as_slice(), false, Kind::Float),
            b.mean_dim([2, 3].as_slice(), false, Kind::Float),
        );
        let joined = linear.forward(&Tensor::cat(&[&a, &b], 0), rows).unwrap();
        assert_eq!(joined.narrow(0, 0, 1), linear.forward(&a, Rows::WHOLE).unwrap());
        assert_eq!(joined.narrow(0, 1, 2), linear.forward(&b, Rows::WHOLE).unwrap());
    }

    #[test]
    fn a_misaligned_piece_is_moved_and_keeps_its_layout() {
        let whole = noise(&[3, 5, 4]);
        let piece = whole.narrow(0, 1, 2).transpose(1, 2);
        let moved = aligned(piece.shallow_clone()).unwrap();
        assert_eq!(moved.data_ptr() as usize % ALIGNMENT, 0);
        assert_eq!(moved, piece);
        assert_eq!(moved.stride(), piece.stride());
    }
}
