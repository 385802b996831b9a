//! The memory that a request needs, from shapes alone.

use std::sync::Arc;

use tch::{Device, Kind};

use super::image_size::ImageSize;
use super::loading::Components;
use super::prompt_encoder::MAX_CHUNKS;
use super::stable_diffusion::steps_of;
use crate::adapters::JobAdapters;
use crate::models::layers::{ChunkSize, unsigned};
use diffusion_core::Result;
use diffusion_core::config::Numerics;
use diffusion_engine::MemoryNeed;
use diffusion_request::{Decoder, GenerateRequest, PipelineInputs, Preview, PromptSyntax};

/// The chunks of images that are decoded in chunks for lack of memory: 64 in an image of 1024x1024 pixels.
pub(super) const CHUNK_SIZE: ChunkSize = ChunkSize { values: 1 << 14 };
/// Tokens of a text that the UNet attends to. A weighted prompt has up to [`MAX_CHUNKS`] times as many.
const TOKENS: u64 = 77;
/// Tensors of the size of the latents that a job keeps: the latents, what a solver remembers, noise, mask and image, and
/// the last call of the UNet for previews.
const LATENT_COPIES: u64 = 14;
/// Maps of the fused size that the depth estimator holds at once.
const DEPTH_MAPS: u64 = 8;
/// The text encoder's activations, small tensors, and the kernels' buffers.
const SMALL: u64 = 32 << 20;
/// What rounding to huge pages adds to the maps of a step, at most.
const ROUNDING: u64 = 10 << 20;
/// Bytes of a pixel that becomes a file: the pixel, the filtered lines of a PNG, the compressed file and its base64 text.
const ENCODED_PIXEL: u64 = 12;

/// A request, and how its images are decoded.
#[derive(Clone, Debug)]
pub struct PipelineRequest {
    /// The request.
    pub request: GenerateRequest,
    /// Whether the VAE decodes an image chunk by chunk, which needs less memory and takes three times as long.
    pub decode_in_chunks: bool,
    /// The LoRAs of the request, loaded.
    pub adapters: Arc<JobAdapters>,
}

impl PipelineRequest {
    /// Gives the request its LoRAs.
    #[must_use]
    pub fn with_adapters(mut self, adapters: Arc<JobAdapters>) -> Self {
        self.adapters = adapters;
        self
    }
}

/// The images are decoded as the pipeline does by default, without LoRAs.
impl From<GenerateRequest> for PipelineRequest {
    fn from(request: GenerateRequest) -> Self {
        Self {
            request,
            decode_in_chunks: false,
            adapters: Arc::default(),
        }
    }
}

impl Components {
    /// Decides how to decode the images of a request: whole if `fits` accepts the memory, else in chunks if that is accepted.
    /// Returns the memory with the request.
    ///
    /// The images of exact numerics are always decoded whole. A GPU decodes in chunks only when it runs out of memory.
    ///
    /// # Errors
    /// That of `fits` for the smaller memory.
    pub fn plan(
        &self,
        request: GenerateRequest,
        max_chunk_pixels: u64,
        fits: impl Fn(MemoryNeed) -> Result<()>,
    ) -> Result<(PipelineRequest, MemoryNeed)> {
        let mut planned = PipelineRequest::from(request);
        let mut need = self.memory_need(&planned, max_chunk_pixels);
        if let Err(error) = fits(need) {
            if !self.is_fast() || !uses_vae(&planned.request) {
                return Err(error);
            }
            planned.decode_in_chunks = true;
            need = self.memory_need(&planned, max_chunk_pixels);
            fits(need)?;
        }
        Ok((planned, need))
    }

