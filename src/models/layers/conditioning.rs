//! What a UNet computes of its text and its timestep before the first block.

use tch::Tensor;

use super::attention::KeyValue;
use diffusion_core::{Error, Result};

/// The projected time embeddings of all resnets, in their order.
#[derive(Debug)]
pub enum TimeShifts {
    /// `[batch, channels]` each, to be added to the result of the resnet's first convolution.
    Added(Vec<Tensor>),
    /// In place of the bias of that convolution, which they include: `[batch, channels]` each, or `[1, channels]` if all
    /// entries have one timestep. Rounds differently, and needs fewer operators.
    Biases(Vec<Tensor>),
}

impl TimeShifts {
    /// Leaves the last resnet's alone.
    #[must_use]
    pub fn into_last(self) -> Self {
        let last = |mut shifts: Vec<Tensor>| shifts.pop().into_iter().collect();
        match self {
            Self::Added(shifts) => Self::Added(last(shifts)),
            Self::Biases(biases) => Self::Biases(last(biases)),
        }
    }
}

/// The projected time embedding of one resnet; see [`TimeShifts`].
#[derive(Clone, Copy, Debug)]
pub enum TimeShift<'a> {
    /// To be added.
    Added(&'a Tensor),
    /// In place of the bias.
    Bias(&'a Tensor),
}

/// The inputs of the layers of one call, which take them in their order.
pub struct Conditioning<'a> {
    is_bias: bool,
    shifts: std::slice::Iter<'a, Tensor>,
    text: std::slice::Iter<'a, KeyValue>,
}

impl<'a> Conditioning<'a> {
    /// Starts at the first layer. `shifts` has the projected time embedding of each resnet; `text` has the projected text of
    /// each attention to it.
    pub fn new(shifts: &'a TimeShifts, text: &'a [KeyValue]) -> Self {
        let (is_bias, shifts) = match shifts {
            TimeShifts::Added(shifts) => (false, shifts),
            TimeShifts::Biases(shifts) => (true, shifts),
        };
        Self {
            is_bias,
            shifts: shifts.iter(),
            text: text.iter(),
        }
    }

    /// Takes the projected time embedding of the next resnet.
    ///
    /// # Errors
    /// `Internal` if there are fewer than resnets.
    pub fn next_shift(&mut self) -> Result<TimeShift<'a>> {
        let shift = self.shifts.next();
        let shift = shift.ok_or_else(|| Error::internal("fewer time embeddings than resnets"))?;
        Ok(if self.is_bias {
            TimeShift::Bias(shift)
        } else {
            TimeShift::Added(shift)
        })
    }

    /// Takes the projected text of the next attention to it.
    ///
    /// # Errors
    /// `Internal` if there are fewer than attentions.
    pub fn next_text(&mut self) -> Result<&'a KeyValue> {
        self.text
            .next()
            .ok_or_else(|| Error::internal("fewer text projections than attentions to the text"))
    }
}
