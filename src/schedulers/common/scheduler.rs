//! What a caller sees of a scheduler, and what a class implements of it.

use tch::Tensor;

use super::config::RawConfig;
use super::step_cursor::StepCursor;
use crate::torch::Generator;
use diffusion_core::{Error, Result};

/// The state of one run of a sampler.
///
/// For each timestep: scale the sample for the network, call the network, [`step`](Scheduler::step).
pub trait Scheduler: Send {
    /// Returns the timesteps of the run from the begin index on, one for each UNet call. Whole numbers for most classes.
    fn timesteps(&self) -> &[f64];

    /// Returns the standard deviation of the starting noise.
    fn init_noise_sigma(&self) -> f64;

    /// Returns the UNet calls per inference step: 2 for the classes of second order that call twice, otherwise 1.
    fn order(&self) -> usize;

    /// Leaves out the first `begin_index` timesteps. A run that starts from an image calls this once, before anything
    /// else, with 0 if it takes every timestep; a run that starts from noise does not call it.
    fn set_begin_index(&mut self, begin_index: usize);

    /// Scales `sample` to the network's input at the current timestep, of the same shape.
    ///
    /// # Errors
    /// `Internal` at the end of the run; `InvalidArgument` for a run that cannot begin.
    fn scale_model_input(&self, sample: &Tensor) -> Result<Tensor>;

    /// Advances by one timestep: returns the next sample, given the network's output for the current, unscaled
    /// `sample`. All are of one shape. Draws the sampler's noise, if any, from `rng`.
    ///
    /// # Errors
    /// As [`scale_model_input`](Scheduler::scale_model_input).
    fn step(&mut self, model_output: &Tensor, sample: &Tensor, rng: &mut Generator) -> Result<Tensor>;

    /// Adds `noise` of the current timestep's level to the clean sample `original`. All are of one shape.
    ///
    /// # Errors
    /// As [`scale_model_input`](Scheduler::scale_model_input).
    fn add_noise(&self, original: &Tensor, noise: &Tensor) -> Result<Tensor>;
}

/// The arguments of a run.
#[derive(Clone, Debug)]
pub struct SamplingOptions {
    /// Number of steps, unless `timesteps` or `sigmas` are given.
    pub num_inference_steps: usize,
    /// Custom timesteps, descending.
    pub timesteps: Option<Vec<i64>>,
    /// Custom sigmas, descending.
    pub sigmas: Option<Vec<f64>>,
    /// η of DDIM, from 0 (deterministic) to 1 (the noise of DDPM); γ of TCD, from 0 (deterministic) to 1 (full noise).
    pub eta: f64,
}

/// The configuration of one class.
pub trait SchedulerBuilder: std::fmt::Debug + Send + Sync {
    /// Reads the keys of the class.
    ///
    /// # Errors
    /// `InvalidArgument` for a bad value, `Unsupported` for a feature of diffusers that is not supported. Both name the
    /// key.
    fn read(raw: &RawConfig) -> Result<Self>
    where
        Self: Sized;

    /// Prepares a run.
    ///
    /// # Errors
    /// `InvalidArgument` for options that the configuration does not allow, naming the argument.
    fn build(&self, options: &SamplingOptions) -> Result<Box<dyn Scheduler>>;
}

/// How a family of classes measures noise.
pub trait NoiseModel: Send {
    /// Whether diffusers finds the first step by its timestep (`index_for_timestep`), which fails if that occurs twice.
    const SEARCHES_FIRST_STEP: bool;

    /// Returns the standard deviation of the starting noise.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// Scales a sample for the network.
    ///
    /// # Errors
    /// `Internal` at the end of the run.
    fn scale_model_input(&self, _cursor: &StepCursor, sample: &Tensor) -> Result<Tensor> {
        Ok(sample.shallow_clone())
    }

    /// Adds noise of the level at the cursor.
    ///
    /// # Errors
    /// `Internal` at the end of the run.
    fn add_noise(&self, cursor: &StepCursor, original: &Tensor, noise: &Tensor) -> Result<Tensor>;
}

/// The current position of a run, and the noise levels there.
#[derive(Debug)]
pub struct Step<'a, N> {
    /// The position.
    pub cursor: &'a StepCursor,
    /// The noise of every position.
    pub noise: &'a N,
}

/// The arithmetic of one class.
pub trait UpdateRule: Send {
    /// How the class measures noise.
    type Noise: NoiseModel;

    /// UNet calls per inference step.
    const ORDER: usize = 1;

    /// Returns the next sample. Arguments are those of [`Scheduler::step`].
    ///
    /// # Errors
    /// `Internal` for more steps than the run has.
    fn step(
        &mut self,
        at: &Step<'_, Self::Noise>,
        model_output: &Tensor,
        sample: &Tensor,
        rng: &mut Generator,
    ) -> Result<Tensor>;

    /// Scales a sample for the network.
    ///
    /// # Errors
    /// `Internal` for more steps than the run has.
    fn scale_model_input(&self, at: &Step<'_, Self::Noise>, sample: &Tensor) -> Result<Tensor> {
        at.noise.scale_model_input(at.cursor, sample)
    }
}

/// One run of the class with rule `R`.
pub struct Run<R: UpdateRule> {
    cursor: StepCursor,
    noise: R::Noise,
    rule: R,
}

impl<R: UpdateRule + 'static> Run<R> {
    /// Starts a run at the first timestep of `cursor`.
    pub fn boxed(cursor: StepCursor, noise: R::Noise, rule: R) -> Box<dyn Scheduler> {
        Box::new(Self { cursor, noise, rule })
    }

    /// Checks that a step can be taken.
    fn check(&self) -> Result<()> {
        self.cursor.timestep()?;
        if R::Noise::SEARCHES_FIRST_STEP && !self.cursor.can_begin() {
            return Err(Error::invalid_argument(
                "gen_args: num_inference_steps, timesteps or sigmas: the first timestep occurs twice; this scheduler can then start only from an image",
            ));
        }
        Ok(())
    }
}

impl<R: UpdateRule + 'static> Scheduler for Run<R> {
    fn timesteps(&self) -> &[f64] {
        self.cursor.timesteps()
    }

    fn init_noise_sigma(&self) -> f64 {
        self.noise.init_noise_sigma()
    }

    fn order(&self) -> usize {
        R::ORDER
    }

    fn set_begin_index(&mut self, begin_index: usize) {
        self.cursor.set_begin_index(begin_index);
    }

    fn scale_model_input(&self, sample: &Tensor) -> Result<Tensor> {
        self.check()?;
        let (cursor, noise) = (&self.cursor, &self.noise);
        self.rule.scale_model_input(&Step { cursor, noise }, sample)
    }

    fn step(&mut self, model_output: &Tensor, sample: &Tensor, rng: &mut Generator) -> Result<Tensor> {
        self.check()?;
        let (cursor, noise) = (&self.cursor, &self.noise);
        let prev_sample = self.rule.step(&Step { cursor, noise }, model_output, sample, rng)?;
        self.cursor.advance();
        Ok(prev_sample)
    }

    fn add_noise(&self, original: &Tensor, noise: &Tensor) -> Result<Tensor> {
        self.check()?;
        self.noise.add_noise(&self.cursor, original, noise)
    }
}
