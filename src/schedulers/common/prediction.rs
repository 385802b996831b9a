//! What an output of the network says about the clean sample and about the noise.

use tch::Tensor;

use super::config::PredictionType;
use diffusion_core::Result;

/// `a·x`.
///
/// # Errors
/// Out of memory.
pub fn times(x: &Tensor, a: f32) -> Result<Tensor> {
    Ok(x.f_mul_scalar(f64::from(a))?)
}

/// `x / a`.
///
/// # Errors
/// Out of memory.
pub fn over(x: &Tensor, a: f32) -> Result<Tensor> {
    Ok(x.f_div_scalar(f64::from(a))?)
}

/// The shares of a noisy sample: `signal·clean + noise·noise`.
#[derive(Clone, Copy, Debug)]
pub struct Shares {
    /// √ᾱ, or α.
    pub signal: f32,
    /// √(1−ᾱ), or σ.
    pub noise: f32,
}

impl Shares {
    /// The clean sample behind `sample`, by the network's `output` for it; all of one shape.
    ///
    /// # Errors
    /// Out of memory.
    pub fn clean(self, predicts: PredictionType, output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        match predicts {
            PredictionType::Epsilon => self.without_noise(output, sample),
            PredictionType::Sample => Ok(output.shallow_clone()),
            PredictionType::VPrediction => Ok(times(sample, self.signal)?.f_sub(&times(output, self.noise)?)?),
        }
    }

    /// The noise in `sample`, by the network's `output` for it; all of one shape.
    ///
    /// # Errors
    /// Out of memory.
    pub fn noise(self, predicts: PredictionType, output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        match predicts {
            PredictionType::Epsilon => Ok(output.shallow_clone()),
            PredictionType::Sample => self.without_signal(output, sample),
            PredictionType::VPrediction => Ok(times(output, self.signal)?.f_add(&times(sample, self.noise)?)?),
        }
    }

    /// The clean sample, if `noise` is the noise in `sample`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn without_noise(self, noise: &Tensor, sample: &Tensor) -> Result<Tensor> {
        over(&sample.f_sub(&times(noise, self.noise)?)?, self.signal)
    }

    /// The noise in `sample`, if `clean` is its clean sample.
    ///
    /// # Errors
    /// Out of memory.
    pub fn without_signal(self, clean: &Tensor, sample: &Tensor) -> Result<Tensor> {
        over(&sample.f_sub(&times(clean, self.signal)?)?, self.noise)
    }
}
