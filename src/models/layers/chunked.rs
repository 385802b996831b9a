//! The VAE's decoder a chunk of rows at a time, for images whose feature maps would not fit into memory whole.
//!
//! The result is that of the whole but for rounding. A convolution of a chunk is given one more row on each side, which
//! is cut off again; a group norm, which needs to know the whole map, first measures it chunk by chunk. At each
//! resolution at most two whole maps are held, where the plain way holds six to eight: an upsampled map is computed anew
//! each time a chunk of it is needed, and a residual is added in place.

use tch::Tensor;

use super::group_norm::{GroupNorm, NormScale};
use super::resnet::{ResnetBlock2D, Upsample2D};
use crate::models::layers::{Conv2d, Rows, silu};
use diffusion_core::{Error, Result};

/// Rows of `height`, in order, `rows` at a time.
fn chunks(height: i64, rows: i64) -> impl Iterator<Item = (i64, i64)> {
    let rows = rows.max(1);
    (0..height)
        .step_by(usize::try_from(rows).unwrap_or(usize::MAX))
        .map(move |start| (start, (start + rows).min(height)))
}

/// A feature map whose chunks can be had.
pub enum Map<'a> {
    /// One that is there, `[rows, channels, height, width]`. Nobody else uses it.
    Whole(Tensor),
    /// What an upsampler makes of one that is there.
    Upsampled(Tensor, &'a Upsample2D),
}

impl Map<'_> {
    /// Height and width.
    fn size(&self) -> Result<(i64, i64)> {
        match self {
            Self::Whole(map) => {
                let (_, _, height, width) = map.size4()?;
                Ok((height, width))
            }
            Self::Upsampled(map, _) => {
                let (_, _, height, width) = map.size4()?;
                Ok((height * 2, width * 2))
            }
        }
    }

    /// Rows `from` to `to`.
    fn chunk(&self, from: i64, to: i64) -> Result<Tensor> {
        match self {
            Self::Whole(map) => Ok(map.f_narrow(2, from, to - from)?),
            Self::Upsampled(map, upsampler) => {
                // The rows below whose repetition gives these, and one more for the convolution.
                let height = map.size().get(2).copied().unwrap_or(0);
                let (first, last) = ((from / 2 - 1).max(0), ((to + 1) / 2 + 1).min(height));
                let part = map.f_narrow(2, first, last - first)?;
                let larger = upsampler.forward(&part, None, Rows::WHOLE)?;
                Ok(larger.f_narrow(2, from - first * 2, to - from)?)
            }
        }
    }
}

/// How a map is cut: rows of a chunk follow from its width.
#[derive(Clone, Copy, Debug)]
pub struct ChunkSize {
    /// Values of one channel in a chunk, at most; a chunk has at least 4 rows.
    pub values: i64,
}

impl ChunkSize {
    /// The chunks of a map of that size.
    pub fn count(self, height: i64, width: i64) -> usize {
        chunks(height, self.rows(width)).count()
    }

    fn rows(self, width: i64) -> i64 {
        (self.values / width.max(1)).max(4)
    }
}

/// `conv` of every chunk of `map`, with one row more on each side where there is one, joined to a whole.
///
/// # Errors
/// Out of memory.
pub fn convolve(map: &Map<'_>, size: ChunkSize, conv: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let (height, width) = map.size()?;
    let mut whole: Option<Tensor> = None;
    for (from, to) in chunks(height, size.rows(width)) {
        let made = conv_strip(map, from, to, height, &conv)?;
        let whole = match &mut whole {
            Some(whole) => whole,
            None => {
                let (rows, channels, _, _) = made.size4()?;
                let options = (made.kind(), made.device());
                whole.insert(Tensor::f_empty([rows, channels, height, width], options)?)
            }
        };
        whole.f_narrow(2, from, to - from)?.f_copy_(&made)?;
    }
    whole.ok_or_else(|| Error::internal("a map without rows"))
}

/// Rows `from` to `to` of what `conv` makes of the whole.
fn conv_strip(
    map: &Map<'_>,
    from: i64,
    to: i64,
    height: i64,
    conv: &impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (first, last) = ((from - 1).max(0), (to + 1).min(height));
    let made = conv(&map.chunk(first, last)?)?;
    Ok(made.f_narrow(2, from - first, to - from)?)
}

/// What a group norm does to a map, measured over its chunks.
fn measure(norm: &GroupNorm, map: &Map<'_>, size: ChunkSize) -> Result<NormScale> {
    let (height, width) = map.size()?;
    norm.measure(chunks(height, size.rows(width)).map(|(from, to)| map.chunk(from, to)))
}

/// A resnet without time. Takes the map, since it is changed in place where that can be.
///
/// # Errors
/// Out of memory.
pub fn resnet(block: &ResnetBlock2D, map: Map<'_>, size: ChunkSize) -> Result<Tensor> {
    let norm = measure(&block.norm1, &map, size)?;
    let hidden = Map::Whole(convolve(&map, size, |chunk| {
        let chunk = silu(&norm.apply(chunk)?, Rows::WHOLE)?;
        block.conv1.forward(&chunk, Rows::WHOLE)
    })?);
    let norm = measure(&block.norm2, &hidden, size)?;
    let conv2 = |chunk: &Tensor| {
        let chunk = silu(&norm.apply(chunk)?, Rows::WHOLE)?;
        block.conv2.forward(&chunk, Rows::WHOLE)
    };
    let (height, width) = map.size()?;
    if let (Map::Whole(residual), None) = (&map, &block.conv_shortcut) {
        for (from, to) in chunks(height, size.rows(width)) {
            let made = conv_strip(&hidden, from, to, height, &conv2)?;
            let _ = residual.f_narrow(2, from, to - from)?.f_add_(&made)?;
        }
        return Ok(residual.shallow_clone());
    }
    let whole = convolve(&hidden, size, conv2)?;
    for (from, to) in chunks(height, size.rows(width)) {
        let chunk = map.chunk(from, to)?;
        let residual = match &block.conv_shortcut {
            Some(shortcut) => shortcut.forward(&chunk.f_contiguous()?, Rows::WHOLE)?,
            None => chunk,
        };
        let _ = whole.f_narrow(2, from, to - from)?.f_add_(&residual)?;
    }
    Ok(whole)
}

/// A norm, SiLU and a convolution.
///
/// # Errors
/// Out of memory.
pub fn norm_and_conv(norm: &GroupNorm, conv: &Conv2d, map: &Map<'_>, size: ChunkSize) -> Result<Tensor> {
    let norm = measure(norm, map, size)?;
    convolve(map, size, |chunk| {
        conv.forward(&silu(&norm.apply(chunk)?, Rows::WHOLE)?, Rows::WHOLE)
    })
}
