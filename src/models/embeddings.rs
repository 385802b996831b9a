//! Embeddings of the timestep.
//!
//! Source: diffusers `models/embeddings.py` (`get_timestep_embedding`, `TimestepEmbedding`), after
//! Ho et al., "Denoising Diffusion Probabilistic Models" (2020).

use tch::{Kind, Tensor};

use super::layers::{Linear, Rows, silu};
use crate::error::Result;
use crate::weights::WeightPath;

/// The longest wavelength of the sinusoids, over 2π.
const MAX_PERIOD: f64 = 10_000.0;

/// Sinusoids of the timestep.
pub struct Timesteps {
    /// Size of the embedding.
    pub channels: i64,
    /// Cosines first.
    pub flip_sin_to_cos: bool,
    /// The config's `freq_shift`.
    pub freq_shift: f64,
}

impl Timesteps {
    /// `[rows]` timesteps (any dtype) to float32 `[rows, channels]`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn forward(&self, timesteps: &Tensor, rows: Rows<'_>) -> Result<Tensor> {
        rows.each(timesteps, |timesteps| self.embed(timesteps))
    }

    fn embed(&self, timesteps: &Tensor) -> Result<Tensor> {
        let half = self.channels / 2;
        let exponent = Tensor::f_arange(half, (Kind::Float, timesteps.device()))?
            .f_mul_scalar(-MAX_PERIOD.ln())?
            .f_div_scalar(half as f64 - self.freq_shift)?;
        let angles = timesteps
            .f_unsqueeze(-1)?
            .f_to_kind(Kind::Float)?
            .f_mul(&exponent.f_exp()?.f_unsqueeze(0)?)?;
        let (sin, cos) = (angles.f_sin()?, angles.f_cos()?);
        let embedding = if self.flip_sin_to_cos {
            [cos, sin]
        } else {
            [sin, cos]
        };
        let embedding = Tensor::f_cat(&embedding, -1)?;
        if self.channels % 2 == 1 {
            return Ok(embedding.f_constant_pad_nd([0, 1])?);
        }
        Ok(embedding)
    }
}

/// Two products with SiLU between.
pub struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    /// Reads the weights below `path`.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn new(path: &WeightPath<'_>, inputs: i64, outputs: i64) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::new(&path.sub("linear_1"), inputs, outputs)?,
            linear_2: Linear::new(&path.sub("linear_2"), outputs, outputs)?,
        })
    }

    /// `[rows, inputs]` to `[rows, outputs]`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn forward(&self, input: &Tensor, rows: Rows<'_>) -> Result<Tensor> {
        let hidden = silu(&self.linear_1.forward(input, rows)?, rows)?;
        self.linear_2.forward(&hidden, rows)
    }
}
