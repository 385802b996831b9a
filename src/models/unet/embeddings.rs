//! Embeddings of the timestep and of the guidance scale.
//!
//! Source: diffusers `models/embeddings.py` (`get_timestep_embedding`, `TimestepEmbedding`), after Ho et al., "Denoising Diffusion Probabilistic Models" (2020).

use tch::{Device, Kind, Tensor};

use super::config::UNet2DConfig;
use crate::models::layers::{BatchSplit, Linear, silu};
use crate::torch::numbers::{NumberOperators, arange};
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
    /// Computes the sinusoids of each timestep.
    ///
    /// # Shapes
    /// - `timesteps`: `[batch]`, any dtype
    /// - returns `[batch, channels]`, float32
    pub fn forward(&self, timesteps: &Tensor, split: BatchSplit<'_>) -> Result<Tensor> {
        split.map(timesteps, |timesteps| self.embed(timesteps))
    }

    fn embed(&self, timesteps: &Tensor) -> Result<Tensor> {
        let half = self.channels / 2;
        let exponent = arange(half, Kind::Float, timesteps.device())?
            .mul_number(-MAX_PERIOD.ln())?
            .div_number(half as f64 - self.freq_shift)?;
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

/// Computes the sinusoids of guidance scales, for models that take them as a condition.
///
/// # Shapes
/// - `weights`: guidance scales minus 1, `[batch]`, float32 on the CPU
/// - `embedding_dim`: the UNet's `time_cond_proj_dim`, at least 4
/// - returns `[batch, embedding_dim]` as `kind`
///
/// Source: `get_guidance_scale_embedding` in diffusers
/// `pipelines/stable_diffusion/pipeline_stable_diffusion.py`, after Kingma et al., "Variational Diffusion Models" (2021).
pub fn guidance_scale_embedding(weights: &Tensor, embedding_dim: i64, kind: Kind) -> Result<Tensor> {
    let half = embedding_dim / 2;
    let weights = weights.mul_number(1000.0)?;
    let step = Tensor::f_from_slice(&[MAX_PERIOD as f32])?
        .f_log()?
        .div_number(half - 1)?;
    let frequencies = arange(half, Kind::Float, Device::Cpu)?.f_mul(&step.f_neg()?)?.f_exp()?;
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

/// Two linear layers with SiLU between them; some models add a condition to the input.
pub struct TimestepEmbedding {
    cond_proj: Option<Linear>,
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    /// Reads the weights below `path`. `cond` is the size of the condition, for a model with one.
    pub fn new(path: &WeightPath<'_>, inputs: i64, outputs: i64, cond: Option<i64>) -> Result<Self> {
        Ok(Self {
            cond_proj: cond
                .map(|size| Linear::with_bias(&path.sub("cond_proj"), size, inputs, false))
                .transpose()?,
            linear_1: Linear::new(&path.sub("linear_1"), inputs, outputs)?,
            linear_2: Linear::new(&path.sub("linear_2"), outputs, outputs)?,
        })
    }

    /// Computes the time embedding.
    ///
    /// # Shapes
    /// - `input`: `[batch, inputs]`
    /// - `cond`: `[batch, cond]`
    /// - returns `[batch, outputs]`
    ///
    /// # Errors
    /// `Internal` for a condition that is missing or unexpected.
    pub fn forward(&self, input: &Tensor, cond: Option<&Tensor>, split: BatchSplit<'_>) -> Result<Tensor> {
        let input = match (&self.cond_proj, cond) {
            (Some(cond_proj), Some(cond)) => &input.f_add(&cond_proj.forward_split(cond, split)?)?,
            (None, None) => input,
            (Some(_), None) => return Err(Error::internal("missing timestep condition of a UNet call")),
            (None, Some(_)) => return Err(Error::internal("unexpected timestep condition of a UNet call")),
        };
        let hidden = silu(&self.linear_1.forward_split(input, split)?, split)?;
        self.linear_2.forward_split(&hidden, split)
    }
}

/// The embedding of a pooled text and of numbers (diffusers' `get_aug_embed` for `text_time`).
pub struct AddedEmbedding {
    time_proj: Timesteps,
    embedding: TimestepEmbedding,
}

impl AddedEmbedding {
    /// Reads the weights below `path`. `each` is the size of the sinusoids of a number, `all` that of all that is embedded.
    pub fn new(path: &WeightPath<'_>, (each, all): (i64, i64), outputs: i64, config: &UNet2DConfig) -> Result<Self> {
        Ok(Self {
            time_proj: Timesteps {
                channels: each,
                flip_sin_to_cos: config.flip_sin_to_cos,
                freq_shift: config.freq_shift,
            },
            embedding: TimestepEmbedding::new(path, all, outputs, None)?,
        })
    }

    /// Computes what is added to the time embedding.
    ///
    /// # Shapes
    /// - `text_embeds`: `[batch, size]` in the model's dtype
    /// - `time_ids`: `[batch, count]`, float32
    /// - returns `[batch, outputs]`
    pub fn forward(&self, text_embeds: &Tensor, time_ids: &Tensor, split: BatchSplit<'_>) -> Result<Tensor> {
        let (batch, _) = time_ids.size2()?;
        let sinusoids = self.time_proj.embed(&time_ids.f_flatten(0, -1)?)?.f_view([batch, -1])?;
        // The concatenation is in float32, the embedding in the model's dtype.
        let added = Tensor::f_cat(&[&text_embeds.f_to_kind(Kind::Float)?, &sinusoids], -1)?;
        self.embedding
            .forward(&added.f_to_kind(text_embeds.kind())?, None, split)
    }
}
