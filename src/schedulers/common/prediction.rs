//! The clean sample and the noise that follow from an output of the network.

use tch::Tensor;

use super::config::PredictionType;
use crate::torch::numbers::NumberOperators;
use diffusion_core::Result;

/// Multiplies by a float32 number.
pub fn mul_scalar(x: &Tensor, factor: f32) -> Result<Tensor> {
    x.mul_number(f64::from(factor))
}

/// Divides by a float32 number.
pub fn div_scalar(x: &Tensor, divisor: f32) -> Result<Tensor> {
    x.div_number(f64::from(divisor))
}

/// The weights of a noisy sample's parts: `alpha · clean sample + sigma · noise`.
///
/// The tensors that a method takes and returns are of one shape.
#[derive(Clone, Copy, Debug)]
pub struct AlphaSigma {
    /// Weight of the clean sample: √ᾱ.
    pub alpha: f32,
    /// Weight of the noise: √(1−ᾱ).
    pub sigma: f32,
}

impl AlphaSigma {
    /// Returns the clean sample that `model_output` predicts for `sample`.
    pub fn pred_original_sample(
        self,
        prediction_type: PredictionType,
        model_output: &Tensor,
        sample: &Tensor,
    ) -> Result<Tensor> {
        match prediction_type {
            PredictionType::Epsilon => self.remove_noise(model_output, sample),
            PredictionType::Sample => Ok(model_output.shallow_clone()),
            PredictionType::VPrediction => {
                Ok(mul_scalar(sample, self.alpha)?.f_sub(&mul_scalar(model_output, self.sigma)?)?)
            }
        }
    }

    /// Returns the noise that `model_output` predicts in `sample`.
    pub fn pred_epsilon(
        self,
        prediction_type: PredictionType,
        model_output: &Tensor,
        sample: &Tensor,
    ) -> Result<Tensor> {
        match prediction_type {
            PredictionType::Epsilon => Ok(model_output.shallow_clone()),
            PredictionType::Sample => self.remove_signal(model_output, sample),
            PredictionType::VPrediction => {
                Ok(mul_scalar(model_output, self.alpha)?.f_add(&mul_scalar(sample, self.sigma)?)?)
            }
        }
    }

    /// Returns the clean sample in `sample`, given its noise.
    pub fn remove_noise(self, noise: &Tensor, sample: &Tensor) -> Result<Tensor> {
        div_scalar(&sample.f_sub(&mul_scalar(noise, self.sigma)?)?, self.alpha)
    }

    /// Returns the noise in `sample`, given its clean sample.
    pub fn remove_signal(self, clean: &Tensor, sample: &Tensor) -> Result<Tensor> {
        div_scalar(&sample.f_sub(&mul_scalar(clean, self.alpha)?)?, self.sigma)
    }
}
