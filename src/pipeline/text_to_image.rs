//! `StableDiffusionPipeline`.
//!
//! Source: diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion.py`.

use tch::{Device, Kind, Tensor};

use super::components::Components;
use crate::config::Numerics;
use crate::engine::{Batch, Pipeline, StepOutcome};
use crate::error::{Error, Result};
use crate::libtorch::{Generator, cuda};
use crate::models::{Rows, UNetInput};
use crate::picture::convert::pictures;
use crate::picture::encode::Picture;
use crate::request::generate::GenerateRequest;
use crate::schedulers::{Plan, Scheduler};

/// What a request comes to.
pub struct Generated {
    /// As many as `num_images_per_prompt`.
    pub pictures: Vec<Picture>,
    /// UNet calls that the request took part in.
    pub steps_run: usize,
    /// Whether the prompt or the negative prompt had more tokens than the text encoder takes.
    pub prompt_truncated: bool,
    /// The scheduler that was used, as diffusers names it.
    pub scheduler: &'static str,
}

/// A request in flight.
pub struct Job {
    images: i64,
    guidance_scale: f64,
    guidance_rescale: f64,
    /// Two rows an image: without the prompt, then with it.
    guided: bool,
    /// `[rows, tokens, size]`, the rows without the prompt first.
    prompt_embeds: Tensor,
    /// `[images, channels, height/f, width/f]`.
    latents: Tensor,
    scheduler: Box<dyn Scheduler>,
    scheduler_name: &'static str,
    generator: Generator,
    prompt_truncated: bool,
    index: usize,
}

impl Job {
    fn rows(&self) -> i64 {
        if self.guided {
            self.images * 2
        } else {
            self.images
        }
    }

    fn timestep(&self) -> Result<f32> {
        self.scheduler
            .timesteps()
            .get(self.index)
            .map(|&timestep| timestep as f32)
            .ok_or_else(|| Error::internal("a job was stepped past its end"))
    }

    /// From the UNet's prediction for this job's rows to the next latents.
    fn advance(&mut self, prediction: &Tensor) -> Result<()> {
        let noise_pred = if self.guided {
            let uncond = prediction.f_narrow(0, 0, self.images)?;
            let text = prediction.f_narrow(0, self.images, self.images)?;
            let guided = uncond.f_add(&text.f_sub(&uncond)?.f_mul_scalar(self.guidance_scale)?)?;
            if self.guidance_rescale > 0.0 {
                rescale_noise_cfg(&guided, &text, self.guidance_rescale)?
            } else {
                guided
            }
        } else {
            prediction.shallow_clone()
        };
        self.latents = self
            .scheduler
            .step(&noise_pred, &self.latents, &mut self.generator)?;
        self.index += 1;
        Ok(())
    }
}

/// Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (2023), section 3.4.
fn rescale_noise_cfg(guided: &Tensor, text: &Tensor, guidance_rescale: f64) -> Result<Tensor> {
    let over: &[i64] = &[1, 2, 3];
    let std_text = text.f_std_dim(over, true, true)?;
    let std_guided = guided.f_std_dim(over, true, true)?;
    let rescaled = guided.f_mul(&std_text.f_div(&std_guided)?)?;
    let (rescaled, kept) = (
        rescaled.f_mul_scalar(guidance_rescale)?,
        guided.f_mul_scalar(1.0 - guidance_rescale)?,
    );
    Ok(rescaled.f_add(&kept)?)
}

/// diffusers' `StableDiffusionPipeline`.
pub struct StableDiffusionPipeline {
    components: Components,
}

impl StableDiffusionPipeline {
    /// The pipeline over loaded components.
    pub fn new(components: Components) -> Self {
        Self { components }
    }

    /// `[1, tokens, size]` for one text, and whether it was cut.
    fn encode(&self, text: &str, clip_skip: usize) -> Result<(Tensor, bool)> {
        let tokens = self.components.tokenizer.encode(text)?;
        let ids = Tensor::f_from_slice(&tokens.ids)?
            .f_unsqueeze(0)?
            .f_to_device(self.components.device)?;
        Ok((
            self.components.text_encoder.forward(&ids, clip_skip)?,
            tokens.truncated,
        ))
    }

    /// The starting noise, `[images, channels, height/f, width/f]`, drawn on the CPU in the dtype of
    /// the model.
    fn noise(
        &self,
        request: &GenerateRequest,
        images: i64,
        kind: Kind,
        generator: &mut Generator,
    ) -> Result<Tensor> {
        let factor = self.components.vae.config().scale_factor();
        let shape = [
            images,
            self.components.unet.config().in_channels,
            i64::from(request.height) / factor,
            i64::from(request.width) / factor,
        ];
        Ok(generator
            .randn(&shape, kind)?
            .f_to_device(self.components.device)?)
    }

