//! Activations that must be batch-invariant.

use tch::Tensor;

use super::batch_split::BatchSplit;
use diffusion_core::Result;

/// Computes x·σ(x) of each value of each job's entries.
pub fn silu(input: &Tensor, split: BatchSplit<'_>) -> Result<Tensor> {
    split.map(input, |input| Ok(input.f_silu()?))
}
