//! Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds" (2022).
//!
//! Source: diffusers `schedulers/scheduling_pndm.py`.

use serde::Deserialize;
use tch::Tensor;

use super::common::alpha_schedule::{AlphaSchedule, AlphaStep};
use super::common::betas::BetasConfig;
use super::common::config::{PredictionType, RawConfig, TimestepSpacing};
use super::common::model_outputs::ModelOutputs;
use super::common::prediction::mul_scalar;
use super::common::scheduler::{Run, SamplingOptions, Scheduler, SchedulerBuilder, UpdateRule};
use super::common::spacing::{ascending, check_num_inference_steps};
use super::common::step_cursor::end_of_schedule_error;
use super::numerics::torch_scalar::pow_half;
use crate::torch::Generator;
use crate::torch::numbers::NumberOperators;
use diffusion_core::{Error, Result};

/// `pndm_order`: the number of outputs that a step uses, and of timesteps that the Runge-Kutta start goes back to.
const PNDM_ORDER: usize = 4;

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

/// The configuration of `PNDMScheduler`.
#[derive(Clone, Debug)]
pub struct PndmConfig {
    keys: Keys,
    alphas: AlphaSchedule,
}

impl SchedulerBuilder for PndmConfig {
    fn read(raw: &RawConfig) -> Result<Self> {
        let keys: Keys = raw.without(&["rescale_betas_zero_snr"]).read()?;
        if keys.prediction_type == PredictionType::Sample {
            return Err(Error::unsupported(
                "scheduler_config.json: prediction_type sample is not supported by PNDMScheduler",
            ));
        }
        Ok(Self {
            alphas: AlphaSchedule::new(&keys.betas)?,
            keys,
        })
    }

    fn build(&self, options: &SamplingOptions) -> Result<Box<dyn Scheduler>> {
        let train = self.keys.betas.num_train_timesteps;
        let steps = options.num_inference_steps;
        check_num_inference_steps(steps, train)?;
        let step_ratio = train / steps as i64;
        let ascending = ascending(self.keys.timestep_spacing, train, steps, self.keys.steps_offset);
        let (prk_timesteps, plms_timesteps) = if self.keys.skip_prk_steps {
            (Vec::new(), without_prk(&ascending))
        } else {
            with_prk(&ascending, step_ratio)?
        };
        let timesteps = [prk_timesteps.as_slice(), &plms_timesteps].concat();
        let rule = Pndm {
            keys: self.keys.clone(),
            step_ratio,
            prk_timesteps,
            ets: ModelOutputs::new(PNDM_ORDER),
            cur_model_output: None,
            cur_sample: None,
        };
        Ok(Run::boxed(self.alphas.cursor(&timesteps)?, self.alphas.clone(), rule))
    }
}

/// Returns the timesteps of the linear multistep method alone. The second occurs twice.
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

/// Returns the timesteps of the Runge-Kutta start, half steps included, and those of the multistep method after it.
fn with_prk(ascending: &[i64], ratio: i64) -> Result<(Vec<i64>, Vec<i64>)> {
    if ascending.len() < PNDM_ORDER {
        return Err(Error::invalid_argument(format!(
            "gen_args: num_inference_steps: must be at least {PNDM_ORDER} with PNDMScheduler and its Runge-Kutta steps"
        )));
    }
    let halves: Vec<i64> = ascending[ascending.len() - PNDM_ORDER..]
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
    keys: Keys,
    step_ratio: i64,
    prk_timesteps: Vec<i64>,
    /// The latest outputs of the network.
    ets: ModelOutputs,
    /// The weighted sum of the outputs in the current Runge-Kutta step.
    cur_model_output: Option<Tensor>,
    /// The sample that the current Runge-Kutta step, or the first multistep step, started from.
    cur_sample: Option<Tensor>,
}

impl UpdateRule for Pndm {
    type Noise = AlphaSchedule;

    fn step(&mut self, at: &AlphaStep, model_output: &Tensor, sample: &Tensor, _: &mut Generator) -> Result<Tensor> {
        // The rule depends on the number of steps so far, not on the timestep.
        if at.cursor.steps_taken() < self.prk_timesteps.len() {
            self.step_prk(at, model_output, sample)
        } else {
            self.step_plms(at, model_output, sample)
        }
    }
}

