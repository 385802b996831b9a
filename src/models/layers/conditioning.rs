//! What a UNet computes of its text and its timestep before the first block.

use tch::Tensor;

use super::attention::KeyValue;
use diffusion_core::{Error, Result};

/// The inputs of the layers of one call, which take them in their order.
pub struct Conditioning<'a> {
    shifts: std::slice::Iter<'a, Tensor>,
    text: std::slice::Iter<'a, KeyValue>,
}

impl<'a> Conditioning<'a> {
    /// Starts at the first layer. `shifts` has the projected time embedding of each resnet, `[batch, channels]`; `text` has
    /// the projected text of each attention to it.
    pub fn new(shifts: &'a [Tensor], text: &'a [KeyValue]) -> Self {
        Self {
            shifts: shifts.iter(),
            text: text.iter(),
        }
    }

    /// Takes the projected time embedding of the next resnet.
    ///
    /// # Errors
    /// `Internal` if there are fewer than resnets.
    pub fn next_shift(&mut self) -> Result<&'a Tensor> {
        self.shifts
            .next()
            .ok_or_else(|| Error::internal("fewer time embeddings than resnets"))
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
