//! A request in flight.

use std::sync::Arc;
use std::time::Instant;

use tch::{Device, Tensor};

use super::denoising_state::DenoisingState;
use super::preview::PreviewSource;
use super::stable_diffusion::Postprocess;
use super::unet_calls::{DeepFeature, JobConditioning, JobInput};
use crate::adapters::JobAdapters;
use crate::models::layers::ChunkSize;
use crate::schedulers::Scheduler;
use crate::torch::numbers::NumberOperators;
use crate::torch::{Generator, Stream};
use diffusion_core::{Error, Result};
use diffusion_request::Decoder;

/// A request in flight: the inputs of its UNet calls and its progress.
pub struct Job {
    /// The number of images.
    pub(super) images: i64,
    /// Whether each image has two batch entries: without the prompt, then with it.
    pub(super) guided: bool,
    pub(super) guidance_scale: f64,
    pub(super) guidance_rescale: f64,
    /// The text and the timesteps, as the UNet takes them.
    pub(super) conditioning: JobConditioning,
    /// The LoRAs of the request.
    pub(super) adapters: Arc<JobAdapters>,
    pub(super) state: DenoisingState,
    pub(super) postprocess: Box<dyn Postprocess>,
    pub(super) scheduler: Box<dyn Scheduler>,
    pub(super) scheduler_name: &'static str,
    pub(super) generator: Generator,
    pub(super) prompt_truncated: bool,
    /// Completed scheduler steps.
    pub(super) index: usize,
    /// UNet calls of the job; more than steps with tiles.
    pub(super) calls: usize,
    /// The whole UNet runs at each multiple of this number of steps, at least 1.
    pub(super) deep_cache: usize,
    /// What the steps between them reuse, `[batch size, channels, height, width]`.
    pub(super) deep_feature: Option<Tensor>,
    /// The network that turns the last latents into images.
    pub(super) decoder: Decoder,
    /// What previews are made of; `None` for a job without.
    pub(super) preview: Option<PreviewSource>,
    /// The chunks in which the VAE decodes an image; `None` if it decodes an image whole.
    pub(super) chunk_size: Option<ChunkSize>,
    /// When it started, its prompts were encoded, and it was prepared.
    pub(super) times: [Instant; 3],
}

impl Job {
    /// Returns the number of entries that the job adds to a UNet batch.
    pub fn batch_size(&self) -> i64 {
        if self.guided { self.images * 2 } else { self.images }
    }

    /// Returns channels, height and width of the UNet's input.
    pub fn input_shape(&self) -> Vec<i64> {
        let latents = self.state.latents.size();
        let conditioning = self.state.conditioning.as_ref().map(Tensor::size);
        let channels = |size: &[i64]| size.get(1).copied().unwrap_or(0);
        let (height, width) = match &self.state.tiles {
            Some(tiles) => tiles.tile_size(),
            None => (
                latents.get(2).copied().unwrap_or(0),
                latents.get(3).copied().unwrap_or(0),
            ),
        };
        let all = channels(&latents) + conditioning.map_or(0, |size| channels(&size));
        vec![all, height, width]
    }

    /// Returns the number of completed scheduler steps and of all steps.
    pub fn progress(&self) -> (usize, usize) {
        (self.index, self.scheduler.timesteps().len())
    }

    /// Returns whether all steps are completed.
    pub fn is_done(&self) -> bool {
        self.index >= self.scheduler.timesteps().len()
    }

