//! The pipeline of a model folder, as the engine drives it: prepare, step, finish.

use tch::{Device, Kind, Tensor};

use super::denoising_state::PrepareContext;
use super::job::Job;
use super::latent_tiles::{LatentTiles, TileCounts};
use super::loading::Components;
use super::prompt_encoder::PromptEncoder;
use super::safety_check::SafetyCheck;
use super::stable_diffusion::steps_of;
use crate::models::layers::{BatchSplit, ChunkSize};
use crate::models::unet::{UNetInput, guidance_scale_embedding};
use crate::processors::vae::images;
use crate::schedulers::SamplingOptions;
use crate::torch::{Generator, cuda, memory};
use diffusion_core::config::Numerics;
use diffusion_core::{Error, Result};
use diffusion_engine::{BatchEntries, Pipeline, StepResults};
use diffusion_image::RgbImage;
use diffusion_request::GenerateRequest;

/// Chunks of the UNet's convolutions for large images.
const CONVOLUTION_CHUNKS: ChunkSize = ChunkSize { values: 1 << 14 };

/// The images of a request and facts about their generation.
pub struct PipelineOutput {
    /// As many as `num_images_per_prompt`.
    pub images: Vec<RgbImage>,
    /// UNet calls of the request.
    pub steps_run: usize,
    /// Whether the prompt or the negative prompt was truncated.
    pub prompt_truncated: bool,
    /// The class name of the scheduler.
    pub scheduler: &'static str,
    /// For each image whether the safety checker made it black; `None` without one.
    pub nsfw_content_detected: Option<Vec<bool>>,
    /// The number of tiles and chunks of each image; `None` for a pipeline that has none.
    pub tiles: Option<TileCounts>,
}

/// The pipelines of a model folder. The inputs of a request select one of them.
pub struct DiffusionPipeline {
    components: Components,
    prompt_encoder: PromptEncoder,
    max_chunk_pixels: u64,
}

impl DiffusionPipeline {
    /// Creates a pipeline from loaded components. The upscaler generates images of more than `max_chunk_pixels` pixels in
    /// tiles and decodes them in chunks.
    pub fn new(components: Components, max_chunk_pixels: u64) -> Self {
        Self {
            prompt_encoder: components.prompt_encoder(),
            components,
            max_chunk_pixels,
        }
    }

    /// Encodes the prompts: `[batch size, tokens, size]`, the entries without the prompt first, and whether a prompt was
    /// truncated.
    fn prompt_embeds(&self, request: &GenerateRequest, images: i64) -> Result<(Tensor, bool)> {
        let guided = request.do_classifier_free_guidance();
        let embeds = self
            .prompt_encoder
            .encode(&request.prompts, guided, request.clip_skip.unwrap_or(0))?;
        let prompt = embeds.prompt.f_repeat([images, 1, 1])?;
        let embeddings = match embeds.negative {
            Some(negative) => Tensor::f_cat(&[negative.f_repeat([images, 1, 1])?, prompt], 0)?,
            None => prompt,
        };
        Ok((embeddings, embeds.truncated))
    }

    /// Returns the guidance scale for a UNet that takes it as an input, `[images, time_cond_proj_dim]`.
    fn timestep_cond(&self, request: &GenerateRequest, images: i64, kind: Kind) -> Result<Option<Tensor>> {
        let Some(size) = self.components.unet.config().time_cond_proj_dim else {
            return Ok(None);
        };
        let scale = Tensor::f_from_slice(&[(request.guidance_scale - 1.0) as f32])?;
        let embedding = guidance_scale_embedding(&scale.f_repeat([images])?, size, kind)?;
        Ok(Some(embedding.f_to_device(self.components.device)?))
    }

    /// Returns whether each job is computed as in a batch that holds only this job. On a GPU and with fast numerics, the bytes may
    /// depend on the other jobs of a batch; one large batch is faster there.
    fn is_batch_invariant(&self) -> bool {
        self.components.numerics == Numerics::Exact && self.components.device == Device::Cpu
    }

