//! Low-rank adapters of layers (LoRA), which stay apart from the weights.
//!
//! Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021); peft `tuners/lora/layer.py` (`Linear`,
//! `Conv2d`) for the order of the products.

use std::collections::HashMap;
use std::sync::Arc;

use tch::{Device, Tensor};

use super::operands::{aligned, fold_strided};
use crate::torch::kernels::{self, Activation, After};
use crate::torch::numbers::NumberOperators;
use crate::weights::{Frozen, SharedModel};
use diffusion_core::Result;

/// The two matrices, or kernels, of an adapter's layer.
#[derive(Debug)]
pub struct LowRank {
    /// `[rank, inputs]`, or `[rank, inputs, kernel, kernel]` for a convolution.
    pub down: Tensor,
    /// `[outputs, rank]`, or `[outputs, rank, 1, 1]` for a convolution.
    pub up: Tensor,
}

// SAFETY: it holds two tensors. They are read by functional operations and by kernels that write to new tensors alone.
#[expect(unsafe_code, reason = "the promise is about this type and changes with it")]
unsafe impl Frozen for LowRank {}

/// What an adapter adds to the result of a layer: `scale · up(down(input))`.
#[derive(Clone, Debug)]
pub struct Delta {
    matrices: SharedModel<LowRank>,
    scale: f64,
}

impl Delta {
    /// Makes the delta of an adapter with a scale.
    pub fn new(matrices: SharedModel<LowRank>, scale: f64) -> Self {
        Self { matrices, scale }
    }

    /// Computes the delta of a linear layer with libtorch.
    ///
    /// # Shapes
    /// - `input`: `[.., inputs]`
    /// - returns `[.., outputs]`
    pub(super) fn linear(&self, input: &Tensor) -> Result<Tensor> {
        let LowRank { down, up } = &*self.matrices;
        let low = if input.is_contiguous() || input.device() != Device::Cpu {
            input.f_linear(down, None::<&Tensor>)?
        } else {
            fold_strided(input, down)?
        };
        low.f_linear(up, None::<&Tensor>)?.mul_number(self.scale)
    }

    /// Adds the delta of a linear layer to `output` with the CPU kernels of this crate; shapes as in [`Delta::linear`].
    pub(super) fn add_linear_fast(&self, input: &Tensor, output: &Tensor) -> Result<Tensor> {
        let LowRank { down, up } = &*self.matrices;
        let weights = |weight| kernels::Weights { weight, bias: None };
        let low = kernels::linear(input, &[weights(down)], After::Activate(Activation::Identity))?;
        kernels::linear(&low.mul_number(self.scale)?, &[weights(up)], After::Add(output))
    }

    /// Computes the delta of a convolution.
    ///
    /// # Shapes
    /// - `input`: `[batch, inputs, height, width]`
    /// - returns `[batch, outputs, height', width']`
    pub(super) fn conv2d(&self, input: &Tensor, stride: i64, padding: i64) -> Result<Tensor> {
        let LowRank { down, up } = &*self.matrices;
        let none = None::<&Tensor>;
        let low = input.f_conv2d(down, none, [stride, stride], [padding, padding], [1, 1], 1)?;
        low.f_conv2d(up, none, [1, 1], [0, 0], [1, 1], 1)?
            .mul_number(self.scale)
    }
}

/// The deltas of the adapters of one job, by the name of the layer in the model's files without `.weight`.
#[derive(Debug, Default)]
pub struct LayerDeltas {
    by_layer: HashMap<Arc<str>, Vec<Delta>>,
}

impl LayerDeltas {
    /// Adds a delta of a layer. The deltas of a layer are added to its result in this order.
    pub fn push(&mut self, layer: &Arc<str>, delta: Delta) {
        self.by_layer.entry(Arc::clone(layer)).or_default().push(delta);
    }

    /// Returns whether no layer has a delta.
    pub fn is_empty(&self) -> bool {
        self.by_layer.is_empty()
    }

    fn of(&self, layer: &str) -> &[Delta] {
        self.by_layer.get(layer).map_or(&[], Vec::as_slice)
    }
}

/// The jobs of a call some of which have adapters.
#[derive(Clone, Copy, Debug)]
pub struct AdaptedJobs<'a> {
    /// The number of entries of each job.
    pub sizes: &'a [i64],
    /// The adapters of each job. There may be further entries behind those of the jobs.
    pub deltas: &'a [Option<&'a LayerDeltas>],
    /// Whether each job is computed apart, as in [`BatchSplit::PerJob`](super::BatchSplit::PerJob).
    pub apart: bool,
}

impl<'a> AdaptedJobs<'a> {
    /// Returns whether a job has adapters for the layer.
    pub(super) fn adapt(&self, layer: &str) -> bool {
        self.deltas.iter().flatten().any(|deltas| !deltas.of(layer).is_empty())
    }

    /// Returns the first entry, the number of entries and the deltas of each job.
    pub(super) fn of(self, layer: &'a str) -> impl Iterator<Item = (i64, i64, &'a [Delta])> {
        let mut next = 0;
        std::iter::zip(self.sizes, self.deltas).map(move |(&size, deltas)| {
            let start = next;
            next += size;
            (start, size, deltas.map_or(&[][..], |deltas| deltas.of(layer)))
        })
    }

    /// Adds the deltas of a layer to its result, in place, for the jobs that have some. `delta` computes one for the entries
    /// of a job.
    pub(super) fn add(
        self,
        layer: &str,
        input: &Tensor,
        output: &Tensor,
        delta: impl Fn(&Delta, &Tensor) -> Result<Tensor>,
    ) -> Result<()> {
        for (start, size, deltas) in self.of(layer).filter(|(.., deltas)| !deltas.is_empty()) {
            let input = aligned(input.f_narrow(0, start, size)?)?;
            let mut output = output.f_narrow(0, start, size)?;
            for one in deltas {
                let _ = output.f_add_(&delta(one, &input)?)?;
            }
        }
        Ok(())
    }
}
