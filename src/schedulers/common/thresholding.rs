//! Bounds for a predicted sample: clipping and dynamic thresholding.

use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::torch::numbers::NumberOperators;
use diffusion_core::Result;

/// The keys of dynamic thresholding (Saharia et al., "Imagen", 2022), with diffusers' defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Thresholding {
    /// Whether thresholding is on.
    pub thresholding: bool,
    /// The quantile of absolute values that becomes the bound.
    pub dynamic_thresholding_ratio: f64,
    /// The largest bound.
    pub sample_max_value: f64,
}

impl Default for Thresholding {
    fn default() -> Self {
        Self {
            thresholding: false,
            dynamic_thresholding_ratio: 0.995,
            sample_max_value: 1.0,
        }
    }
}

/// The keys of both bounds, with the defaults of diffusers' DDPM and DDIM.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Clipping {
    /// Replaces clipping if it is on.
    #[serde(flatten)]
    pub thresholding: Thresholding,
    /// Whether clipping is on.
    pub clip_sample: bool,
    /// The bound of clipping.
    pub clip_sample_range: f64,
}

impl Default for Clipping {
    fn default() -> Self {
        Self {
            thresholding: Thresholding::default(),
            clip_sample: true,
            clip_sample_range: 1.0,
        }
    }
}

impl Clipping {
    /// Thresholds or clips a sample `[batch, ..]` if either is on.
    pub fn apply(&self, sample: Tensor) -> Result<Tensor> {
        if self.thresholding.thresholding {
            self.thresholding.apply(sample)
        } else if self.clip_sample {
            Ok(sample.clamp_numbers(-self.clip_sample_range, self.clip_sample_range)?)
        } else {
            Ok(sample)
        }
    }
}

impl Thresholding {
    /// Clamps each batch entry of a sample `[batch, ..]` to its bound and divides by the bound (`_threshold_sample` of
    /// diffusers' `schedulers/scheduling_ddpm.py`), if thresholding is on.
    pub fn apply(&self, sample: Tensor) -> Result<Tensor> {
        if !self.thresholding {
            return Ok(sample);
        }
        let (kind, shape) = (sample.kind(), sample.size());
        let batch_size = shape.first().copied().unwrap_or(1);
        let flat = match kind {
            Kind::Float | Kind::Double => sample.f_reshape([batch_size, -1])?,
            _ => sample.f_to_kind(Kind::Float)?.f_reshape([batch_size, -1])?,
        };
        let bound = flat
            .f_abs()?
            .f_quantile_scalar(self.dynamic_thresholding_ratio, 1, false, "linear")?
            .clamp_numbers(1.0, self.sample_max_value)?
            .f_unsqueeze(1)?;
        let clamped = flat.f_clamp_tensor(Some(&bound.f_neg()?), Some(&bound))?;
        Ok(clamped.f_div(&bound)?.f_reshape(&shape[..])?.f_to_kind(kind)?)
    }
}