    /// Returns the UNet's prediction for the batch entries of all jobs, in their order.
    fn predict(&self, jobs: &[&mut Job]) -> Result<Tensor> {
        let sizes: Vec<i64> = jobs.iter().map(|job| job.batch_size()).collect();
        let mut samples = Vec::with_capacity(jobs.len());
        let mut timesteps = Vec::new();
        let mut labels = Vec::new();
        let mut conds = Vec::new();
        for (job, &size) in jobs.iter().zip(&sizes) {
            samples.push(job.input()?);
            timesteps.extend(std::iter::repeat_n(job.timestep()?, size as usize));
            if let Some(label) = &job.state.class_label {
                labels.push(label.f_repeat([size])?);
            }
            conds.extend(&job.timestep_cond);
        }
        let contexts: Vec<&Tensor> = jobs.iter().map(|job| &job.prompt_embeds).collect();
        let labels = match labels.as_slice() {
            [] => None,
            labels => Some(Tensor::f_cat(labels, 0)?),
        };
        let conds = match conds.as_slice() {
            [] => None,
            conds => Some(Tensor::f_cat(conds, 0)?),
        };
        let input = UNetInput {
            sample: &Tensor::f_cat(&samples, 0)?,
            timesteps: &Tensor::f_from_slice(&timesteps)?.f_to_device(self.components.device)?,
            encoder_hidden_states: &Tensor::f_cat(&contexts, 0)?,
            class_labels: labels.as_ref(),
            timestep_cond: conds.as_ref(),
        };
        // Jobs of a call have one shape: all of them are large or none.
        if jobs.iter().any(|job| job.state.one_by_one) {
            return self.one_by_one(&input);
        }
        let split = if self.is_batch_invariant() {
            BatchSplit::PerJob(&sizes)
        } else {
            BatchSplit::Joint
        };
        self.components.unet.forward(&input, split, None)
    }

    /// Returns the UNet's predictions, computed one batch entry at a time to save memory.
    fn one_by_one(&self, input: &UNetInput<'_>) -> Result<Tensor> {
        let batch_size = input.sample.size().first().copied().unwrap_or(0);
        let predictions = (0..batch_size)
            .map(|entry| {
                let select = |tensor: &Tensor| tensor.f_narrow(0, entry, 1);
                let labels = input.class_labels.map(select).transpose()?;
                let cond = input.timestep_cond.map(select).transpose()?;
                let one = UNetInput {
                    sample: &select(input.sample)?,
                    timesteps: &select(input.timesteps)?,
                    encoder_hidden_states: &select(input.encoder_hidden_states)?,
                    class_labels: labels.as_ref(),
                    timestep_cond: cond.as_ref(),
                };
                self.components
                    .unet
                    .forward(&one, BatchSplit::Joint, Some(CONVOLUTION_CHUNKS))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_cat(&predictions, 0)?)
    }

    /// Decodes latents to an image tensor.
    fn decode(&self, latents: &Tensor, chunks: Option<ChunkSize>) -> Result<Tensor> {
        let vae = &self.components.vae;
        let latents = latents
            .f_to_kind(vae.kind())?
            .f_div_scalar(vae.config().scaling_factor)?;
        match chunks {
            Some(size) => {
                memory::trim();
                vae.decode_chunked(&latents, size)
            }
            None => vae.decode(&latents),
        }
    }
}

/// Makes the images black that the safety checker flags, and returns the flags.
fn run_safety_checker(check: &SafetyCheck, images: &mut [RgbImage]) -> Result<Vec<bool>> {
    let flags = check.flags(images)?;
    for (image, &flagged) in images.iter_mut().zip(&flags) {
        if flagged {
            let (width, height) = (image.width(), image.height());
            *image = RgbImage::new(width, height, vec![0; image.rgb().len()])?;
        }
    }
    Ok(flags)
}

impl Pipeline for DiffusionPipeline {
    type Request = GenerateRequest;
    type Job = Job;
    type Output = PipelineOutput;

