//! Pillow's `Image.resize`, equal to the byte.
//!
//! Two passes, one horizontal and one vertical, with weights in fixed point; each pass rounds to 8 bits. A pass whose axis
//! keeps its size is skipped. Depth maps are resized in floats as Pillow's mode `F`: sums in double precision, results in
//! single precision.
//!
//! Source: Pillow 13.0, `src/libImaging/Resample.c` and, for the nearest neighbor, `src/libImaging/Geometry.c`
//! (`ImagingScaleAffine`).

mod coefficients;

use self::coefficients::{Coefficients, PRECISION_BITS, Span};
use crate::{DepthMap, Raster};
use diffusion_core::{Error, Result};

/// A resampling filter, with Pillow's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    /// The nearest pixel.
    Nearest,
    /// Triangle of one pixel to either side.
    Bilinear,
    /// Keys' cubic convolution with a = -0.5, two pixels to either side. Pillow's default for `Image.resize`.
    Bicubic,
    /// Windowed sinc, three pixels to either side. The default of diffusers' `VaeImageProcessor`.
    Lanczos,
}

/// Resizes an image or a mask as Pillow's `image.resize((width, height), filter)` does; copies if the size stays.
///
/// # Errors
/// Internal if `width` or `height` is 0.
pub fn resize<const N: usize>(image: &Raster<N>, width: u32, height: u32, filter: Filter) -> Result<Raster<N>> {
    resize_part(image, Part::whole(image.size()), width, height, filter)
}

/// Resizes a depth map as Pillow resizes an image of mode `F`.
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

/// A rectangle of an image in whole pixels. Pillow allows one without area: the edge between two lines or columns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Part {
    x: Span,
    y: Span,
}

impl Part {
    /// Returns all of an image of that width and height.
    pub(super) fn whole((width, height): (u32, u32)) -> Self {
        Self {
            x: Span { start: 0, end: width },
            y: Span { start: 0, end: height },
        }
    }

    /// Returns the edge above line `y` (or below the last line).
    pub(super) fn between_lines(self, y: u32) -> Self {
        Self {
            y: Span { start: y, end: y },
            ..self
        }
    }

    /// Returns the edge to the left of column `x` (or to the right of the last column).
    pub(super) fn between_columns(self, x: u32) -> Self {
        Self {
            x: Span { start: x, end: x },
            ..self
        }
    }
}

/// Resizes as `image.resize((width, height), filter, box)` does, with a filter that has weights.
pub(super) fn resize_part<const N: usize>(
    image: &Raster<N>,
    part: Part,
    width: u32,
    height: u32,
    filter: Filter,
) -> Result<Raster<N>> {
    let source = size(image.width(), image.height());
    let values = samples::<N>(image.samples(), part, source, target(width, height)?, filter);
    Raster::new(width, height, values)
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
        (Some(horizontal), None) => horizontal_pass::<N>(pixels, line, target.0, &horizontal),
        (None, Some(vertical)) => vertical_pass(pixels, line, 0, &vertical),
        (Some(horizontal), Some(vertical)) if horizontal_first(source, target) => {
            // Only the lines that the second pass needs.
            let needed = vertical.needed();
            let pixels = &pixels[needed.start * line..needed.end * line];
            let stretched = horizontal_pass::<N>(pixels, line, target.0, &horizontal);
            vertical_pass(&stretched, target.0 * N, needed.start, &vertical)
        }
        (Some(horizontal), Some(vertical)) => {
            let stretched = vertical_pass(pixels, line, 0, &vertical);
            horizontal_pass::<N>(&stretched, line, target.0, &horizontal)
        }
    }
}

/// Returns whether the horizontal pass comes first. The order decides the rounding. Since 13.0, Pillow starts with the
/// vertical pass if the height loses more than twice as many pixels as the width.
fn horizontal_first(source: Size, target: Size) -> bool {
    let lost = |from: usize, to: usize| from as i64 - to as i64;
    let height = lost(source.1, target.1);
    height <= 0 || height <= lost(source.0, target.0) * 2
}

/// Resizes lines of `line` bytes each.
fn horizontal_pass<const N: usize>(pixels: &[u8], line: usize, width: usize, coefficients: &Coefficients) -> Vec<u8> {
    let fixed = coefficients.fixed();
    let mut result = vec![0; pixels.len() / line * width * N];
    let lines = pixels.chunks_exact(line).zip(result.chunks_exact_mut(width * N));
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
    result
}

/// Resizes columns of lines of `line` bytes each; `pixels` begins at line `first` of the source.
fn vertical_pass(pixels: &[u8], line: usize, first: usize, coefficients: &Coefficients) -> Vec<u8> {
    let fixed = coefficients.fixed();
    let mut result = Vec::with_capacity(fixed.len() * line);
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
        result.extend(sums.iter().map(|sum| clip8(*sum)));
    }
    result
}

/// One half in fixed point; with it, the shift rounds to nearest.
const HALF: i32 = 1 << (PRECISION_BITS - 1);

/// Converts a fixed-point sum to a byte.
fn clip8(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Resizes one channel of floats. Pillow sums in double precision and stores each pass in single precision.
fn floats(values: &[f32], source: Size, target: Size, filter: Filter) -> Vec<f32> {
    let sum = |values: &mut dyn Iterator<Item = f32>, weights: &[f64]| {
        let terms = values.zip(weights);
        terms.fold(0.0, |sum, (value, weight)| sum + f64::from(value) * weight) as f32
    };
    let horizontal = |values: &[f32]| -> Vec<f32> {
        let coefficients = Coefficients::new(source.0, Span::whole(source.0), target.0, filter);
        let line = |line: &[f32]| -> Vec<f32> {
            let windows = coefficients.exact();
            windows
                .map(|(window, weights)| sum(&mut line[window].iter().copied(), weights))
                .collect()
        };
        values.chunks_exact(source.0).flat_map(line).collect()
    };
    let vertical = |values: &[f32], width: usize| -> Vec<f32> {
        let coefficients = Coefficients::new(source.1, Span::whole(source.1), target.1, filter);
        let mut result = Vec::with_capacity(width * target.1);
        for (window, weights) in coefficients.exact() {
            let lines = &values[window.start * width..window.end * width];
            result.extend((0..width).map(|x| {
                let column = lines.iter().skip(x).step_by(width);
                sum(&mut column.copied(), weights)
            }));
        }
        result
    };
    match (source.0 != target.0, source.1 != target.1) {
        (false, false) => values.to_vec(),
        (true, false) => horizontal(values),
        (false, true) => vertical(values, source.0),
        (true, true) if horizontal_first(source, target) => vertical(&horizontal(values), target.0),
        (true, true) => horizontal(&vertical(values, source.0)),
    }
}

/// Picks the nearest source pixel for each result pixel of `N` channels.
fn nearest<T: Copy, const N: usize>(pixels: &[T], source: Size, target: Size) -> Vec<T> {
    let columns: Vec<usize> = centers(source.0, target.0).collect();
    let mut result = Vec::with_capacity(target.0 * target.1 * N);
    for y in centers(source.1, target.1) {
        let line = &pixels[y * source.0 * N..(y + 1) * source.0 * N];
        for x in &columns {
            result.extend_from_slice(&line[x * N..(x + 1) * N]);
        }
    }
    result
}

/// Returns the source pixel under the center of each target pixel. As in Pillow, positions are added up, not multiplied:
/// the two differ where a center is on an edge.
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