impl Pndm {
    fn step_prk(&mut self, at: &AlphaStep, model_output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        let counter = at.cursor.steps_taken();
        let diff_to_prev = if counter % 2 == 1 { 0 } else { self.step_ratio / 2 };
        let prev_timestep = at.timestep()? - diff_to_prev;
        let timestep = *self
            .prk_timesteps
            .get(counter / 4 * 4)
            .ok_or_else(end_of_schedule_error)?;
        let mut model_output = model_output.shallow_clone();
        match counter % 4 {
            0 => {
                self.accumulate(&model_output, 1.0 / 6.0)?;
                self.ets.push(model_output.shallow_clone());
                self.cur_sample = Some(sample.shallow_clone());
            }
            1 | 2 => self.accumulate(&model_output, 1.0 / 3.0)?,
            _ => {
                self.accumulate(&model_output, 1.0 / 6.0)?;
                if let Some(sum) = self.cur_model_output.take() {
                    model_output = sum;
                }
            }
        }
        let cur_sample = self.cur_sample.as_ref().unwrap_or(sample);
        self.prev_sample(at.noise, cur_sample, timestep, prev_timestep, &model_output)
    }

    fn accumulate(&mut self, model_output: &Tensor, weight: f64) -> Result<()> {
        let weighted = model_output.mul_number(weight)?;
        self.cur_model_output = Some(match &self.cur_model_output {
            Some(sum) => sum.f_add(&weighted)?,
            // diffusers adds the first term to the number 0, which does not change it.
            None => weighted,
        });
        Ok(())
    }

    fn step_plms(&mut self, at: &AlphaStep, model_output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        let counter = at.cursor.steps_taken();
        let mut timestep = at.timestep()?;
        let mut prev_timestep = timestep - self.step_ratio;
        if counter == 1 {
            // The first step again, with the mean of the outputs at both its ends.
            prev_timestep = timestep;
            timestep += self.step_ratio;
        } else {
            self.ets.push(model_output.shallow_clone());
        }
        let mut sample = sample.shallow_clone();
        let model_output = match self.ets.as_slice() {
            [_] if counter == 0 => {
                self.cur_sample = Some(sample.shallow_clone());
                model_output.shallow_clone()
            }
            [e1] => {
                if let Some(cur_sample) = self.cur_sample.take() {
                    sample = cur_sample;
                }
                model_output.f_add(e1)?.div_number(2.0)?
            }
            [e1, e2] => e1.mul_number(3.0)?.f_sub(e2)?.div_number(2.0)?,
            [e1, e2, e3] => e1
                .mul_number(23.0)?
                .f_sub(&e2.mul_number(16.0)?)?
                .f_add(&e3.mul_number(5.0)?)?
                .div_number(12.0)?,
            [e1, e2, e3, e4, ..] => e1
                .mul_number(55.0)?
                .f_sub(&e2.mul_number(59.0)?)?
                .f_add(&e3.mul_number(37.0)?)?
                .f_sub(&e4.mul_number(9.0)?)?
                .mul_number(1.0 / 24.0)?,
            [] => return Err(end_of_schedule_error()),
        };
        self.prev_sample(at.noise, &sample, timestep, prev_timestep, &model_output)
    }

    /// Computes formula (9) of the paper (`_get_prev_sample`).
    fn prev_sample(
        &self,
        noise: &AlphaSchedule,
        sample: &Tensor,
        timestep: i64,
        prev_timestep: i64,
        model_output: &Tensor,
    ) -> Result<Tensor> {
        let alpha_prod_t = noise.alpha_cumprod(timestep)?;
        let alpha_prod_t_prev = noise.alpha_prod_t_prev(prev_timestep, self.keys.set_alpha_to_one)?;
        let beta_prod_t = 1.0 - alpha_prod_t;
        let beta_prod_t_prev = 1.0 - alpha_prod_t_prev;
        let model_output = match self.keys.prediction_type {
            PredictionType::VPrediction => mul_scalar(model_output, pow_half(alpha_prod_t)?)?
                .f_add(&mul_scalar(sample, pow_half(beta_prod_t)?)?)?,
            PredictionType::Epsilon | PredictionType::Sample => model_output.shallow_clone(),
        };
        let sample_coeff = pow_half(alpha_prod_t_prev / alpha_prod_t)?;
        let model_output_denom_coeff =
            alpha_prod_t * pow_half(beta_prod_t_prev)? + pow_half(alpha_prod_t * beta_prod_t * alpha_prod_t_prev)?;
        let direction = mul_scalar(&model_output, alpha_prod_t_prev - alpha_prod_t)?
            .div_number(f64::from(model_output_denom_coeff))?;
        Ok(mul_scalar(sample, sample_coeff)?.f_sub(&direction)?)
    }
}
