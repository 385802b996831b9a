//! `Image.resize` of Pillow, to the byte.
//!
//! Two passes, one along the rows and one along the columns, with the weights in fixed point and the result of each pass
//! rounded to 8 bits. A pass whose axis keeps its size is left out. Depth maps go the same way in floats, as Pillow's mode
//! `F` does: sums in double precision, results in single.
//!
//! Source: Pillow 13.0, `src/libImaging/Resample.c` and, for the nearest neighbour, `src/libImaging/Geometry.c`
//! (`ImagingScaleAffine`).

mod coefficients;

use self::coefficients::{Coefficients, PRECISION_BITS, Span};
use crate::DepthMap;
use crate::Mask;
use crate::RgbImage;
use diffusion_core::{Error, Result};

/// How an image is sampled anew; the names are Pillow's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    /// The pixel under the centre.
    Nearest,
    /// Triangle of one pixel to either side.
    Bilinear,
    /// Keys' cubic convolution with a = -0.5, two pixels to either side. Pillow's default for `Image.resize`.
    Bicubic,
    /// Windowed sinc, three pixels to either side. The default of diffusers' `VaeImageProcessor`.
    Lanczos,
}

/// `image.resize((width, height), filter)`. A copy if the size stays.
///
/// # Errors
/// Internal if `width` or `height` is 0.
pub fn rgb(image: &RgbImage, width: u32, height: u32, filter: Filter) -> Result<RgbImage> {
    let whole = Part::whole((image.width(), image.height()));
    rgb_part(image, whole, width, height, filter)
}

/// [`rgb`] for a mask or another image of one channel.
///
/// # Errors
/// Internal if `width` or `height` is 0.
pub fn mask(image: &Mask, width: u32, height: u32, filter: Filter) -> Result<Mask> {
    let whole = Part::whole((image.width(), image.height()));
    mask_part(image, whole, width, height, filter)
}

/// [`rgb`] for a depth map, as Pillow resizes an image of mode `F`.
///
/// # Errors
/// Internal if `width` or `height` is 0.
pub fn depth(map: &DepthMap, width: u32, height: u32, filter: Filter) -> Result<DepthMap> {
    let source = size(map.width(), map.height());
    let target = target(width, height)?;
    let values = match filter {
        _ if source == target => map.values().to_vec(),
        Filter::Nearest => nearest::<f32, 1>(map.values(), source, target),
        _ => floats(map.values(), source, target, filter),
    };
    DepthMap::new(width, height, map.bits(), values)
}

/// A rectangle of an image in whole pixels, from `left` and `top` up to and without `right` and `bottom`. Pillow allows
/// one without area, which is the edge between two rows or columns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Part {
    x: Span,
    y: Span,
}

impl Part {
    /// All of an image of that width and height.
    pub(super) fn whole((width, height): (u32, u32)) -> Self {
        Self {
            x: Span { start: 0, end: width },
            y: Span { start: 0, end: height },
        }
    }

    /// The edge above row `y` (or below the last one).
    pub(super) fn between_rows(self, y: u32) -> Self {
        Self {
            y: Span { start: y, end: y },
            ..self
        }
    }

    /// The edge to the left of column `x` (or to the right of the last one).
    pub(super) fn between_columns(self, x: u32) -> Self {
        Self {
            x: Span { start: x, end: x },
            ..self
        }
    }
}

/// `image.resize((width, height), filter, box)` with a filter that has weights.
pub(super) fn rgb_part(image: &RgbImage, part: Part, width: u32, height: u32, filter: Filter) -> Result<RgbImage> {
    let values = samples::<3>(
        image.rgb(),
        part,
        size(image.width(), image.height()),
        target(width, height)?,
        filter,
    );
    RgbImage::new(width, height, values)
}

/// [`rgb_part`] for one channel.
pub(super) fn mask_part(image: &Mask, part: Part, width: u32, height: u32, filter: Filter) -> Result<Mask> {
    let values = samples::<1>(
        image.values(),
        part,
        size(image.width(), image.height()),
        target(width, height)?,
        filter,
    );
    Mask::new(width, height, values)
}

/// Width and height.
type Size = (usize, usize);

fn size(width: u32, height: u32) -> Size {
    (width as usize, height as usize)
}

fn target(width: u32, height: u32) -> Result<Size> {
    if width == 0 || height == 0 {
        return Err(Error::internal(format!(
            "an image cannot be resized to {width}x{height} pixels"
        )));
    }
    Ok(size(width, height))
}

/// Resizes images of `N` 8-bit channels.
fn samples<const N: usize>(pixels: &[u8], part: Part, source: Size, target: Size, filter: Filter) -> Vec<u8> {
    let is_whole = part.x == Span::whole(source.0) && part.y == Span::whole(source.1);
    if is_whole && source == target {
        return pixels.to_vec();
    }
    if filter == Filter::Nearest {
        return nearest::<u8, N>(pixels, source, target);
    }
    let horizontal = (source.0 != target.0 || part.x != Span::whole(source.0))
        .then(|| Coefficients::new(source.0, part.x, target.0, filter));
    let vertical = (source.1 != target.1 || part.y != Span::whole(source.1))
        .then(|| Coefficients::new(source.1, part.y, target.1, filter));
    let line = source.0 * N;
    match (horizontal, vertical) {
        (None, None) => pixels.to_vec(),
        (Some(horizontal), None) => rows::<N>(pixels, line, target.0, &horizontal),
        (None, Some(vertical)) => columns(pixels, line, 0, &vertical),
        (Some(horizontal), Some(vertical)) if rows_go_first(source, target) => {
            // Only the lines that the second pass looks at.
            let needed = vertical.needed();
            let pixels = &pixels[needed.start * line..needed.end * line];
            let stretched = rows::<N>(pixels, line, target.0, &horizontal);
            columns(&stretched, target.0 * N, needed.start, &vertical)
        }
        (Some(horizontal), Some(vertical)) => {
            let stretched = columns(pixels, line, 0, &vertical);
            rows::<N>(&stretched, line, target.0, &horizontal)
        }
    }
}

