//! The memory of the multistep classes.

use tch::Tensor;

use super::step_cursor::end_of_schedule_error;
use diffusion_core::Result;

/// The latest outputs of the network, newest first, in the form that the class integrates.
#[derive(Debug)]
pub struct ModelOutputs {
    outputs: Vec<Tensor>,
    max_len: usize,
}

impl ModelOutputs {
    /// Makes an empty list that keeps at most `max_len` outputs.
    pub fn new(max_len: usize) -> Self {
        let outputs = Vec::new();
        Self { outputs, max_len }
    }

    /// Adds the newest output. Drops the oldest of a full list.
    pub fn push(&mut self, output: Tensor) {
        self.outputs.insert(0, output);
        self.outputs.truncate(self.max_len);
    }

    /// Returns the outputs, newest first.
    pub fn as_slice(&self) -> &[Tensor] {
        &self.outputs
    }

    /// Returns the number of outputs.
    pub fn len(&self) -> usize {
        self.outputs.len()
    }

    /// Returns the output of `back` calls before the newest.
    ///
    /// # Errors
    /// `Internal` if there were fewer calls.
    pub fn get(&self, back: usize) -> Result<&Tensor> {
        self.outputs.get(back).ok_or_else(end_of_schedule_error)
    }
}
