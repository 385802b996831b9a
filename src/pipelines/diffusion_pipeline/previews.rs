//! The previews of jobs.

use tch::Tensor;

use super::DiffusionPipeline;
use crate::pipelines::job::Job;
use crate::pipelines::preview::{LatentColors, PreviewImages, PreviewSource};
use crate::processors::vae::image_bytes;
use crate::schedulers::SchedulerConfig;
use diffusion_core::{Error, Result};
use diffusion_request::{Decoder, GenerateRequest, Preview};

impl DiffusionPipeline {
    /// Makes the preview of a job, and does not wait for the device.
    pub(super) fn preview_job(&self, job: &Job) -> Result<Option<PreviewImages>> {
        let Some(source) = &job.preview else {
            return Ok(None);
        };
        let Some(latents) = source.latents()? else {
            return Ok(None);
        };
        let decoded = match source.kind {
            Preview::Off => return Ok(None),
            Preview::Linear => {
                let colors = self.latent_colors.as_ref();
                let colors = colors.ok_or_else(|| Error::internal("a preview without the colors of latents"))?;
                vec![image_bytes(&colors.colors(&latents)?)?]
            }
            Preview::Tiny => self.decode_to_bytes(&latents, Decoder::Tiny, None)?,
            Preview::Vae => self.decode_to_bytes(&latents, Decoder::Vae, job.chunk_size)?,
        };
        let bytes = Tensor::f_cat(&decoded, 0)?;
        Ok(Some(PreviewImages::new(self.stream.copy_to_host(&bytes)?)))
    }

    /// Makes what the previews of a request need.
    pub(super) fn prepare_preview(
        &mut self,
        request: &GenerateRequest,
        scheduler: &SchedulerConfig,
    ) -> Result<Option<PreviewSource>> {
        let Some(kind) = request.preview else {
            return Ok(None);
        };
        if kind == Preview::Linear && self.latent_colors.is_none() {
            self.latent_colors = Some(LatentColors::fit(&self.components.vae, &self.stream)?);
        }
        PreviewSource::new(kind, scheduler).map(Some)
    }
}
