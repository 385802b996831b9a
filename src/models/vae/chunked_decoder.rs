//! The VAE's decoder a chunk of lines at a time, for images whose feature maps would not fit into memory.
//!
//! The result is that of the plain decoder but for rounding. Convolutions of a chunk are computed with a halo, and a
//! group norm, which depends on the whole map, first measures the map chunk by chunk. At each resolution at most two
//! whole maps are kept, where the plain decoder keeps six to eight: an upsampled map is computed again for each chunk of
//! it, and a residual is added in place.

use tch::Tensor;

use super::decoder::Decoder;
use crate::models::layers::{
    ChunkSize, Conv2d, FeatureMap, GroupNorm, GroupNormStats, ResnetBlock2D, Upsample2D, convolve, convolve_lines,
};
use diffusion_core::Result;

/// A feature map between two blocks.
enum Map<'a> {
    /// A map in memory, which nothing else uses.
    Stored(Tensor),
    /// The result of an upsampler for a map in memory.
    Upsampled(Tensor, &'a Upsample2D),
}

impl FeatureMap for Map<'_> {
    fn height_width(&self) -> Result<(i64, i64)> {
        match self {
            Self::Stored(map) => map.height_width(),
            Self::Upsampled(map, _) => {
                let (height, width) = map.height_width()?;
                Ok((height * 2, width * 2))
            }
        }
    }

    fn lines(&self, start: i64, end: i64) -> Result<Tensor> {
        match self {
            Self::Stored(map) => map.lines(start, end),
            Self::Upsampled(map, upsampler) => {
                // The smaller map's lines whose repetition gives these lines, and a halo for the convolution.
                let (height, _) = map.height_width()?;
                let (first, last) = ((start / 2 - 1).max(0), ((end + 1) / 2 + 1).min(height));
                let larger = upsampler.forward(&map.lines(first, last)?)?;
                larger.lines(start - first * 2, end - first * 2)
            }
        }
    }
}

/// Applies a measured norm, SiLU and a convolution to some lines.
fn norm_silu_conv(norm: &GroupNormStats, conv: &Conv2d, lines: &Tensor) -> Result<Tensor> {
    conv.forward(&norm.apply(lines)?.f_silu()?)
}

/// Measures a norm and applies it, SiLU and a convolution to a map.
fn norm_and_conv(norm: &GroupNorm, conv: &Conv2d, map: &Map<'_>, chunk_size: ChunkSize) -> Result<Tensor> {
    let norm = norm.stats(map, chunk_size)?;
    convolve(map, chunk_size, |lines| norm_silu_conv(&norm, conv, lines))
}

/// Applies a resnet without time. The residual is added to the memory of `map` where its channels stay.
fn resnet(block: &ResnetBlock2D, map: Map<'_>, chunk_size: ChunkSize) -> Result<Tensor> {
    let hidden = Map::Stored(norm_and_conv(&block.norm1, &block.conv1, &map, chunk_size)?);
    let norm = block.norm2.stats(&hidden, chunk_size)?;
    let conv2 = |lines: &Tensor| norm_silu_conv(&norm, &block.conv2, lines);
    let (height, width) = map.height_width()?;
    if let (Map::Stored(residual), None) = (&map, &block.conv_shortcut) {
        for (start, end) in chunk_size.chunks(height, width) {
            let lines = convolve_lines(&hidden, start, end, conv2)?;
            let _ = residual.lines(start, end)?.f_add_(&lines)?;
        }
        return Ok(residual.shallow_clone());
    }
    let output = convolve(&hidden, chunk_size, conv2)?;
    for (start, end) in chunk_size.chunks(height, width) {
        let lines = map.lines(start, end)?;
        let residual = match &block.conv_shortcut {
            Some(shortcut) => shortcut.forward(&lines.f_contiguous()?)?,
            None => lines,
        };
        let _ = output.lines(start, end)?.f_add_(&residual)?;
    }
    Ok(output)
}

impl Decoder {
    /// As [`Decoder::forward`], chunk by chunk from the middle block on.
    pub(super) fn forward_chunked(&self, latents: &Tensor, chunk_size: ChunkSize) -> Result<Tensor> {
        let hidden = self.conv_in.forward(latents)?;
        let mut map = Map::Stored(self.mid_block.forward(&hidden)?);
        drop(hidden);
        for (resnets, upsampler) in &self.up_blocks {
            for block in resnets {
                map = Map::Stored(resnet(block, map, chunk_size)?);
            }
            map = match (map, upsampler) {
                (Map::Stored(hidden), Some(upsampler)) => Map::Upsampled(hidden, upsampler),
                (map, _) => map,
            };
        }
        norm_and_conv(&self.conv_norm_out, &self.conv_out, &map, chunk_size)
    }
}
