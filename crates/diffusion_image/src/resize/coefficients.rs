//! The weights of one pass of a resize.

use std::f64::consts::PI;
use std::ops::Range;

use super::Filter;

/// Fractional bits of a weight in 8-bit arithmetic. Of 32 bits, 8 are for the sample and 2 for sums below 0 or above 255,
/// which the negative lobes of a filter cause.
pub(super) const PRECISION_BITS: u32 = 32 - 8 - 2;

/// A part of one axis of the source, from `start` to `end` pixels; may be empty.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) end: u32,
}

impl Span {
    /// Returns the whole of an axis.
    pub(super) fn whole(size: usize) -> Self {
        Self {
            start: 0,
            end: u32::try_from(size).unwrap_or(u32::MAX),
        }
    }
}

/// The source pixels and weights of each result pixel.
///
/// Source: Pillow, `src/libImaging/Resample.c` (`precompute_coeffs`).
pub(super) struct Coefficients {
    /// The source pixels of each result pixel.
    windows: Vec<Range<usize>>,
    /// `stride` weights for each result pixel; those beyond its window are unused.
    weights: Vec<f64>,
    stride: usize,
}

impl Coefficients {
    /// Computes the weights to resize the `span` of an axis of `source` pixels to `target` pixels.
    pub(super) fn new(source: usize, span: Span, target: usize, filter: Filter) -> Self {
        // Pillow stores both ends in single precision.
        let (start, end) = (span.start as f32, span.end as f32);
        let scale = f64::from(end - start) / target as f64;
        // A wider filter low-pass filters an image that shrinks.
        let filter_scale = scale.max(1.0);
        let support = filter.support() * filter_scale;
        let stride = support.ceil() as usize * 2 + 1;
        let inverse = 1.0 / filter_scale;
        let mut windows = Vec::with_capacity(target);
        let mut weights = vec![0.0; target * stride];
        for (index, row) in weights.chunks_exact_mut(stride).enumerate() {
            let center = f64::from(start) + (index as f64 + 0.5) * scale;
            // Casts of negative numbers give zero, the bound that C sets afterwards.
            let first = (center - support + 0.5) as usize;
            let last = ((center + support + 0.5) as usize).clamp(first, source.max(first));
            let mut sum = 0.0;
            for (weight, x) in row.iter_mut().zip(first..last) {
                *weight = filter.weight((x as f64 - center + 0.5) * inverse);
                sum += *weight;
            }
            if sum != 0.0 {
                for weight in row.iter_mut().take(last - first) {
                    *weight /= sum;
                }
            }
            windows.push(first..last);
        }
        Self {
            windows,
            weights,
            stride,
        }
    }

    /// Returns the range of source pixels that any result pixel needs.
    pub(super) fn needed(&self) -> Range<usize> {
        let start = self.windows.first().map_or(0, |window| window.start);
        let end = self.windows.last().map_or(0, |window| window.end);
        start..end.max(start)
    }

    /// Iterates over the windows with their weights in double precision.
    pub(super) fn exact(&self) -> impl Iterator<Item = (Range<usize>, &[f64])> {
        let rows = self.weights.chunks_exact(self.stride);
        self.windows
            .iter()
            .zip(rows)
            .map(|(window, row)| (window.clone(), &row[..window.len()]))
    }

    /// Returns the weights in fixed point with [`PRECISION_BITS`] fractional bits; halves round away from zero.
    pub(super) fn fixed(&self) -> FixedCoefficients<'_> {
        let one = f64::from(1u32 << PRECISION_BITS);
        let weights = self.weights.iter().map(|weight| {
            let half = if *weight < 0.0 { -0.5 } else { 0.5 };
            (half + weight * one) as i32
        });
        FixedCoefficients {
            windows: &self.windows,
            weights: weights.collect(),
            stride: self.stride,
        }
    }
}

/// [`Coefficients`] for 8-bit samples.
pub(super) struct FixedCoefficients<'a> {
    windows: &'a [Range<usize>],
    weights: Vec<i32>,
    stride: usize,
}

impl FixedCoefficients<'_> {
    /// Returns the number of result pixels.
    pub(super) fn len(&self) -> usize {
        self.windows.len()
    }

    /// Iterates over the windows with their weights.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Range<usize>, &[i32])> {
        let rows = self.weights.chunks_exact(self.stride);
        self.windows
            .iter()
            .zip(rows)
            .map(|(window, row)| (window.clone(), &row[..window.len()]))
    }
}

impl Filter {
    /// Returns the reach of the filter to either side, in source pixels of an image that does not shrink.
    fn support(self) -> f64 {
        match self {
            // Unused: nearest neighbor has no weights.
            Self::Nearest => 0.5,
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// Returns the filter's value at `x` pixels from its center.
    ///
    /// Source: Pillow, `src/libImaging/Resample.c`; the bicubic one is Keys' convolution with a = -0.5.
    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Nearest => {
                if -0.5 < x && x <= 0.5 {
                    1.0
                } else {
                    0.0
                }
            }
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Bicubic => bicubic(x.abs()),
            Self::Lanczos => {
                if (-3.0..3.0).contains(&x) {
                    sinc(x) * sinc(x / 3.0)
                } else {
                    0.0
                }
            }
        }
    }
}

/// Computes in Pillow's order: another order rounds differently.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * PI;
    x.sin() / x
}
