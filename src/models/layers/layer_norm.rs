//! Layer norms.

use tch::Tensor;

use crate::weights::WeightPath;
use diffusion_core::Result;

/// Normalization over the last dimension.
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    size: i64,
    eps: f64,
}

impl LayerNorm {
    /// Reads `weight` and `bias` of shape `[size]`.
    pub fn new(path: &WeightPath<'_>, size: i64, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: path.tensor("weight", &[size])?,
            bias: path.tensor("bias", &[size])?,
            size,
            eps,
        })
    }

    /// Normalizes each vector.
    ///
    /// # Shapes
    /// - `input` and the result: `[batch, .., size]`
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        Ok(input.f_layer_norm([self.size], Some(&self.weight), Some(&self.bias), self.eps, true)?)
    }
}
