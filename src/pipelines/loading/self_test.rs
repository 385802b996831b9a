//! One small computation on a GPU at the end of a load: what fails there would fail in every request.

use tch::{Device, Kind, Tensor};

use super::Components;
use crate::models::layers::BatchSplit;
use crate::models::unet::{AddedCondition, TimeInput, UNetInput};
use crate::torch::{Stream, classify_errors, cuda};
use diffusion_core::{Context, Error, Result};

/// Height and width of the latents. A UNet halves them three times.
const SIDE: i64 = 16;
/// Batch entries: a request with guidance has two.
const ENTRIES: i64 = 2;

/// Refuses a dtype that the GPU does not compute in.
///
/// # Errors
/// `Unsupported` for bfloat16 before compute capability 8.0 (Ampere).
pub(super) fn check_dtype(device: Device, kind: Kind) -> Result<()> {
    let Device::Cuda(index) = device else {
        return Ok(());
    };
    match cuda::compute_capability(index) {
        Some((major, minor)) if kind == Kind::BFloat16 && major < 8 => Err(Error::unsupported(format!(
            "parameter `dtype`: bfloat16 needs a GPU of compute capability 8.0, GPU {index} has {major}.{minor}; use float16"
        ))),
        _ => Ok(()),
    }
}

/// Encodes a text, calls the UNet and decodes the result, all of zeros, and waits for all work of `stream`, the current
/// stream. Does nothing on the CPU.
///
/// # Errors
/// What a request would fail with: no kernels for this GPU, a part of cuDNN that is missing, no memory to work in.
pub(super) fn run(components: &Components, stream: &Stream) -> Result<()> {
    let device = components.device;
    let Device::Cuda(index) = device else {
        return Ok(());
    };
    let result = classify_errors(device, stream, || {
        compute(components, stream)?;
        stream.synchronize()
    });
    result.context(|| format!("the self-test of the model on GPU {index}"))
}

fn compute(components: &Components, stream: &Stream) -> Result<()> {
    let (text_encoder, unet, vae) = (&components.text_encoder, &components.unet, &components.vae);
    let config = unet.config();
    let zeros = |shape: &[i64]| Tensor::f_zeros(shape, (unet.kind(), components.device));

    let tokens = text_encoder.config().max_position_embeddings;
    let ids = stream.to_device(&Tensor::f_zeros([ENTRIES, tokens], (Kind::Int64, Device::Cpu))?)?;
    let (hidden_states, added) = match &components.second_text_encoder {
        None => (text_encoder.forward(&ids, 0)?, None),
        Some(second) => {
            let first = text_encoder.forward_penultimate(&ids, None, 0, BatchSplit::Joint)?;
            let second = second.model.forward_penultimate(&ids, None, 0, BatchSplit::Joint)?;
            let pooled = second.pooled.ok_or_else(|| Error::internal("no pooled state"))?;
            let added = AddedCondition {
                text_embeds: pooled,
                time_ids: zeros(&[ENTRIES, 6])?,
            };
            (Tensor::f_cat(&[first.states, second.states], -1)?, Some(added))
        }
    };
    let cond = config
        .time_cond_proj_dim
        .map(|size| zeros(&[ENTRIES, size]))
        .transpose()?;
    let labels = config
        .num_class_embeds
        .map(|_| Tensor::f_zeros([ENTRIES], (Kind::Int64, components.device)))
        .transpose()?;
    let time = TimeInput {
        timesteps: &zeros(&[ENTRIES])?,
        class_labels: labels.as_ref(),
        timestep_cond: cond.as_ref(),
        added: added.as_ref(),
    };
    let input = UNetInput {
        sample: &zeros(&[ENTRIES, config.in_channels, SIDE, SIDE])?,
        time_shifts: &unet.time_shifts(&time, BatchSplit::Joint)?,
        text: &unet.project_text(&hidden_states, BatchSplit::Joint)?,
    };
    let prediction = unet.forward(&input, BatchSplit::Joint, None)?;
    let latents = prediction
        .f_narrow(0, 0, 1)?
        .f_narrow(1, 0, vae.config().latent_channels)?;
    let _image = vae.decode(&latents.f_to_kind(vae.kind())?)?;
    if let Some(tiny) = &components.vae_tiny {
        let _image = tiny.decode(&latents.f_to_kind(tiny.kind())?)?;
    }
    Ok(())
}
