//! Where a run is among its timesteps.

use crate::schedulers::past_the_end;
use diffusion_core::Result;

/// The timesteps of one run, noisiest first, and the one that comes next.
#[derive(Debug)]
pub struct Steps {
    timesteps: Vec<i64>,
    /// The same numbers, as the network gets them.
    floats: Vec<f64>,
    begin: usize,
    index: usize,
}

impl Steps {
    /// At the first of `timesteps`.
    pub fn new(timesteps: Vec<i64>) -> Self {
        Self {
            floats: timesteps.iter().map(|&timestep| timestep as f64).collect(),
            timesteps,
            begin: 0,
            index: 0,
        }
    }

    /// Those that the run takes.
    pub fn taken(&self) -> &[f64] {
        self.floats.get(self.begin..).unwrap_or_default()
    }

    /// Leaves out the first `begin_index`.
    pub fn begin_at(&mut self, begin_index: usize) {
        self.begin = begin_index;
        self.index = begin_index;
    }

    /// The timestep that comes next.
    ///
    /// # Errors
    /// `Internal` at the end of the run.
    pub fn current(&self) -> Result<i64> {
        let timestep = self.timesteps.get(self.index).copied();
        timestep.ok_or_else(past_the_end)
    }

    /// The one after it, unless it is the last.
    pub fn following(&self) -> Option<i64> {
        self.timesteps.get(self.index + 1).copied()
    }

    /// Goes on to the next.
    pub fn advance(&mut self) {
        self.index += 1;
    }
}
