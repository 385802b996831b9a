//! What a run of a solver in half log-SNR carries along: its noise levels, where it is among them, and
//! the last outputs of the network.
//!
//! These are the samplers of Lu et al. ("DPM-Solver", 2022) and those that follow them, in whose terms a
//! sample is α times the clean sample plus σ times noise, α² + σ² = 1 and λ = log(α/σ).

use tch::Tensor;

use super::prediction::Shares;
use crate::schedulers::numerics::torch_scalar::{log, pow, root};
use crate::schedulers::past_the_end;
use diffusion_core::{Error, Result};

/// One noise level, in the terms of the papers.
#[derive(Clone, Copy, Debug)]
pub struct Level {
    /// Share of the clean sample.
    pub alpha: f32,
    /// Share of the noise.
    pub sigma: f32,
    /// log(alpha / sigma): infinite where no noise is left.
    pub lambda: f32,
}

impl Level {
    /// That of noise over signal.
    fn new(sigma: f32) -> Result<Self> {
        let alpha = 1.0 / root(pow(sigma, 2.0)? + 1.0)?;
        let sigma = sigma * alpha;
        Ok(Self {
            alpha,
            sigma,
            lambda: log(alpha)? - log(sigma)?,
        })
    }

    /// The shares of a sample.
    pub fn shares(self) -> Shares {
        Shares {
            signal: self.alpha,
            noise: self.sigma,
        }
    }
}

/// The timesteps and sigmas of one run, and the step that comes next.
#[derive(Debug)]
pub struct Run {
    timesteps: Vec<i64>,
    /// The same numbers, as the network gets them.
    floats: Vec<f64>,
    /// Noise over signal; one more than timesteps.
    sigmas: Vec<f32>,
    begin: Option<usize>,
    /// The step that comes next.
    index: usize,
}

impl Run {
    /// At its beginning. `sigmas` has one more than `timesteps`.
    pub fn new(timesteps: Vec<i64>, sigmas: Vec<f32>) -> Self {
        Self {
            floats: timesteps.iter().map(|&timestep| timestep as f64).collect(),
            timesteps,
            sigmas,
            begin: None,
            index: 0,
        }
    }

    /// The timesteps that the run takes.
    pub fn taken(&self) -> &[f64] {
        self.floats.get(self.begin.unwrap_or(0)..).unwrap_or_default()
    }

    /// Leaves out the first `begin_index`.
    pub fn begin_at(&mut self, begin_index: usize) {
        self.begin = Some(begin_index);
        self.index = begin_index;
    }

    /// All steps, those that are left out among them.
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// The step that comes next, counted from the first of all.
    pub fn index(&self) -> usize {
        self.index
    }

    /// How many steps are left, the one that comes next among them.
    pub fn left(&self) -> usize {
        self.steps().saturating_sub(self.index)
    }

    /// Whether the last step leads to the sigma that it starts from.
    pub fn ends_where_it_is(&self) -> bool {
        matches!(self.sigmas[..], [.., from, to] if from == to)
    }

    /// Refuses a step that cannot be taken.
    ///
    /// # Errors
    /// `Internal` at the end of the run. `InvalidArgument` for a run from its beginning whose first two
    /// timesteps are equal: diffusers takes the sigma of the second first, and has none left for the last.
    pub fn check(&self) -> Result<()> {
        if self.index >= self.steps() {
            return Err(past_the_end());
        }
        let first = self.timesteps.first();
        if self.begin.is_none() && self.steps() > 1 && first == self.timesteps.get(1) {
            return Err(Error::invalid_argument(
                "gen_args: num_inference_steps: too many for this scheduler: the first two timesteps are equal",
            ));
        }
        Ok(())
    }

    /// Goes on to the next step.
    pub fn advance(&mut self) {
        self.index += 1;
    }

    /// The level that the next step leads to (`back` 0), that it starts from (1), or an earlier one.
    ///
    /// # Errors
    /// `Internal` for a level before the first or after the last.
    pub fn level(&self, back: usize) -> Result<Level> {
        let index = (self.index + 1).checked_sub(back).ok_or_else(past_the_end)?;
        Level::new(*self.sigmas.get(index).ok_or_else(past_the_end)?)
    }

    /// A clean sample as noisy as the next step finds it; all of one shape.
    ///
    /// # Errors
    /// Out of memory, or a run that is at its end.
    pub fn add_noise(&self, original: &Tensor, noise: &Tensor) -> Result<Tensor> {
        // diffusers first rounds the sigmas to the sample's dtype, and so are the shares here.
        let sigma = *self.sigmas.get(self.index).ok_or_else(past_the_end)?;
        let sigma = Tensor::f_from_slice(&[sigma])?
            .f_to_device(original.device())?
            .f_to_kind(original.kind())?
            .f_view([1, 1, 1, 1])?;
        let root = sigma
            .f_pow_tensor_scalar(2)?
            .f_add_scalar(1)?
            .f_pow_tensor_scalar(0.5)?;
        let alpha = root.f_reciprocal()?;
        let sigma = sigma.f_mul(&alpha)?;
        Ok(alpha.f_mul(original)?.f_add(&sigma.f_mul(noise)?)?)
    }
}

/// The last outputs of the network, as a solver integrates them.
#[derive(Debug)]
pub struct History {
    /// Oldest first.
    outputs: Vec<Tensor>,
    most: usize,
}

impl History {
    /// Of at most so many, which is at least 1.
    pub fn new(most: usize) -> Self {
        Self {
            outputs: Vec::new(),
            most,
        }
    }

    /// Adds one, and forgets the oldest where they are too many.
    pub fn push(&mut self, output: Tensor) {
        if self.outputs.len() >= self.most {
            drop(self.outputs.remove(0));
        }
        self.outputs.push(output);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.outputs.len()
    }

    /// The one `back` calls before the last.
    ///
    /// # Errors
    /// `Internal` if there were not so many calls.
    pub fn back(&self, back: usize) -> Result<&Tensor> {
        let index = self.outputs.len().checked_sub(back + 1);
        let output = index.and_then(|index| self.outputs.get(index));
        output.ok_or_else(past_the_end)
    }
}
