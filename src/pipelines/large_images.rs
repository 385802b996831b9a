//! UNet calls for large images.

use tch::Tensor;

use crate::models::layers::{AdaptedJobs, BatchSplit, ChunkSize, KeyValue, LayerDeltas, TimeShifts};
use crate::models::unet::{UNet2DConditionModel, UNetInput};
use diffusion_core::Result;

/// Chunks of the UNet's convolutions for large images.
const CONVOLUTION_CHUNKS: ChunkSize = ChunkSize { values: 1 << 14 };
/// Returns the UNet's predictions, computed one batch entry at a time to save memory. `deltas` are those of each entry.
pub fn predict_one_by_one(
    unet: &UNet2DConditionModel,
    input: &UNetInput<'_>,
    deltas: &[Option<&LayerDeltas>],
) -> Result<Tensor> {
    let predictions = (0..)
        .zip(deltas)
        .map(|(entry, deltas)| {
            let select = |tensor: &Tensor| -> Result<Tensor> { Ok(tensor.f_narrow(0, entry, 1)?) };
            let time_shifts = match input.time_shifts {
                TimeShifts::Added(shifts) => TimeShifts::Added(shifts.iter().map(select).collect::<Result<_>>()?),
                TimeShifts::Biases(biases) => {
                    // One for all entries, or one for each.
                    let select = |bias: &Tensor| match bias.size2()?.0 {
                        1 => Ok(bias.shallow_clone()),
                        _ => select(bias),
                    };
                    TimeShifts::Biases(biases.iter().map(select).collect::<Result<_>>()?)
                }
            };
            let text = input.text.iter().map(|text| {
                Ok(KeyValue {
                    key: select(&text.key)?,
                    value: select(&text.value)?,
                })
            });
            let one = UNetInput {
                sample: &select(input.sample)?,
                time_shifts: &time_shifts,
                text: &text.collect::<Result<Vec<_>>>()?,
            };
            let split = BatchSplit::Adapted(AdaptedJobs {
                sizes: &[1],
                deltas: &[*deltas],
                apart: false,
            });
            unet.forward(&one, split, Some(CONVOLUTION_CHUNKS))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_cat(&predictions, 0)?)
}
