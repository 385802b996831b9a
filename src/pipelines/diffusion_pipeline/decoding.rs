//! From latents to images.

use tch::{Device, Tensor};

use super::DiffusionPipeline;
use crate::models::layers::ChunkSize;
use crate::pipelines::image_decoder::ImageDecoder;
use crate::processors::vae::{image_bytes, images};
use crate::torch::numbers::NumberOperators;
use crate::torch::{classify_errors, cuda};
use diffusion_core::{Error, Result};
use diffusion_image::RgbImage;
use diffusion_request::Decoder;

impl DiffusionPipeline {
    /// Decodes latents to images in the memory of the host.
    pub(super) fn decode(
        &self,
        latents: &Tensor,
        decoder: Decoder,
        chunks: Option<ChunkSize>,
    ) -> Result<Vec<RgbImage>> {
        let decoded = self.decode_to_bytes(latents, decoder, chunks)?;
        let on_host = decoded.iter().map(|bytes| self.stream.to_host(bytes));
        let on_host = on_host.collect::<Result<Vec<_>>>()?;
        self.stream.synchronize()?;
        let images = on_host.iter().map(images).collect::<Result<Vec<_>>>()?;
        Ok(images.into_iter().flatten().collect())
    }

    /// Decodes latents to bytes `[images, height, width, 3]` on the device, of one or more images each.
    pub(super) fn decode_to_bytes(
        &self,
        latents: &Tensor,
        decoder: Decoder,
        chunks: Option<ChunkSize>,
    ) -> Result<Vec<Tensor>> {
        let vae = match decoder {
            Decoder::Vae => ImageDecoder::Vae(&self.components.vae),
            Decoder::Tiny => {
                let tiny = self.components.vae_tiny.as_ref();
                ImageDecoder::Tiny(tiny.ok_or_else(|| Error::internal("a request for a decoder that is not loaded"))?)
            }
        };
        let latents = latents.f_to_kind(vae.kind())?.div_number(vae.scaling_factor())?;
        if self.components.decodes_together() {
            return Ok(vec![image_bytes(&vae.decode(&latents, chunks)?)?]);
        }
        // One image at a time: the device is busy with one, and the memory of all may not be there.
        let count = latents.size().first().copied().unwrap_or(0);
        let one = |index| image_bytes(&self.decode_one(&vae, &latents.f_narrow(0, index, 1)?, chunks)?);
        (0..count).map(one).collect()
    }

    /// Decodes the latents of one image. A GPU decodes them whole, and in chunks only if there is too little memory.
    fn decode_one(&self, vae: &ImageDecoder<'_>, latents: &Tensor, chunks: Option<ChunkSize>) -> Result<Tensor> {
        let device = self.components.device;
        if device == Device::Cpu {
            return vae.decode(latents, chunks);
        }
        match classify_errors(device, &self.stream, || vae.decode(latents, None)) {
            Err(Error::OutOfMemory(_)) if chunks.is_some() => {
                cuda::empty_cache(device)?;
                vae.decode(latents, chunks)
            }
            result => result,
        }
    }
}
