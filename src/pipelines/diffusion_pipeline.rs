//! The pipelines as the engine drives them: prepare, step, finish.

use tch::{Device, Kind, Tensor};

use super::denoising_state::{Setup, Start};
use super::job::Job;
use super::latent_tiles::Tiles;
use super::loading::Components;
use super::prompt_encoder::PromptEncoder;
use super::safety_check::SafetyCheck;
use super::stable_diffusion::inpaint::Inpaint;
use super::stable_diffusion::{depth2img, img2img, text2img, upscale};
use crate::models::layers::{BatchSplit, ChunkSize};
use crate::models::unet::{UNetInput, guidance_scale_embedding};
use crate::processors::vae::images;
use crate::schedulers::SamplingOptions;
use crate::torch::{Generator, cuda, memory};
use diffusion_core::config::{Numerics, PipelineClass};
use diffusion_core::{Error, Result};
use diffusion_engine::{BatchEntries, Pipeline, StepResults};
use diffusion_image::RgbImage;
use diffusion_request::generate_request::{GenerateRequest, Source};

/// How large an image's maps are cut for the UNet's convolutions.
const CONVOLUTION_STRIPS: ChunkSize = ChunkSize { values: 1 << 14 };

/// What a request comes to.
pub struct PipelineOutput {
    /// As many as `num_images_per_prompt`.
    pub images: Vec<RgbImage>,
    /// UNet calls that the request took part in.
    pub steps_run: usize,
    /// Whether the prompt or the negative prompt had more tokens than the text encoder takes.
    pub prompt_truncated: bool,
    /// The scheduler that was used, as diffusers names it.
    pub scheduler: &'static str,
    /// For each image whether the safety checker made it black; `None` without one.
    pub nsfw_content_detected: Option<Vec<bool>>,
    /// In how many pieces the images were made; `None` for a pipeline that makes them whole.
    pub pieces: Option<Pieces>,
}

/// In how many pieces an enlarged image was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pieces {
    /// Overlapping pieces that the UNet saw.
    pub unet: usize,
    /// Chunks that the VAE ended with.
    pub vae: usize,
}

/// The pipeline that a model folder is, over its loaded parts. Which of diffusers' pipelines a job follows is
/// decided by its [`Source`].
pub struct DiffusionPipeline {
    components: Components,
    prompt_encoder: PromptEncoder,
}

impl DiffusionPipeline {
    /// The pipeline over loaded components.
    pub fn new(components: Components) -> Self {
        Self {
            prompt_encoder: components.prompt_encoder(),
            components,
        }
    }

    /// The rows without the prompt and those with it, `[rows, tokens, size]`, and whether a text was cut.
    fn prompt_embeds(&self, request: &GenerateRequest, images: i64) -> Result<(Tensor, bool)> {
        let guided = request.do_classifier_free_guidance();
        let embeds = self.prompt_encoder.encode(
            &request.prompt,
            guided.then_some(request.negative_prompt.as_str()),
            request.prompt_syntax,
            request.clip_skip.unwrap_or(0),
        )?;
        let prompt = embeds.prompt.f_repeat([images, 1, 1])?;
        let rows = match embeds.negative {
            Some(negative) => Tensor::f_cat(&[negative.f_repeat([images, 1, 1])?, prompt], 0)?,
            None => prompt,
        };
        Ok((rows, embeds.truncated))
    }

    /// The guidance scale as a UNet takes it that does, `[images, time_cond_proj_dim]`.
    fn timestep_cond(&self, request: &GenerateRequest, images: i64, kind: Kind) -> Result<Option<Tensor>> {
        let Some(size) = self.components.unet.config().time_cond_proj_dim else {
            return Ok(None);
        };
        let scale = Tensor::f_from_slice(&[(request.guidance_scale - 1.0) as f32])?;
        let embedding = guidance_scale_embedding(&scale.f_repeat([images])?, size, kind)?;
        Ok(Some(embedding.f_to_device(self.components.device)?))
    }

    /// The request's own part of `prepare`.
    fn start(setup: Setup<'_>) -> Result<Start> {
        match &setup.request.source {
            Source::Text => text2img::start(setup),
            Source::Image { image, strength } => img2img::start(setup, image, *strength),
            Source::Depth {
                image,
                depth_map,
                strength,
            } => depth2img::start(setup, image, depth_map.as_deref(), *strength),
            source @ Source::Inpaint { .. } => match Inpaint::of(source) {
                Some(inpaint) => inpaint.start(setup),
                None => Err(Error::internal("not a request to inpaint")),
            },
            Source::Upscale {
                image,
                noise_level,
                max_piece_pixels,
            } => upscale::start(setup, image, *noise_level, *max_piece_pixels),
        }
    }

    /// Whether each job's rows are computed as if they were alone. On a GPU, and with fast numerics,
    /// the bytes may depend on who shares the call, and one wide call is faster than narrow ones.
    fn keeps_rows_apart(&self) -> bool {
        self.components.numerics == Numerics::Exact && self.components.device == Device::Cpu
    }

