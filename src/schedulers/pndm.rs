//! Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds" (2022).
//!
//! Source: diffusers `schedulers/scheduling_pndm.py`.

use serde::Deserialize;
use tch::Tensor;

use super::common::config::{PredictionType, RawConfig, TimestepSpacing};
use super::common::noise_schedule::{BetasConfig, add_noise, to_vec};
use super::common::spacing::ascending;
use super::numerics::torch_scalar::root;
use super::{Family, Plan, Scheduler, at, check_steps, past_the_end, to_floats};
use crate::torch::Generator;
use diffusion_core::{Error, Result};

/// Steps of the Runge-Kutta start, where it is not skipped.
const ORDER: usize = 4;

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Keys {
    #[serde(flatten)]
    betas: BetasConfig,
    skip_prk_steps: bool,
    set_alpha_to_one: bool,
    steps_offset: i64,
    prediction_type: PredictionType,
    timestep_spacing: TimestepSpacing,
}

impl Default for Keys {
    /// diffusers' defaults.
    fn default() -> Self {
        Self {
            betas: BetasConfig::default(),
            skip_prk_steps: false,
            set_alpha_to_one: false,
            steps_offset: 0,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: TimestepSpacing::Leading,
        }
    }
}

/// `PNDMScheduler`.
#[derive(Clone, Debug)]
pub struct PndmConfig {
    keys: Keys,
    alphas_cumprod: Vec<f32>,
}

impl PndmConfig {
    /// Reads the keys of the class.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key; `Unsupported` for a network that predicts the sample.
    pub fn read(raw: &RawConfig) -> Result<Self> {
        let keys: Keys = raw.without(&["rescale_betas_zero_snr"]).read()?;
        if keys.prediction_type == PredictionType::Sample {
            return Err(Error::unsupported(
                "scheduler_config.json: prediction_type sample is not supported by PNDMScheduler",
            ));
        }
        Ok(Self {
            alphas_cumprod: to_vec(&keys.betas.alphas_cumprod()?)?,
            keys,
        })
    }
}

impl Family for PndmConfig {
    fn build(&self, plan: &Plan) -> Result<Box<dyn Scheduler>> {
        let train = self.keys.betas.num_train_timesteps;
        let steps = plan.num_inference_steps;
        check_steps(steps, train)?;
        let ratio = train / steps as i64;
        let ascending = ascending(self.keys.timestep_spacing, train, steps, self.keys.steps_offset);
        let (prk_timesteps, plms_timesteps) = if self.keys.skip_prk_steps {
            (Vec::new(), without_prk(&ascending))
        } else {
            with_prk(&ascending, ratio)?
        };
        let timesteps: Vec<i64> = prk_timesteps.iter().chain(&plms_timesteps).copied().collect();
        for &timestep in &timesteps {
            at(&self.alphas_cumprod, timestep)?;
        }
        Ok(Box::new(Pndm {
            config: self.clone(),
            step_ratio: ratio,
            prk_timesteps,
            floats: to_floats(&timesteps),
            timesteps,
            begin: 0,
            counter: 0,
            ets: Vec::new(),
            accumulated: None,
            cur_sample: None,
        }))
    }
}

/// The steps of the linear multistep method alone: the second is taken twice.
fn without_prk(ascending: &[i64]) -> Vec<i64> {
    let (last, rest) = match ascending.split_last() {
        Some((last, rest)) => (*last, rest),
        None => return Vec::new(),
    };
    let mut timesteps = rest.to_vec();
    timesteps.extend(rest.last());
    timesteps.push(last);
    timesteps.reverse();
    timesteps
}

/// The Runge-Kutta steps, with their half steps, and the multistep method's after them.
fn with_prk(ascending: &[i64], ratio: i64) -> Result<(Vec<i64>, Vec<i64>)> {
    if ascending.len() < ORDER {
        return Err(Error::invalid_argument(format!(
            "gen_args: num_inference_steps: must be at least {ORDER} with PNDMScheduler and its Runge-Kutta steps"
        )));
    }
    let halves: Vec<i64> = ascending[ascending.len() - ORDER..]
        .iter()
        .flat_map(|&t| [t, t + ratio / 2])
        .collect();
    let doubled: Vec<i64> = halves[..halves.len() - 1].iter().flat_map(|&t| [t, t]).collect();
    let mut prk = doubled[1..doubled.len() - 1].to_vec();
    prk.reverse();
    let mut plms = ascending[..ascending.len() - 3].to_vec();
    plms.reverse();
    Ok((prk, plms))
}

struct Pndm {
    config: PndmConfig,
    step_ratio: i64,
    prk_timesteps: Vec<i64>,
    timesteps: Vec<i64>,
    /// The same numbers.
    floats: Vec<f64>,
    /// Timesteps that are left out. The counter does not count them.
    begin: usize,
    /// Steps taken. What a step does depends on it, not on the timestep.
    counter: usize,
    /// The last outputs of the network, oldest first.
    ets: Vec<Tensor>,
    /// The weighted sum of one Runge-Kutta step's outputs so far.
    accumulated: Option<Tensor>,
    cur_sample: Option<Tensor>,
}

impl Scheduler for Pndm {
    fn timesteps(&self) -> &[f64] {
        self.floats.get(self.begin..).unwrap_or_default()
    }

