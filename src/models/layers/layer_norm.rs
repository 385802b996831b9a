//! Layer norms.

use tch::Tensor;

use crate::torch::kernels;
use crate::weights::WeightPath;
use diffusion_core::Result;

/// Normalization over the last dimension.
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    size: i64,
    eps: f64,
    /// Whether the CPU kernels of this crate compute the norm.
    fast: bool,
}

impl LayerNorm {
    /// Reads `weight` and `bias` of shape `[size]`.
    pub fn new(path: &WeightPath<'_>, size: i64, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: path.tensor("weight", &[size])?,
            bias: path.tensor("bias", &[size])?,
            size,
            eps,
            fast: path.is_fast(),
        })
    }

    /// Normalizes each vector.
    ///
    /// # Shapes
    /// - `input` and the result: `[batch, .., size]`
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        if self.fast {
            return kernels::layer_norm(input, &self.weight, &self.bias, self.eps);
        }
        Ok(input.f_layer_norm([self.size], Some(&self.weight), Some(&self.bias), self.eps, true)?)
    }
}