    /// The UNet's prediction for the rows of all jobs, in their order.
    fn predict(&self, jobs: &[&mut Job]) -> Result<Tensor> {
        let sizes: Vec<i64> = jobs.iter().map(|job| job.rows()).collect();
        let mut samples = Vec::with_capacity(jobs.len());
        let mut timesteps = Vec::new();
        let mut labels = Vec::new();
        let mut conds = Vec::new();
        for (job, &rows) in jobs.iter().zip(&sizes) {
            samples.push(job.input()?);
            timesteps.extend(std::iter::repeat_n(job.timestep()?, rows as usize));
            if let Some(label) = &job.state.class_label {
                labels.push(label.f_repeat([rows])?);
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
        // Jobs that share a call have one shape, so that all of them are large or none.
        if jobs.iter().any(|job| job.state.row_by_row) {
            return self.row_by_row(&input);
        }
        let split = if self.keeps_rows_apart() {
            BatchSplit::PerJob(&sizes)
        } else {
            BatchSplit::Joint
        };
        self.components.unet.forward(&input, split, None)
    }

    /// The UNet's predictions, of one row after the other: in the memory of one.
    fn row_by_row(&self, input: &UNetInput<'_>) -> Result<Tensor> {
        let rows = input.sample.size().first().copied().unwrap_or(0);
        let predictions = (0..rows)
            .map(|row| {
                let own = |tensor: &Tensor| tensor.f_narrow(0, row, 1);
                let labels = input.class_labels.map(own).transpose()?;
                let cond = input.timestep_cond.map(own).transpose()?;
                let one = UNetInput {
                    sample: &own(input.sample)?,
                    timesteps: &own(input.timesteps)?,
                    encoder_hidden_states: &own(input.encoder_hidden_states)?,
                    class_labels: labels.as_ref(),
                    timestep_cond: cond.as_ref(),
                };
                self.components
                    .unet
                    .forward(&one, BatchSplit::Joint, Some(CONVOLUTION_STRIPS))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_cat(&predictions, 0)?)
    }

    /// Latents to an image tensor.
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

/// Makes those images black that the safety checker flags, and says which they are.
fn blacken(check: &SafetyCheck, images: &mut [RgbImage]) -> Result<Vec<bool>> {
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
        // For the whole life of the thread: nothing that runs on it is ever differentiated.
        std::mem::forget(tch::no_grad_guard());
        Ok(())
    }

    fn prepare(&mut self, request: GenerateRequest) -> Result<Job> {
        let images = i64::try_from(request.num_images_per_prompt)
            .map_err(|_| Error::internal("more images than can be counted"))?;
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
        let state = Self::start(Setup {
            components: &self.components,
            request: &request,
            images,
            kind: prompt_embeds.kind(),
            scheduler: scheduler.as_mut(),
            generator: &mut generator,
        })?;
        Ok(Job {
            images,
            guided: request.do_classifier_free_guidance(),
            timestep_cond: self.timestep_cond(&request, images, prompt_embeds.kind())?,
            prompt_embeds,
            state,
            scheduler,
            scheduler_name: config.class_name(),
            generator,
            prompt_truncated,
            index: 0,
            calls: 0,
            request,
        })
    }

    fn batch_entries(&self, job: &Job) -> BatchEntries {
        let mut shape = job.input_shape();
        shape.extend(job.prompt_embeds.size().get(1));
        BatchEntries {
            count: job.rows() as usize,
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
            let rows = job.rows();
            outcome.push(
                prediction
                    .f_narrow(0, start, rows)
                    .map_err(Error::from)
                    .and_then(|own| job.advance(&own)),
            );
            start += rows;
        }
        Ok(outcome)
    }

    fn finish(&mut self, job: Job) -> Result<PipelineOutput> {
        let (height, width) = (job.request.height, job.request.width);
        let chunks = match job.request.source {
            Source::Upscale { max_piece_pixels, .. } => upscale::chunks(height, width, max_piece_pixels),
            _ => None,
        };
        let mut images = images(&self.decode(&job.state.latents, chunks)?)?;
        let nsfw_content_detected = match &self.components.safety_check {
            Some(check) => Some(blacken(check, &mut images)?),
            None => None,
        };
        if let Some(inpaint) = Inpaint::of(&job.request.source) {
            let flags = nsfw_content_detected.clone().unwrap_or_default();
            let flags = flags.into_iter().chain(std::iter::repeat(false));
            images = std::iter::zip(images, flags)
                .map(|(image, flagged)| inpaint.finish(image, flagged))
                .collect::<Result<_>>()?;
        }
        let pieces = (job.request.source.class() == PipelineClass::Upscale).then(|| Pieces {
            unet: job.state.tiles.as_ref().map_or(1, Tiles::count),
            vae: chunks.map_or(1, |size| size.count(height.into(), width.into())),
        });
        Ok(PipelineOutput {
            images,
            steps_run: job.calls,
            prompt_truncated: job.prompt_truncated,
            scheduler: job.scheduler_name,
            nsfw_content_detected,
            pieces,
        })
    }

    fn free_memory(&mut self) {
        // A failure changes nothing: memory is short either way.
        let _ = super::free_cached_memory(self.components.device);
    }
}