    fn init_thread(&mut self) -> Result<()> {
        cuda::make_current(self.components.device)?;
        // For the life of the thread: no gradients are computed on it.
        std::mem::forget(tch::no_grad_guard());
        Ok(())
    }

    fn prepare(&mut self, request: GenerateRequest) -> Result<Job> {
        let images = i64::try_from(request.num_images_per_prompt).map_err(|_| Error::internal("too many images"))?;
        if let Some(check) = &self.components.safety_check {
            check.check_size(request.width, request.height)?;
        }
        let (prompt_embeds, prompt_truncated) = self.prompt_embeds(&request, images)?;

        let config = match &request.scheduler {
            Some(class) => self.components.scheduler.with_class(class)?,
            None => self.components.scheduler.clone(),
        };
        let mut scheduler = config.build(&SamplingOptions {
            num_inference_steps: request.num_inference_steps,
            timesteps: request.timesteps.clone(),
            sigmas: request.sigmas.clone(),
            eta: request.eta,
        })?;
        let mut generator = Generator::new(request.seed)?;
        let (state, postprocess) = steps_of(&request.inputs).prepare(PrepareContext {
            components: &self.components,
            request: &request,
            images,
            kind: prompt_embeds.kind(),
            max_chunk_pixels: self.max_chunk_pixels,
            scheduler: scheduler.as_mut(),
            generator: &mut generator,
        })?;
        Ok(Job {
            images,
            guided: request.do_classifier_free_guidance(),
            timestep_cond: self.timestep_cond(&request, images, prompt_embeds.kind())?,
            guidance_scale: request.guidance_scale,
            guidance_rescale: request.guidance_rescale,
            prompt_embeds,
            state,
            postprocess,
            scheduler,
            scheduler_name: config.class_name(),
            generator,
            prompt_truncated,
            index: 0,
            calls: 0,
        })
    }

    fn batch_entries(&self, job: &Job) -> BatchEntries {
        let mut shape = job.input_shape();
        shape.extend(job.prompt_embeds.size().get(1));
        BatchEntries {
            count: job.batch_size() as usize,
            shape,
        }
    }

    fn is_done(&self, job: &Job) -> bool {
        job.is_done()
    }

    fn step(&mut self, jobs: &mut [&mut Job]) -> Result<StepResults> {
        let prediction = self.predict(jobs)?;
        let mut start = 0;
        let mut outcome = Vec::with_capacity(jobs.len());
        for job in jobs {
            let size = job.batch_size();
            outcome.push(
                prediction
                    .f_narrow(0, start, size)
                    .map_err(Error::from)
                    .and_then(|prediction| job.advance(&prediction)),
            );
            start += size;
        }
        Ok(outcome)
    }

    fn finish(&mut self, job: Job) -> Result<PipelineOutput> {
        let decoded = self.decode(&job.state.latents, job.postprocess.chunk_size())?;
        let mut images = images(&decoded)?;
        let nsfw_content_detected = match &self.components.safety_check {
            Some(check) => Some(run_safety_checker(check, &mut images)?),
            None => None,
        };
        let flags = nsfw_content_detected.iter().flatten().copied();
        let images = std::iter::zip(images, flags.chain(std::iter::repeat(false)))
            .map(|(image, nsfw)| job.postprocess.finish(image, nsfw))
            .collect::<Result<_>>()?;
        Ok(PipelineOutput {
            images,
            steps_run: job.calls,
            prompt_truncated: job.prompt_truncated,
            scheduler: job.scheduler_name,
            nsfw_content_detected,
            tiles: job
                .postprocess
                .tile_counts(job.state.tiles.as_ref().map_or(1, LatentTiles::count)),
        })
    }

    fn free_memory(&mut self) {
        // A failure changes nothing: memory is short either way.
        let _ = super::free_cached_memory(self.components.device);
    }
}