    /// Returns the memory that a request needs on the device, beyond the weights. The upscaler generates images of more than
    /// `max_chunk_pixels` pixels in tiles.
    pub fn memory_need(&self, planned: &PipelineRequest, max_chunk_pixels: u64) -> MemoryNeed {
        let request = &planned.request;
        let size = ImageSize::new(self, request, max_chunk_pixels);
        let at_once = steps_of(&request.inputs).at_once(&size);
        let fast = self.is_fast();
        let images = request.num_images_per_prompt as u64;
        let entries = request.unet_batch_size() as u64;

        let unet = self.unet.config();
        let bytes = bytes_of(self.unet.kind());
        let entries_at_once = if at_once.one_by_one { 1 } else { entries };
        let (tile_height, tile_width) = at_once.latents;
        let step = unet.activation_values(tile_height, tile_width, fast) * bytes * entries_at_once;
        let mut step = step + step.min(ROUNDING);
        if self.device == Device::Cpu && !fast {
            // libtorch computes with a copy of a weight, in float32 or in oneDNN's layout.
            step += unet.largest_kernel_values() * bytes;
        }

        let channels = unsigned(unet.in_channels) + LATENT_COPIES * unsigned(self.vae.config().latent_channels);
        let mut held = area(size.latents()) * channels * images * bytes;
        let tokens = match request.prompts.syntax() {
            PromptSyntax::Plain => TOKENS,
            PromptSyntax::Weighted => TOKENS * MAX_CHUNKS as u64,
        };
        // A batch of several jobs has a joined copy.
        held += 2 * unet.text_values() * tokens * entries * bytes;
        if request.deep_cache > 1 {
            let deepest = unet.block_out_channels.iter().map(|&count| unsigned(count)).max();
            held += deepest.unwrap_or(0) * area(size.latents()) * entries * bytes;
        }
        let files = request.input_pixels();
        // Inpainting keeps its images for the end.
        held += files.iter().map(|pixels| pixels * 4).sum::<u64>();
        let prepare = self.prepare_memory(request, &files, fast);
        let chunks = at_once.chunk_size.or(planned.decode_in_chunks.then_some(CHUNK_SIZE));
        let finish = self.finish_memory(request, chunks, fast);
        MemoryNeed {
            held: held + images * request.output_pixels() * ENCODED_PIXEL,
            step,
            alone: SMALL + prepare.max(finish),
        }
    }

    /// Returns what is needed to decode the input images, of that many pixels each, and to encode them to latents.
    fn prepare_memory(&self, request: &GenerateRequest, files: &[u64], fast: bool) -> u64 {
        let Some(largest) = files.iter().max() else {
            return 0;
        };
        // A file is decoded to 4 bytes for each pixel, and converted to 3.
        let decoded = largest * 8;
        let encoded = match &request.inputs {
            PipelineInputs::Text2Img(_) | PipelineInputs::Upscale(_) => 0,
            PipelineInputs::Img2Img(_) | PipelineInputs::Depth2Img(_) | PipelineInputs::Inpaint(_) => {
                let (height, width) = (request.height.into(), request.width.into());
                let values = self.vae.config().encoder_values(height, width, fast);
                values * bytes_of(self.vae.kind())
            }
        };
        let depth = self
            .depth
            .as_ref()
            .map_or(0, |depth| depth.model.config().fused_values());
        decoded
            .max(encoded)
            .max(depth * DEPTH_MAPS * bytes_of(self.unet.kind()))
    }

    /// Returns what decoding the latents needs.
    fn finish_memory(&self, request: &GenerateRequest, chunks: Option<ChunkSize>, fast: bool) -> u64 {
        let factor = self.vae.config().scale_factor();
        let (height, width) = (i64::from(request.height) / factor, i64::from(request.width) / factor);
        let images = request.num_images_per_prompt as u64;
        let together = if self.decodes_together() { images } else { 1 };
        // Chunks are of one image.
        let at_once = if chunks.is_some() { 1 } else { together };
        // The images in floats, and in bytes.
        let decoded = request.pixels() * (12 + 3 + 3) * together;
        let network = match (uses_vae(request), &self.vae_tiny) {
            (false, Some(tiny)) => {
                let channels = tiny.config().decoder_block_out_channels.first().copied().unwrap_or(0);
                // Input, two convolutions and the sum.
                unsigned(channels) * request.pixels() * 4 * bytes_of(tiny.kind())
            }
            _ => {
                let vae = self.vae.config();
                let values = match chunks {
                    Some(size) => vae.chunked_decoder_values(height, width, size, fast),
                    None => vae.decoder_values(height, width, fast),
                };
                values * bytes_of(self.vae.kind())
            }
        };
        network * at_once + decoded
    }

    /// Returns whether the CPU kernels of this crate compute the networks.
    fn is_fast(&self) -> bool {
        self.numerics == Numerics::Fast && self.device == Device::Cpu
    }

    /// Returns whether all images of a request are decoded in one call. Bytes of libtorch's CPU kernels depend on the batch,
    /// so diffusers' bytes need diffusers' batch.
    pub(super) fn decodes_together(&self) -> bool {
        self.device == Device::Cpu && self.numerics == Numerics::Exact
    }
}

/// Returns whether the VAE decodes the images or the previews of a request.
fn uses_vae(request: &GenerateRequest) -> bool {
    request.decoder == Decoder::Vae || request.preview == Some(Preview::Vae)
}

fn bytes_of(kind: Kind) -> u64 {
    kind.elt_size_in_bytes() as u64
}

fn area((height, width): (i64, i64)) -> u64 {
    unsigned(height) * unsigned(width)
}