    /// Returns what the job adds to the next UNet call.
    ///
    /// # Errors
    /// Internal if no step is left.
    pub fn unet_input(&self) -> Result<JobInput<'_>> {
        Ok(JobInput {
            sample: self.input()?,
            step: self.index,
            timestep: self.timestep()?,
            one_by_one: self.state.one_by_one,
            conditioning: &self.conditioning,
            adapters: self.adapters.unet(),
            deep_feature: self.deep_feature_use(),
        })
    }

    /// Returns whether the next UNet call computes the outermost layers alone.
    pub fn reuses_deep_feature(&self) -> bool {
        matches!(self.deep_feature_use(), DeepFeature::Reuse(_))
    }

    /// Decides how the next UNet call uses the deep feature. A job without one, a large image above all, runs the whole
    /// UNet.
    fn deep_feature_use(&self) -> DeepFeature<'_> {
        match &self.deep_feature {
            _ if self.deep_cache <= 1 => DeepFeature::Unused,
            Some(feature) if !self.index.is_multiple_of(self.deep_cache) => DeepFeature::Reuse(feature),
            _ => DeepFeature::Keep,
        }
    }

    /// Frees the deep feature if the next UNet call makes a new one.
    pub fn free_deep_feature(&mut self) {
        if !self.reuses_deep_feature() {
            self.deep_feature = None;
        }
    }

    /// Keeps the deep feature of the job's entries, which start at `start` of the call's.
    pub fn keep_deep_feature(&mut self, call: &Tensor, start: i64) -> Result<()> {
        if !matches!(self.deep_feature_use(), DeepFeature::Keep) {
            return Ok(());
        }
        let own = call.f_narrow(0, start, self.batch_size())?;
        self.deep_feature = Some(if own.size() == call.size() {
            own
        } else {
            // The other jobs' memory is free when they end. The layout stays.
            let mut copy = own.f_empty_like()?;
            copy.f_copy_(&own)?;
            copy
        });
        Ok(())
    }

    fn timestep(&self) -> Result<f32> {
        self.scheduler
            .timesteps()
            .get(self.index)
            .map(|&timestep| timestep as f32)
            .ok_or_else(|| Error::internal("a job was stepped past its end"))
    }

    /// Returns the sample of the next UNet call, `[batch size, channels, height, width]`.
    fn input(&self) -> Result<Tensor> {
        let twice = |tensor: &Tensor| {
            if self.guided {
                Tensor::f_cat(&[tensor, tensor], 0)
            } else {
                Ok(tensor.shallow_clone())
            }
        };
        let mut input = self.scheduler.scale_model_input(&twice(&self.state.latents)?)?;
        if let Some(conditioning) = &self.state.conditioning {
            input = Tensor::f_cat(&[input, twice(conditioning)?], 1)?;
        }
        match &self.state.tiles {
            Some(tiles) => tiles.next_tile(&input),
            None => Ok(input),
        }
    }

    /// Takes the UNet's prediction for [`Job::unet_input`] and makes a scheduler step once every tile has its prediction.
    pub fn advance(&mut self, prediction: &Tensor, stream: &Stream) -> Result<()> {
        self.calls += 1;
        match &mut self.state.tiles {
            Some(tiles) => match tiles.add(prediction, stream)? {
                Some(whole) => self.step(&whole),
                None => Ok(()),
            },
            None => self.step(prediction),
        }
    }

    /// Computes the next latents from the prediction for the job's batch entries.
    fn step(&mut self, prediction: &Tensor) -> Result<()> {
        let noise_pred = if self.guided {
            let uncond = prediction.f_narrow(0, 0, self.images)?;
            let text = prediction.f_narrow(0, self.images, self.images)?;
            let guided = if prediction.device() == Device::Cpu {
                let difference = text.f_sub(&uncond)?;
                uncond.f_add(&difference.mul_number(self.guidance_scale)?)?
            } else {
                // The same in one kernel.
                uncond.lerp_number(&text, self.guidance_scale)?
            };
            if self.guidance_rescale > 0.0 {
                rescale_noise_cfg(&guided, &text, self.guidance_rescale)?
            } else {
                guided
            }
        } else {
            prediction.shallow_clone()
        };
        if let Some(preview) = &mut self.preview {
            let timestep = self.scheduler.timesteps().get(self.index).copied().unwrap_or(0.0);
            preview.keep(
                timestep,
                self.scheduler.scale_model_input(&self.state.latents)?,
                &noise_pred,
            );
        }
        self.state.latents = self
            .scheduler
            .step(&noise_pred, &self.state.latents, &mut self.generator)?;
        self.index += 1;
        if let Some(unmasked) = &self.state.unmasked {
            self.state.latents = unmasked.blend(&self.state.latents, self.scheduler.as_ref(), self.is_done())?;
        }
        Ok(())
    }
}

/// Rescales the guided prediction. Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (2023), section 3.4.
fn rescale_noise_cfg(guided: &Tensor, text: &Tensor, guidance_rescale: f64) -> Result<Tensor> {
    let over: &[i64] = &[1, 2, 3];
    let std_text = text.f_std_dim(over, true, true)?;
    let std_guided = guided.f_std_dim(over, true, true)?;
    let rescaled = guided.f_mul(&std_text.f_div(&std_guided)?)?;
    let (rescaled, kept) = (
        rescaled.mul_number(guidance_rescale)?,
        guided.mul_number(1.0 - guidance_rescale)?,
    );
    Ok(rescaled.f_add(&kept)?)
}