    /// Whether each job's rows are computed as if they were alone. On a GPU, and with fast numerics,
    /// the bytes may depend on who shares the call, and one wide call is faster than narrow ones.
    fn keeps_rows_apart(&self) -> bool {
        self.components.numerics == Numerics::Exact && self.components.device == Device::Cpu
    }

    /// The UNet's prediction for the rows of all jobs, in their order.
    fn predict(&self, jobs: &[&mut Job]) -> Result<Tensor> {
        let sizes: Vec<i64> = jobs.iter().map(|job| job.rows()).collect();
        let mut samples = Vec::new();
        let mut timesteps = Vec::new();
        for (job, &rows) in jobs.iter().zip(&sizes) {
            samples.push(&job.latents);
            if job.guided {
                samples.push(&job.latents);
            }
            timesteps.extend(std::iter::repeat_n(job.timestep()?, rows as usize));
        }
        let contexts: Vec<&Tensor> = jobs.iter().map(|job| &job.prompt_embeds).collect();
        let input = UNetInput {
            sample: &Tensor::f_cat(&samples, 0)?,
            timesteps: &Tensor::f_from_slice(&timesteps)?.f_to_device(self.components.device)?,
            encoder_hidden_states: &Tensor::f_cat(&contexts, 0)?,
            class_labels: None,
        };
        let rows = if self.keeps_rows_apart() {
            Rows::apart(&sizes)
        } else {
            Rows::WHOLE
        };
        self.components.unet.forward(&input, rows)
    }
}

impl Pipeline for StableDiffusionPipeline {
    type Request = GenerateRequest;
    type Job = Job;
    type Output = Generated;

    fn enter_thread(&mut self) -> Result<()> {
        cuda::make_current(self.components.device)?;
        // For the whole life of the thread: nothing that runs on it is ever differentiated.
        std::mem::forget(tch::no_grad_guard());
        Ok(())
    }

    fn prepare(&mut self, request: GenerateRequest) -> Result<Job> {
        let images = i64::try_from(request.num_images_per_prompt)
            .map_err(|_| Error::internal("more images than can be counted"))?;
        let guided = request.do_classifier_free_guidance();
        let (mut prompt_embeds, mut prompt_truncated) =
            self.encode(&request.prompt, request.clip_skip.unwrap_or(0))?;
        prompt_embeds = prompt_embeds.f_repeat([images, 1, 1])?;
        if guided {
            // clip_skip is for the prompt alone, as in diffusers.
            let (negative, truncated) = self.encode(&request.negative_prompt, 0)?;
            prompt_truncated |= truncated;
            prompt_embeds = Tensor::f_cat(&[negative.f_repeat([images, 1, 1])?, prompt_embeds], 0)?;
        }

        let config = match &request.scheduler {
            Some(class) => self.components.scheduler.with_class(class)?,
            None => self.components.scheduler.clone(),
        };
        let scheduler = config.build(&Plan {
            num_inference_steps: request.num_inference_steps,
            timesteps: request.timesteps.clone(),
            sigmas: request.sigmas.clone(),
            eta: request.eta,
        })?;

        let mut generator = Generator::new(request.seed)?;
        let latents = self
            .noise(&request, images, prompt_embeds.kind(), &mut generator)?
            .f_mul_scalar(scheduler.init_noise_sigma())?;
        Ok(Job {
            images,
            guidance_scale: request.guidance_scale,
            guidance_rescale: request.guidance_rescale,
            guided,
            prompt_embeds,
            latents,
            scheduler,
            scheduler_name: config.class_name(),
            generator,
            prompt_truncated,
            index: 0,
        })
    }

    fn batch(&self, job: &Job) -> Batch {
        Batch {
            rows: job.rows() as usize,
            shape: job.latents.size()[1..].to_vec(),
        }
    }

    fn is_done(&self, job: &Job) -> bool {
        job.index >= job.scheduler.timesteps().len()
    }

    fn step(&mut self, jobs: &mut [&mut Job]) -> Result<StepOutcome> {
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

    fn finish(&mut self, job: Job) -> Result<Generated> {
        let latents = job
            .latents
            .f_div_scalar(self.components.vae.config().scaling_factor)?;
        Ok(Generated {
            pictures: pictures(&self.components.vae.decode(&latents)?)?,
            steps_run: job.index,
            prompt_truncated: job.prompt_truncated,
            scheduler: job.scheduler_name,
        })
    }

    fn relieve(&mut self) {
        // A failure here changes nothing: memory is short either way.
        let _ = cuda::empty_cache(self.components.device);
    }
}
