//! The pipeline of a model folder, as the engine drives it: prepare, step, finish.

mod decoding;
mod previews;
mod prompts;

use std::sync::Arc;
use std::time::Instant;

use tch::{Device, Kind, Tensor};

use super::denoising_state::PrepareContext;
use super::job::Job;
use super::latent_tiles::{LatentTiles, TileCounts};
use super::loading::Components;
use super::memory_need::{CHUNK_SIZE, PipelineRequest};
use super::preview::{LatentColors, PreviewImages};
use super::prompt_encoder::PromptEncoder;
use super::prompt_encoder_xl::XlPromptEncoder;
use super::safety_check::SafetyCheck;
use super::stable_diffusion::steps_of;
use super::timings::Timings;
use super::unet_calls::{ConditioningInput, UNetCalls};
use crate::adapters::JobAdapters;
use crate::models::unet::guidance_scale_embedding;
use crate::schedulers::SamplingOptions;
use crate::torch::{Generator, Stream, classify_errors, cpu_allocator, threads};
use diffusion_core::config::Numerics;
use diffusion_core::{Error, Result};
use diffusion_engine::{BatchEntries, Pipeline, StepResults};
use diffusion_image::RgbImage;
use diffusion_request::GenerateRequest;

use prompts::EncodedPrompts;

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
    /// When the phases ended.
    pub timings: Timings,
}

/// The pipelines of a model folder. The inputs of a request select one of them.
pub struct DiffusionPipeline {
    components: Components,
    prompt_encoder: PromptEncoder,
    /// In place of it for Stable Diffusion XL.
    xl_prompt_encoder: Option<XlPromptEncoder>,
    unet_calls: UNetCalls,
    max_chunk_pixels: u64,
    /// The colors of latents, from the first request for linear previews on.
    latent_colors: Option<LatentColors>,
    /// The stream of the engine's thread.
    stream: Arc<Stream>,
}

impl DiffusionPipeline {
    /// Creates a pipeline from loaded components. The upscaler generates images of more than `max_chunk_pixels` pixels in
    /// tiles and decodes them in chunks.
    pub fn new(components: Components, max_chunk_pixels: u64) -> Self {
        Self {
            prompt_encoder: components.prompt_encoder(),
            xl_prompt_encoder: components.xl_prompt_encoder(),
            unet_calls: UNetCalls::new(&components),
            components,
            max_chunk_pixels,
            latent_colors: None,
            stream: Arc::new(Stream::cpu()),
        }
    }

    /// Waits until the device has done all work.
    ///
    /// # Errors
    /// `DeviceLost` if the GPU failed.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize()
    }

    /// Returns the guidance scale for a UNet that takes it as an input, `[images, time_cond_proj_dim]`.
    fn timestep_cond(&self, request: &GenerateRequest, images: i64, kind: Kind) -> Result<Option<Tensor>> {
        let Some(size) = self.components.unet.config().time_cond_proj_dim else {
            return Ok(None);
        };
        let scale = Tensor::f_from_slice(&[(request.guidance_scale - 1.0) as f32])?;
        let embedding = guidance_scale_embedding(&scale.f_repeat([images])?, size, kind)?;
        Ok(Some(self.stream.to_device(&embedding)?))
    }

    fn prepare_job(&mut self, request: &GenerateRequest, adapters: &Arc<JobAdapters>) -> Result<Job> {
        let started = Instant::now();
        // A LoRA may be part of the model.
        if adapters.count() < request.loras.len() {
            return Err(Error::internal("a request whose LoRAs were not loaded"));
        }
        let images = i64::try_from(request.num_images_per_prompt).map_err(|_| Error::internal("too many images"))?;
        if let Some(check) = &self.components.safety_check {
            check.check_size(request.width, request.height)?;
        }
        let EncodedPrompts {
            prompt_embeds,
            added,
            truncated: prompt_truncated,
        } = self.prompt_embeds(request, images, adapters)?;
        let text_encoded = Instant::now();

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
        let mut generator = Generator::on(Arc::clone(&self.stream), request.seed)?;
        let (state, postprocess) = steps_of(&request.inputs).prepare(PrepareContext {
            components: &self.components,
            request,
            images,
            kind: prompt_embeds.kind(),
            max_chunk_pixels: self.max_chunk_pixels,
            scheduler: scheduler.as_mut(),
            generator: &mut generator,
            stream: &self.stream,
        })?;
        let conditioning = self.unet_calls.prepare(
            ConditioningInput {
                prompt_embeds: &prompt_embeds,
                timesteps: scheduler.timesteps(),
                class_label: state.class_label.as_ref().map(Tensor::shallow_clone),
                timestep_cond: self.timestep_cond(request, images, prompt_embeds.kind())?,
                added,
                one_by_one: state.one_by_one,
                adapters: adapters.unet(),
            },
            &self.stream,
        )?;
        Ok(Job {
            images,
            guided: request.do_classifier_free_guidance(),
            guidance_scale: request.guidance_scale,
            guidance_rescale: request.guidance_rescale,
            conditioning,
            adapters: Arc::clone(adapters),
            state,
            postprocess,
            scheduler,
            scheduler_name: config.class_name(),
            generator,
            prompt_truncated,
            index: 0,
            calls: 0,
            deep_cache: request.deep_cache,
            deep_feature: None,
            decoder: request.decoder,
            preview: self.prepare_preview(request, &config)?,
            chunk_size: None,
            times: [started, text_encoded, Instant::now()],
        })
    }

    fn step_jobs(&mut self, jobs: &mut [&mut Job]) -> Result<StepResults> {
        self.stream.begin_step()?;
        for job in jobs.iter_mut() {
            job.free_deep_feature();
        }
        let inputs = jobs.iter().map(|job| job.unet_input()).collect::<Result<Vec<_>>>()?;
        let prediction = self.unet_calls.predict(&inputs, &self.stream)?;
        let mut start = 0;
        let mut outcome = Vec::with_capacity(jobs.len());
        for job in jobs {
            let size = job.batch_size();
            let advanced = classify_errors(self.components.device, &self.stream, || {
                if let Some(feature) = &prediction.deep_feature {
                    job.keep_deep_feature(feature, start)?;
                }
                job.advance(&prediction.noise.f_narrow(0, start, size)?, &self.stream)
            });
            outcome.push(advanced);
            start += size;
        }
        Ok(outcome)
    }

    fn finish_job(&self, job: &Job) -> Result<PipelineOutput> {
        let [started, text_encoded, prepared] = job.times;
        let stepped = Instant::now();
        let mut images = self.decode(&job.state.latents, job.decoder, job.chunk_size)?;
        let nsfw_content_detected = match &self.components.safety_check {
            Some(check) => {
                let run = || run_safety_checker(check, &mut images, &self.stream);
                Some(self.components.with_libtorch_threads(run)?)
            }
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
            tiles: self.tile_counts(job),
            timings: Timings {
                started,
                text_encoded,
                prepared,
                stepped,
                decoded: Instant::now(),
            },
        })
    }

    /// Returns the numbers of tiles and chunks, of a pipeline that has them or of an image that was decoded in chunks.
    fn tile_counts(&self, job: &Job) -> Option<TileCounts> {
        let tiles = job.state.tiles.as_ref().map_or(1, LatentTiles::count);
        job.postprocess.tile_counts(tiles).or_else(|| {
            let (_, _, height, width) = job.state.latents.size4().ok()?;
            let factor = self.components.vae.config().scale_factor();
            let vae = job.chunk_size?.count(height * factor, width * factor);
            Some(TileCounts { unet: tiles, vae })
        })
    }

    /// Calls `call`, and finds out what an error of the device means. Without the files of the weights, a result is wrong.
    fn classified<T>(&mut self, call: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let (device, stream) = (self.components.device, Arc::clone(&self.stream));
        let result = classify_errors(device, &stream, || call(self));
        self.components.files.check()?;
        result
    }
}

