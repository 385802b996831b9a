//! A request in flight.

use tch::Tensor;

use super::denoising_state::Start;
use crate::schedulers::Scheduler;
use crate::torch::Generator;
use diffusion_core::{Error, Result};
use diffusion_request::generate_request::GenerateRequest;

/// A request in flight: what each UNet call needs of it, and where it stands.
pub struct Job {
    /// What was asked for.
    pub(super) request: GenerateRequest,
    /// Images.
    pub(super) images: i64,
    /// Two rows an image: without the prompt, then with it.
    pub(super) guided: bool,
    /// `[rows, tokens, size]`, the rows without the prompt first.
    pub(super) prompt_embeds: Tensor,
    /// The guidance scale for a UNet that takes it, `[rows, time_cond_proj_dim]`.
    pub(super) timestep_cond: Option<Tensor>,
    /// Where it started; `latents` in there are the present ones.
    pub(super) state: Start,
    pub(super) scheduler: Box<dyn Scheduler>,
    pub(super) scheduler_name: &'static str,
    pub(super) generator: Generator,
    pub(super) prompt_truncated: bool,
    /// Scheduler steps that are done.
    pub(super) index: usize,
    /// UNet calls that the job took part in; more than steps if it is made in pieces.
    pub(super) calls: usize,
}

impl Job {
    /// Rows that the job adds to a UNet call.
    pub fn rows(&self) -> i64 {
        if self.guided { self.images * 2 } else { self.images }
    }

    /// Channels, height and width of what it shows the UNet.
    pub fn input_shape(&self) -> Vec<i64> {
        let latents = self.state.latents.size();
        let conditioning = self.state.conditioning.as_ref().map(Tensor::size);
        let channels = |size: &[i64]| size.get(1).copied().unwrap_or(0);
        let (height, width) = match &self.state.tiles {
            Some(tiles) => tiles.piece(),
            None => (
                latents.get(2).copied().unwrap_or(0),
                latents.get(3).copied().unwrap_or(0),
            ),
        };
        let all = channels(&latents) + conditioning.map_or(0, |size| channels(&size));
        vec![all, height, width]
    }

    /// Scheduler steps that are done, and those that there are.
    pub fn progress(&self) -> (usize, usize) {
        (self.index, self.scheduler.timesteps().len())
    }

    /// Whether all steps are behind it.
    pub fn is_done(&self) -> bool {
        self.index >= self.scheduler.timesteps().len()
    }

    /// The timestep of the next call.
    ///
    /// # Errors
    /// None is left.
    pub fn timestep(&self) -> Result<f32> {
        self.scheduler
            .timesteps()
            .get(self.index)
            .map(|&timestep| timestep as f32)
            .ok_or_else(|| Error::internal("a job was stepped past its end"))
    }

    /// What it shows the UNet next, `[rows, channels, height, width]`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn input(&self) -> Result<Tensor> {
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
            Some(tiles) => tiles.next_of(&input),
            None => Ok(input),
        }
    }

    /// Takes the UNet's prediction for what it showed, and steps on once it has that of every piece.
    ///
    /// # Errors
    /// Out of memory.
    pub fn advance(&mut self, prediction: &Tensor) -> Result<()> {
        self.calls += 1;
        match &mut self.state.tiles {
            Some(tiles) => match tiles.take(prediction)? {
                Some(whole) => self.step(&whole),
                None => Ok(()),
            },
            None => self.step(prediction),
        }
    }

    /// From the prediction for the job's rows to the next latents.
    fn step(&mut self, prediction: &Tensor) -> Result<()> {
        let noise_pred = if self.guided {
            let uncond = prediction.f_narrow(0, 0, self.images)?;
            let text = prediction.f_narrow(0, self.images, self.images)?;
            let difference = text.f_sub(&uncond)?;
            let guided = uncond.f_add(&difference.f_mul_scalar(self.request.guidance_scale)?)?;
            if self.request.guidance_rescale > 0.0 {
                rescale_noise_cfg(&guided, &text, self.request.guidance_rescale)?
            } else {
                guided
            }
        } else {
            prediction.shallow_clone()
        };
        self.state.latents = self
            .scheduler
            .step(&noise_pred, &self.state.latents, &mut self.generator)?;
        self.index += 1;
        if let Some(keep) = &self.state.keep {
            self.state.latents = keep.put_back(&self.state.latents, self.scheduler.as_ref(), self.is_done())?;
        }
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