/// Whether the pass along the rows is the first of two. The order decides what is rounded, and Pillow takes the columns
/// first where that saves work: since 13.0, where the height loses more than twice as many pixels as the width.
fn rows_go_first(source: Size, target: Size) -> bool {
    let lost = |from: usize, to: usize| from as i64 - to as i64;
    let height = lost(source.1, target.1);
    height <= 0 || height <= lost(source.0, target.0) * 2
}

/// The pass along the rows of `line` bytes each.
fn rows<const N: usize>(pixels: &[u8], line: usize, width: usize, coefficients: &Coefficients) -> Vec<u8> {
    let fixed = coefficients.fixed();
    let mut made = vec![0; pixels.len() / line * width * N];
    let lines = pixels.chunks_exact(line).zip(made.chunks_exact_mut(width * N));
    for (from, to) in lines {
        for ((window, weights), to) in fixed.iter().zip(to.chunks_exact_mut(N)) {
            let mut sums = [HALF; N];
            let pixels = from[window.start * N..window.end * N].chunks_exact(N);
            for (pixel, weight) in pixels.zip(weights) {
                for (sum, sample) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*sample) * weight;
                }
            }
            for (to, sum) in to.iter_mut().zip(sums) {
                *to = clip8(sum);
            }
        }
    }
    made
}

/// The pass along the columns of rows of `line` bytes each; `pixels` begins at row `first` of the source.
fn columns(pixels: &[u8], line: usize, first: usize, coefficients: &Coefficients) -> Vec<u8> {
    let fixed = coefficients.fixed();
    let mut made = Vec::with_capacity(fixed.len() * line);
    let mut sums = vec![HALF; line];
    for (window, weights) in fixed.iter() {
        sums.fill(HALF);
        let (start, end) = (window.start - first, window.end - first);
        let lines = pixels[start * line..end * line].chunks_exact(line);
        for (from, weight) in lines.zip(weights) {
            for (sum, sample) in sums.iter_mut().zip(from) {
                *sum += i32::from(*sample) * weight;
            }
        }
        made.extend(sums.iter().map(|sum| clip8(*sum)));
    }
    made
}

/// One half in fixed point, so that the shift rounds to nearest.
const HALF: i32 = 1 << (PRECISION_BITS - 1);

/// A fixed-point sum as a byte.
fn clip8(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Resizes one channel of floats. Pillow adds in double precision and stores each pass in single.
fn floats(values: &[f32], source: Size, target: Size, filter: Filter) -> Vec<f32> {
    let sum = |values: &mut dyn Iterator<Item = f32>, weights: &[f64]| {
        let terms = values.zip(weights);
        terms.fold(0.0, |sum, (value, weight)| sum + f64::from(value) * weight) as f32
    };
    let along_rows = |values: &[f32]| -> Vec<f32> {
        let coefficients = Coefficients::new(source.0, Span::whole(source.0), target.0, filter);
        let line = |line: &[f32]| -> Vec<f32> {
            let windows = coefficients.exact();
            windows
                .map(|(window, weights)| sum(&mut line[window].iter().copied(), weights))
                .collect()
        };
        values.chunks_exact(source.0).flat_map(line).collect()
    };
    let along_columns = |values: &[f32], width: usize| -> Vec<f32> {
        let coefficients = Coefficients::new(source.1, Span::whole(source.1), target.1, filter);
        let mut made = Vec::with_capacity(width * target.1);
        for (window, weights) in coefficients.exact() {
            let lines = &values[window.start * width..window.end * width];
            made.extend((0..width).map(|x| {
                let column = lines.iter().skip(x).step_by(width);
                sum(&mut column.copied(), weights)
            }));
        }
        made
    };
    match (source.0 != target.0, source.1 != target.1) {
        (false, false) => values.to_vec(),
        (true, false) => along_rows(values),
        (false, true) => along_columns(values, source.0),
        (true, true) if rows_go_first(source, target) => along_columns(&along_rows(values), target.0),
        (true, true) => along_rows(&along_columns(values, source.0)),
    }
}

/// The pixel under the centre of each result pixel, for `N` channels of any kind.
fn nearest<T: Copy, const N: usize>(pixels: &[T], source: Size, target: Size) -> Vec<T> {
    let columns: Vec<usize> = centers(source.0, target.0).collect();
    let mut made = Vec::with_capacity(target.0 * target.1 * N);
    for y in centers(source.1, target.1) {
        let line = &pixels[y * source.0 * N..(y + 1) * source.0 * N];
        for x in &columns {
            made.extend_from_slice(&line[x * N..(x + 1) * N]);
        }
    }
    made
}

/// Which of `source` pixels lies under the centre of each of `target` pixels. Pillow adds the distance up instead of
/// multiplying, and so do we: where a centre falls on an edge, the two differ.
fn centers(source: usize, target: usize) -> impl Iterator<Item = usize> {
    let step = f64::from(source as f32) / target as f64;
    let mut position = step * 0.5;
    (0..target).map(move |_| {
        let pixel = position as usize;
        position += step;
        pixel.min(source - 1)
    })
}

#[cfg(test)]
mod tests;