/// Makes the images black that the safety checker flags, and returns the flags.
fn run_safety_checker(check: &SafetyCheck, images: &mut [RgbImage], stream: &Stream) -> Result<Vec<bool>> {
    let flags = check.flags(images, stream)?;
    for (image, &flagged) in images.iter_mut().zip(&flags) {
        if flagged {
            let (width, height) = (image.width(), image.height());
            *image = RgbImage::new(width, height, vec![0; image.rgb().len()])?;
        }
    }
    Ok(flags)
}

impl Pipeline for DiffusionPipeline {
    type Request = PipelineRequest;
    type Job = Job;
    type Output = PipelineOutput;
    type Preview = PreviewImages;

    fn init_thread(&mut self) -> Result<()> {
        self.stream = Arc::new(Stream::new(self.components.device)?);
        self.stream.make_current()?;
        if self.components.device == Device::Cpu {
            let fast = self.components.numerics == Numerics::Fast;
            threads::limit(self.components.intra_op_threads, fast);
            cpu_allocator::count_this_thread();
        }
        // For the life of the thread: no gradients are computed on it.
        std::mem::forget(tch::no_grad_guard());
        Ok(())
    }

    fn prepare(&mut self, planned: PipelineRequest) -> Result<Job> {
        let chunks = planned.decode_in_chunks.then_some(CHUNK_SIZE);
        let mut job = self.classified(|pipeline| pipeline.prepare_job(&planned.request, &planned.adapters))?;
        job.chunk_size = job.postprocess.chunk_size().or(chunks);
        Ok(job)
    }

    fn batch_entries(&self, job: &Job) -> BatchEntries {
        let mut shape = job.input_shape();
        shape.push(job.conditioning.tokens);
        // Jobs that reuse their deep features compute fewer layers.
        shape.push(i64::from(job.reuses_deep_feature()));
        BatchEntries {
            count: job.batch_size() as usize,
            shape,
        }
    }

    fn steps(&self, job: &Job) -> usize {
        job.scheduler.timesteps().len()
    }

    fn is_done(&self, job: &Job) -> bool {
        job.is_done()
    }

    /// The kernels of a GPU may still run when their calls have returned.
    fn is_synchronous(&self) -> bool {
        self.components.device == Device::Cpu
    }

    fn step(&mut self, jobs: &mut [&mut Job]) -> Result<StepResults> {
        self.classified(|pipeline| pipeline.step_jobs(jobs))
    }

    fn preview(&mut self, job: &Job) -> Result<Option<PreviewImages>> {
        let preview = self.classified(|pipeline| pipeline.preview_job(job));
        if matches!(preview, Err(Error::OutOfMemory(_))) {
            self.free_memory();
        }
        preview
    }

    fn finish(&mut self, job: Job) -> Result<PipelineOutput> {
        self.classified(|pipeline| pipeline.finish_job(&job))
    }

    fn free_memory(&mut self) {
        // A failure changes nothing: memory is short either way.
        let _ = super::free_cached_memory(self.components.device);
    }
}

/// Waits for the GPU, so that no weight that is freed later is in use.
impl Drop for DiffusionPipeline {
    fn drop(&mut self) {
        // A lost device is reported by the call that lost it.
        let _ = self.stream.synchronize();
    }
}
