//! Group norms, of a map that is there and of one that is known in parts.

use tch::{Kind, Tensor};

use crate::weights::WeightPath;
use diffusion_core::{Error, Result};

/// Normalisation over groups of channels, each row for itself.
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: i64,
    eps: f64,
}

impl GroupNorm {
    /// `weight` and `bias` of shape `[channels]`.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn new(path: &WeightPath<'_>, groups: i64, channels: i64, eps: f64) -> Result<Self> {
        if groups <= 0 || channels % groups != 0 {
            return Err(Error::invalid_argument(format!(
                "norm_num_groups {groups} does not divide {channels} channels"
            )));
        }
        let weight = path.tensor("weight", &[channels])?;
        Ok(Self {
            weight,
            bias: path.tensor("bias", &[channels])?,
            groups,
            eps,
        })
    }

    /// The shape of the input, `[rows, channels, ..]`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        Ok(input.f_group_norm(self.groups, Some(&self.weight), Some(&self.bias), self.eps, true)?)
    }

    /// The norm of a map that is known in parts, each `[rows, channels, height, width]` of one width. Means and
    /// variances of the parts are put together in float64 (Chan et al., "Algorithms for Computing the Sample Variance",
    /// 1983).
    ///
    /// # Errors
    /// Out of memory; no part.
    pub fn measure(&self, parts: impl Iterator<Item = Result<Tensor>>) -> Result<NormScale> {
        let mut so_far: Option<(f64, Tensor, Tensor)> = None;
        for part in parts {
            let part = part?;
            let (rows, channels, height, width) = part.size4()?;
            let count = (channels / self.groups * height * width) as f64;
            let grouped = part.f_reshape([rows, self.groups, -1])?.f_to_kind(Kind::Float)?;
            let over: &[i64] = &[2];
            let (variance, mean) = grouped.f_var_mean_correction(over, 0, false)?;
            let (mean, squares) = (
                mean.f_to_kind(Kind::Double)?,
                variance.f_to_kind(Kind::Double)?.f_mul_scalar(count)?,
            );
            so_far = Some(match so_far {
                None => (count, mean, squares),
                Some((n, old_mean, old_squares)) => {
                    let total = n + count;
                    let step = mean.f_sub(&old_mean)?;
                    let between = step.f_square()?.f_mul_scalar(n * count / total)?;
                    (
                        total,
                        old_mean.f_add(&step.f_mul_scalar(count / total)?)?,
                        old_squares.f_add(&squares)?.f_add(&between)?,
                    )
                }
            });
        }
        let Some((count, mean, squares)) = so_far else {
            return Err(Error::internal("a norm of nothing"));
        };
        let rstd = squares.f_div_scalar(count)?.f_add_scalar(self.eps)?.f_rsqrt()?;
        let (rows, groups) = mean.size2()?;
        let each_channel = |tensor: &Tensor| -> Result<Tensor> {
            let channels = self.weight.size1()? / groups;
            Ok(tensor.f_unsqueeze(2)?.f_repeat([1, 1, channels])?.f_view([rows, -1])?)
        };
        let scale = each_channel(&rstd)?.f_mul(&self.weight)?;
        let shift = self.bias.f_sub(&each_channel(&mean)?.f_mul(&scale)?)?;
        let placed =
            |tensor: Tensor| -> Result<Tensor> { Ok(tensor.f_to_kind(self.weight.kind())?.f_view([rows, -1, 1, 1])?) };
        Ok(NormScale {
            scale: placed(scale)?,
            shift: placed(shift)?,
        })
    }
}

/// A group norm whose means and deviations are known: a factor and a shift for each channel.
pub struct NormScale {
    /// `[rows, channels, 1, 1]`.
    scale: Tensor,
    /// `[rows, channels, 1, 1]`.
    shift: Tensor,
}

impl NormScale {
    /// The shape of the input, `[rows, channels, any height, width]`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn apply(&self, input: &Tensor) -> Result<Tensor> {
        Ok(self.shift.f_addcmul(input, &self.scale)?)
    }
}
