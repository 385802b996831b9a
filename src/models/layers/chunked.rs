//! Convolutions a chunk of lines at a time, for feature maps whose whole computation would not fit into memory.
//!
//! A chunk is computed with a halo: one more line on each side, which is dropped from the result. Chunks are therefore
//! exact but for rounding.

use tch::Tensor;

use diffusion_core::{Error, Result};

/// A feature map `[batch, channels, height, width]` of which some lines can be read.
pub trait FeatureMap {
    /// Height and width.
    fn height_width(&self) -> Result<(i64, i64)>;

    /// The lines from `start` up to and without `end`.
    fn lines(&self, start: i64, end: i64) -> Result<Tensor>;
}

impl FeatureMap for Tensor {
    fn height_width(&self) -> Result<(i64, i64)> {
        let (_, _, height, width) = self.size4()?;
        Ok((height, width))
    }

    fn lines(&self, start: i64, end: i64) -> Result<Tensor> {
        Ok(self.f_narrow(2, start, end - start)?)
    }
}

/// The size of a chunk; its number of lines follows from the width of the map.
#[derive(Clone, Copy, Debug)]
pub struct ChunkSize {
    /// Largest number of values of one channel. A chunk has at least 4 lines.
    pub values: i64,
}

impl ChunkSize {
    /// The number of chunks of a map.
    ///
    /// ```
    /// use triton_diffusion::models::layers::ChunkSize;
    ///
    /// // 16 lines each, and 4 lines in the last chunk.
    /// assert_eq!(ChunkSize { values: 1024 }.count(100, 64), 7);
    /// ```
    pub fn count(self, height: i64, width: i64) -> usize {
        self.chunks(height, width).count()
    }

    /// The first line of each chunk and the line behind its last.
    pub fn chunks(self, height: i64, width: i64) -> impl Iterator<Item = (i64, i64)> {
        let lines = (self.values / width.max(1)).max(4);
        (0..height)
            .step_by(usize::try_from(lines).unwrap_or(usize::MAX))
            .map(move |start| (start, (start + lines).min(height)))
    }
}

/// Applies `conv`, which must keep height and width and look at most one line up and down, chunk by chunk.
pub fn convolve(
    map: &impl FeatureMap,
    chunk_size: ChunkSize,
    conv: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (height, width) = map.height_width()?;
    let mut whole: Option<Tensor> = None;
    for (start, end) in chunk_size.chunks(height, width) {
        let lines = convolve_lines(map, start, end, &conv)?;
        let whole = match &mut whole {
            Some(whole) => whole,
            None => {
                let (batch, channels, _, _) = lines.size4()?;
                let options = (lines.kind(), lines.device());
                whole.insert(Tensor::f_empty([batch, channels, height, width], options)?)
            }
        };
        whole.lines(start, end)?.f_copy_(&lines)?;
    }
    whole.ok_or_else(|| Error::internal("empty feature map"))
}

/// The lines from `start` to `end` of `conv` of the whole map; see [`convolve`].
pub fn convolve_lines(
    map: &impl FeatureMap,
    start: i64,
    end: i64,
    conv: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (height, _) = map.height_width()?;
    let (first, last) = ((start - 1).max(0), (end + 1).min(height));
    conv(&map.lines(first, last)?)?.lines(start - first, end - first)
}
