//! The position of a run among its timesteps.

use diffusion_core::{Error, Result};

/// The timesteps of one run, noisiest first, and the index of the current one.
#[derive(Debug)]
pub struct StepCursor {
    /// One for each UNet call.
    timesteps: Vec<f64>,
    begin: Option<usize>,
    index: usize,
}

impl StepCursor {
    /// Starts at the first of `timesteps`.
    pub fn new(timesteps: Vec<f64>) -> Self {
        Self {
            timesteps,
            begin: None,
            index: 0,
        }
    }

    /// Returns the timesteps from the begin index on.
    pub fn timesteps(&self) -> &[f64] {
        self.timesteps.get(self.begin.unwrap_or(0)..).unwrap_or_default()
    }

    /// Leaves out the first `begin_index` timesteps.
    pub fn set_begin_index(&mut self, begin_index: usize) {
        self.begin = Some(begin_index);
        self.index = begin_index;
    }

    /// Returns the number of timesteps, with those before the begin index.
    pub fn len(&self) -> usize {
        self.timesteps.len()
    }

    /// Returns the index of the current timestep among all timesteps.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Returns the number of steps since the begin index.
    pub fn steps_taken(&self) -> usize {
        self.index - self.begin.unwrap_or(0)
    }

    /// Returns the number of steps to the end of the run, the current one included.
    pub fn remaining(&self) -> usize {
        self.len().saturating_sub(self.index)
    }

    /// Returns the current timestep.
    ///
    /// # Errors
    /// `Internal` at the end of the run.
    pub fn timestep(&self) -> Result<f64> {
        let timestep = self.timesteps.get(self.index).copied();
        timestep.ok_or_else(end_of_schedule_error)
    }

    /// Returns the timestep after the current one, unless that is the last.
    pub fn next_timestep(&self) -> Option<f64> {
        self.timesteps.get(self.index + 1).copied()
    }

    /// Moves to the next timestep.
    pub fn advance(&mut self) {
        self.index += 1;
    }

    /// Returns whether a run without a begin index can start. If the first timestep occurs twice, diffusers'
    /// `index_for_timestep` starts at the second occurrence, and the run fails at its end for want of a sigma.
    pub fn can_begin(&self) -> bool {
        let first = self.timesteps.first();
        self.begin.is_some() || !self.timesteps.iter().skip(1).any(|timestep| Some(timestep) == first)
    }
}

/// Returns the error for a step past the last timestep, which is a bug of the caller.
pub fn end_of_schedule_error() -> Error {
    Error::internal("scheduler stepped past its last timestep")
}
