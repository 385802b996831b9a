//! Group norms of a whole feature map, and of one that is read chunk by chunk.

use tch::{Kind, Tensor};

use super::activations::silu;
use super::batch_split::BatchSplit;
use super::chunked::{ChunkSize, FeatureMap};
use crate::torch::kernels::{self, Activation};
use crate::torch::numbers::NumberOperators;
use crate::weights::WeightPath;
use diffusion_core::{Error, Result};

/// Normalization over groups of channels, separately for each batch entry.
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: i64,
    eps: f64,
    /// Whether the CPU kernels of this crate compute the norm of a whole map.
    fast: bool,
}

impl GroupNorm {
    /// Reads `weight` and `bias` of shape `[channels]`.
    ///
    /// # Errors
    /// `InvalidArgument` if `groups` does not divide `channels`.
    pub fn new(path: &WeightPath<'_>, groups: i64, channels: i64, eps: f64) -> Result<Self> {
        if groups <= 0 || channels % groups != 0 {
            return Err(Error::invalid_argument(format!(
                "norm_num_groups {groups} does not divide {channels} channels"
            )));
        }
        Ok(Self {
            weight: path.tensor("weight", &[channels])?,
            bias: path.tensor("bias", &[channels])?,
            groups,
            eps,
            fast: path.is_fast(),
        })
    }

    /// Normalizes a whole map.
    ///
    /// # Shapes
    /// - `input` and the result: `[batch, channels, height, width]`, or `[batch, channels, ..]` without the CPU kernels
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        if self.fast {
            return self.forward_fast(input, Activation::Identity);
        }
        Ok(input.f_group_norm(self.groups, Some(&self.weight), Some(&self.bias), self.eps, true)?)
    }

    /// Normalizes a whole map and applies SiLU to each job's entries; shapes as in [`GroupNorm::forward`].
    pub fn forward_silu(&self, input: &Tensor, split: BatchSplit<'_>) -> Result<Tensor> {
        if self.fast {
            return self.forward_fast(input, Activation::Silu);
        }
        silu(&self.forward(input)?, split)
    }

    fn forward_fast(&self, input: &Tensor, activation: Activation) -> Result<Tensor> {
        kernels::group_norm(input, self.groups, &self.weight, &self.bias, self.eps, activation)
    }

    /// Measures means and variances of a map chunk by chunk and combines them in float64.
    ///
    /// Source: Chan et al., "Algorithms for Computing the Sample Variance" (1983).
    pub fn stats(&self, map: &impl FeatureMap, chunk_size: ChunkSize) -> Result<GroupNormStats> {
        let (height, width) = map.height_width()?;
        let mut combined: Option<Moments> = None;
        for (start, end) in chunk_size.chunks(height, width) {
            let chunk = Moments::of(&map.lines(start, end)?, self.groups)?;
            combined = Some(match combined {
                Some(before) => before.combine(&chunk)?,
                None => chunk,
            });
        }
        let Moments { count, mean, squares } =
            combined.ok_or_else(|| Error::internal("group norm of an empty feature map"))?;
        let rstd = squares.div_number(count)?.add_number(self.eps)?.f_rsqrt()?;
        let (batch, groups) = mean.size2()?;
        let per_channel = |tensor: &Tensor| -> Result<Tensor> {
            let channels = self.weight.size1()? / groups;
            Ok(tensor.f_unsqueeze(2)?.f_repeat([1, 1, channels])?.f_view([batch, -1])?)
        };
        let scale = per_channel(&rstd)?.f_mul(&self.weight)?;
        let shift = self.bias.f_sub(&per_channel(&mean)?.f_mul(&scale)?)?;
        let to_map =
            |tensor: Tensor| -> Result<Tensor> { Ok(tensor.f_to_kind(self.weight.kind())?.f_view([batch, -1, 1, 1])?) };
        Ok(GroupNormStats {
            scale: to_map(scale)?,
            shift: to_map(shift)?,
        })
    }
}

/// Mean and sum of squared deviations of `count` values of each group, float64 `[batch, groups]`.
struct Moments {
    count: f64,
    mean: Tensor,
    squares: Tensor,
}

impl Moments {
    /// Measures a chunk `[batch, channels, lines, width]`.
    fn of(chunk: &Tensor, groups: i64) -> Result<Self> {
        let (batch, channels, lines, width) = chunk.size4()?;
        let count = (channels / groups * lines * width) as f64;
        let grouped = chunk.f_reshape([batch, groups, -1])?.f_to_kind(Kind::Float)?;
        let dimension: &[i64] = &[2];
        let (variance, mean) = grouped.f_var_mean_correction(dimension, 0, false)?;
        Ok(Self {
            count,
            mean: mean.f_to_kind(Kind::Double)?,
            squares: variance.f_to_kind(Kind::Double)?.mul_number(count)?,
        })
    }

    fn combine(&self, next: &Self) -> Result<Self> {
        let count = self.count + next.count;
        let step = next.mean.f_sub(&self.mean)?;
        let between = step.f_square()?.mul_number(self.count * next.count / count)?;
        Ok(Self {
            count,
            mean: self.mean.f_add(&step.mul_number(next.count / count)?)?,
            squares: self.squares.f_add(&next.squares)?.f_add(&between)?,
        })
    }
}

/// A group norm whose means and variances are known: a factor and a shift for each channel, `[batch, channels, 1, 1]`.
pub struct GroupNormStats {
    scale: Tensor,
    shift: Tensor,
}

impl GroupNormStats {
    /// Normalizes some lines of the measured map.
    ///
    /// # Shapes
    /// - `lines` and the result: `[batch, channels, any height, width]`
    pub fn apply(&self, lines: &Tensor) -> Result<Tensor> {
        Ok(self.shift.f_addcmul(lines, &self.scale)?)
    }
}