    fn set_begin_index(&mut self, begin_index: usize) {
        self.begin = begin_index;
    }

    fn add_noise(&self, original: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let alpha = at(&self.config.alphas_cumprod, self.timestep()?)?;
        add_noise(original, noise, alpha)
    }

    fn step(&mut self, model_output: &Tensor, sample: &Tensor, _: &mut Generator) -> Result<Tensor> {
        let timestep = self.timestep()?;
        let next = if self.counter < self.prk_timesteps.len() {
            self.step_prk(model_output, timestep, sample)
        } else {
            self.step_plms(model_output, timestep, sample)
        };
        self.counter += 1;
        next
    }
}

impl Pndm {
    /// The timestep of the next step.
    fn timestep(&self) -> Result<i64> {
        let index = self.begin + self.counter;
        self.timesteps.get(index).copied().ok_or_else(past_the_end)
    }

    fn step_prk(&mut self, model_output: &Tensor, timestep: i64, sample: &Tensor) -> Result<Tensor> {
        let back = if self.counter % 2 == 1 { 0 } else { self.step_ratio / 2 };
        let previous_timestep = timestep - back;
        let start = *self.prk_timesteps.get(self.counter / 4 * 4).ok_or_else(past_the_end)?;
        let mut output = model_output.shallow_clone();
        match self.counter % 4 {
            0 => {
                self.accumulate(model_output, 1.0 / 6.0)?;
                self.ets.push(model_output.shallow_clone());
                self.cur_sample = Some(sample.shallow_clone());
            }
            1 | 2 => self.accumulate(model_output, 1.0 / 3.0)?,
            _ => {
                self.accumulate(model_output, 1.0 / 6.0)?;
                if let Some(sum) = self.accumulated.take() {
                    output = sum;
                }
            }
        }
        let sample = self.cur_sample.as_ref().unwrap_or(sample);
        self.previous_sample(sample, start, previous_timestep, &output)
    }

    fn accumulate(&mut self, output: &Tensor, weight: f64) -> Result<()> {
        let weighted = output.f_mul_scalar(weight)?;
        self.accumulated = Some(match &self.accumulated {
            Some(sum) => sum.f_add(&weighted)?,
            // diffusers starts from the number 0, which leaves the first term as it is.
            None => weighted,
        });
        Ok(())
    }

    fn step_plms(&mut self, model_output: &Tensor, timestep: i64, sample: &Tensor) -> Result<Tensor> {
        let mut from = timestep;
        let mut to = timestep - self.step_ratio;
        if self.counter == 1 {
            // The first step again, with the mean of its two ends' outputs.
            to = timestep;
            from = timestep + self.step_ratio;
        } else {
            let oldest = self.ets.len().saturating_sub(3);
            self.ets.drain(..oldest);
            self.ets.push(model_output.shallow_clone());
        }
        let mut sample = sample.shallow_clone();
        let times = |tensor: &Tensor, factor: f64| tensor.f_mul_scalar(factor);
        let output = match self.ets.as_slice() {
            [_] if self.counter == 0 => {
                self.cur_sample = Some(sample.shallow_clone());
                model_output.shallow_clone()
            }
            [e1] => {
                if let Some(first) = self.cur_sample.take() {
                    sample = first;
                }
                model_output.f_add(e1)?.f_div_scalar(2.0)?
            }
            [e2, e1] => times(e1, 3.0)?.f_sub(e2)?.f_div_scalar(2.0)?,
            [e3, e2, e1] => times(e1, 23.0)?
                .f_sub(&times(e2, 16.0)?)?
                .f_add(&times(e3, 5.0)?)?
                .f_div_scalar(12.0)?,
            [.., e4, e3, e2, e1] => times(
                &times(e1, 55.0)?
                    .f_sub(&times(e2, 59.0)?)?
                    .f_add(&times(e3, 37.0)?)?
                    .f_sub(&times(e4, 9.0)?)?,
                1.0 / 24.0,
            )?,
            [] => return Err(past_the_end()),
        };
        self.previous_sample(&sample, from, to, &output)
    }

    /// Formula (9) of the paper.
    fn previous_sample(&self, sample: &Tensor, from: i64, to: i64, output: &Tensor) -> Result<Tensor> {
        let keys = &self.config.keys;
        let alpha = at(&self.config.alphas_cumprod, from)?;
        let alpha_previous = if to >= 0 {
            at(&self.config.alphas_cumprod, to)?
        } else if keys.set_alpha_to_one {
            1.0
        } else {
            at(&self.config.alphas_cumprod, 0)?
        };
        let (beta, beta_previous) = (1.0 - alpha, 1.0 - alpha_previous);
        let times = |tensor: &Tensor, factor: f32| tensor.f_mul_scalar(f64::from(factor));
        let output = match keys.prediction_type {
            PredictionType::VPrediction => times(output, root(alpha)?)?.f_add(&times(sample, root(beta)?)?)?,
            PredictionType::Epsilon | PredictionType::Sample => output.shallow_clone(),
        };
        let sample_coefficient = root(alpha_previous / alpha)?;
        let denominator = alpha * root(beta_previous)? + root(alpha * beta * alpha_previous)?;
        let direction = times(&output, alpha_previous - alpha)?.f_div_scalar(f64::from(denominator))?;
        Ok(times(sample, sample_coefficient)?.f_sub(&direction)?)
    }
}
