//! Embeddings of the timestep.
//!
//! Source: diffusers `models/embeddings.py` (`get_timestep_embedding`, `TimestepEmbedding`), after
//! Ho et al., "Denoising Diffusion Probabilistic Models" (2020).

use tch::{Device, Kind, Tensor};

use crate::models::layers::{Linear, Rows, silu};
use crate::weights::WeightPath;
use diffusion_core::{Error, Result};

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
        let embedding = if self.flip_sin_to_cos { [cos, sin] } else { [sin, cos] };
        let embedding = Tensor::f_cat(&embedding, -1)?;
        if self.channels % 2 == 1 {
            return Ok(embedding.f_constant_pad_nd([0, 1])?);
        }
        Ok(embedding)
    }
}

/// Sinusoids of a guidance weight, for models that take it as a condition: float32 `[rows]` on the CPU to `kind`
/// `[rows, embedding_dim]`. `weights` are guidance scales less 1, `embedding_dim` is the UNet's `time_cond_proj_dim`, at
/// least 4.
///
/// Source: `get_guidance_scale_embedding` in diffusers
/// `pipelines/stable_diffusion/pipeline_stable_diffusion.py`, after Kingma et al., "Variational Diffusion Models" (2021).
///
/// # Errors
/// Out of memory.
pub fn guidance_scale_embedding(weights: &Tensor, embedding_dim: i64, kind: Kind) -> Result<Tensor> {
    let half = embedding_dim / 2;
    let weights = weights.f_mul_scalar(1000.0)?;
    let step = Tensor::f_scalar_tensor(MAX_PERIOD, (Kind::Float, Device::Cpu))?
        .f_log()?
        .f_div_scalar(half - 1)?;
    let frequencies = Tensor::f_arange(half, (Kind::Float, Device::Cpu))?
        .f_mul(&step.f_neg()?)?
        .f_exp()?;
    let angles = weights
        .f_to_kind(Kind::Float)?
        .f_unsqueeze(1)?
        .f_mul(&frequencies.f_unsqueeze(0)?)?;
    let mut embedding = Tensor::f_cat(&[angles.f_sin()?, angles.f_cos()?], 1)?;
    if embedding_dim % 2 == 1 {
        embedding = embedding.f_constant_pad_nd([0, 1])?;
    }
    Ok(embedding.f_to_kind(kind)?)
}

/// Two products with SiLU between, and for some models a condition that is added before.
pub struct TimestepEmbedding {
    cond_proj: Option<Linear>,
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    /// Reads the weights below `path`. `cond` is the size of the condition, for a model that takes one.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn new(path: &WeightPath<'_>, inputs: i64, outputs: i64, cond: Option<i64>) -> Result<Self> {
        Ok(Self {
            cond_proj: cond
                .map(|size| Linear::without_bias(&path.sub("cond_proj"), size, inputs))
                .transpose()?,
            linear_1: Linear::new(&path.sub("linear_1"), inputs, outputs)?,
            linear_2: Linear::new(&path.sub("linear_2"), outputs, outputs)?,
        })
    }

    /// `[rows, inputs]` and the condition, `[rows, cond]`, to `[rows, outputs]`.
    ///
    /// # Errors
    /// Out of memory; a condition that is missing or not wanted.
    pub fn forward(&self, input: &Tensor, cond: Option<&Tensor>, rows: Rows<'_>) -> Result<Tensor> {
        let input = match (&self.cond_proj, cond) {
            (Some(cond_proj), Some(cond)) => &input.f_add(&cond_proj.forward(cond, rows)?)?,
            (None, None) => input,
            (Some(_), None) => return Err(Error::internal("the UNet needs a timestep condition")),
            (None, Some(_)) => {
                return Err(Error::internal("the UNet takes no timestep condition"));
            }
        };
        let hidden = silu(&self.linear_1.forward(input, rows)?, rows)?;
        self.linear_2.forward(&hidden, rows)
    }
}
