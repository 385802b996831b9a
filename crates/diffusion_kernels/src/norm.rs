//! Norms over groups of channels and over the values of a row.

use std::ops::Range;

use crate::activation::Activation;
use crate::linear::{load, store};
use crate::map::Shape;
use crate::pool;
use crate::scratch::Scratch;
use crate::shared::Shared;
use crate::simd::{Kernel, Level, Simd};

/// Positions whose values are added up in float32; the sums of several are combined in float64.
const POSITION_BLOCK: usize = 256;
/// Rows of a layer norm that a task computes.
const ROW_BLOCK: usize = 32;

/// A normalization over groups of channels, separately for each batch entry, and an activation.
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm<'a> {
    /// The input.
    pub input: &'a [f32],
    /// Its shape.
    pub shape: Shape,
    /// The number of groups; divides the channels.
    pub groups: usize,
    /// The factor of each channel.
    pub weight: &'a [f32],
    /// Added to each channel.
    pub bias: &'a [f32],
    /// Added to the variance.
    pub eps: f64,
    /// What follows.
    pub activation: Activation,
}

impl GroupNorm<'_> {
    /// Computes the norm into `out`, of the shape of the input.
    ///
    /// # Panics
    /// If a slice has another length than its shape, or the groups do not divide the channels.
    pub fn compute(&self, out: &mut [f32]) {
        self.compute_with(Level::best(), out);
    }

    /// Does what [`GroupNorm::compute`] does with an instruction set.
    ///
    /// # Panics
    /// As [`GroupNorm::compute`].
    pub fn compute_with(&self, level: Level, out: &mut [f32]) {
        let Shape { batch, channels, .. } = self.shape;
        assert_eq!(self.input.len(), self.shape.len());
        assert_eq!(out.len(), self.shape.len());
        assert!(self.weight.len() == channels && self.bias.len() == channels);
        assert!(self.groups > 0 && channels.is_multiple_of(self.groups));
        if out.is_empty() {
            return;
        }
        let area = self.shape.height * self.shape.width;
        let blocks = area.div_ceil(POSITION_BLOCK);
        // For each block the sums and the sums of squares.
        let mut sums = Scratch::new(batch * blocks * 2 * channels);
        let mut factors = Scratch::new(batch * 2 * channels);
        let positions = |task: usize| {
            let (entry, block) = (task / blocks, task % blocks);
            let start = entry * area;
            (
                entry,
                start + block * POSITION_BLOCK..(start + (block + 1) * POSITION_BLOCK).min(start + area),
            )
        };
        let shared = Shared::new(sums.values());
        pool::for_each(batch * blocks, |task| {
            let (entry, positions) = positions(task);
            // SAFETY: the buffer has `2 · channels` values for each task.
            let to = unsafe { shared.pointer().add(task * 2 * channels) };
            let first = &self.input[entry * area * channels..][..channels];
            // SAFETY: each task has its own sums.
            unsafe {
                level.run(Sum {
                    input: self.input,
                    channels,
                    positions,
                    first,
                    to,
                })
            }
        });
        for entry in 0..batch {
            let sums = &sums.values()[entry * blocks * 2 * channels..][..blocks * 2 * channels];
            let first = &self.input[entry * area * channels..][..channels];
            self.factors(
                sums,
                first,
                &mut factors.values()[entry * 2 * channels..][..2 * channels],
            );
        }
        let factors = &*factors.values();
        let out = Shared::new(out);
        pool::for_each(batch * blocks, |task| {
            let (entry, positions) = positions(task);
            let factors = &factors[entry * 2 * channels..][..2 * channels];
            let apply = Apply {
                input: self.input,
                positions,
                factors,
                activation: self.activation,
                out: out.pointer(),
            };
            // SAFETY: each task has its own positions.
            unsafe { level.run(apply) }
        });
    }

    /// Computes the factor and the shift of each channel of an entry, `[2, channels]`, from the sums of its blocks.
    ///
    /// The sums are of differences to the `first` value of each channel, so that a large mean does not hide a small
    /// variance.
    fn factors(&self, sums: &[f32], first: &[f32], factors: &mut [f32]) {
        let channels = first.len();
        let in_group = channels / self.groups;
        let count = (self.shape.height * self.shape.width) as f64;
        let (scale, shift) = factors.split_at_mut(channels);
        for group in 0..self.groups {
            let members = group * in_group..(group + 1) * in_group;
            // Mean and sum of squared deviations of each channel, then of the group.
            let of_channel = |channel: usize| {
                let total = |at: usize| -> f64 { sums.chunks(2 * channels).map(|block| f64::from(block[at])).sum() };
                let (sum, squares) = (total(channel), total(channels + channel));
                (
                    f64::from(first[channel]) + sum / count,
                    (squares - sum * sum / count).max(0.0),
                )
            };
            let moments: Vec<_> = members.clone().map(of_channel).collect();
            let mean = moments.iter().map(|(mean, _)| mean).sum::<f64>() / in_group as f64;
            let squares: f64 = moments
                .iter()
                .map(|(of, squares)| squares + count * (of - mean) * (of - mean))
                .sum();
            let rstd = 1.0 / (squares / (count * in_group as f64) + self.eps).sqrt();
            for channel in members {
                let factor = f64::from(self.weight[channel]) * rstd;
                scale[channel] = factor as f32;
                shift[channel] = (f64::from(self.bias[channel]) - mean * factor) as f32;
            }
        }
    }
}

/// Adds up the values of each channel over some positions, and their squares.
struct Sum<'a> {
    input: &'a [f32],
    channels: usize,
    positions: Range<usize>,
    /// Subtracted from each channel.
    first: &'a [f32],
    to: *mut f32,
}

impl Kernel for Sum<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let channels = self.channels;
        // Four vectors at a time: few passes over the positions, each of whole cache lines.
        for lane in (0..channels).step_by(4 * S::LANES) {
            // SAFETY: the input has `channels` values for each position; `to` has twice as many.
            unsafe {
                let mut sums = [S::splat(0.0); 4];
                let mut squares = [S::splat(0.0); 4];
                let mut first = [S::splat(0.0); 4];
                let mut lanes = [0; 4];
                for i in 0..4 {
                    let at = lane + i * S::LANES;
                    lanes[i] = S::LANES.min(channels.saturating_sub(at));
                    if lanes[i] > 0 {
                        first[i] = load::<S>(self.first.as_ptr().add(at), lanes[i]);
                    }
                }
                for position in self.positions.clone() {
                    let from = self.input.as_ptr().add(position * channels + lane);
                    for i in 0..4 {
                        if lanes[i] > 0 {
                            let value = S::sub(load::<S>(from.add(i * S::LANES), lanes[i]), first[i]);
                            sums[i] = S::add(sums[i], value);
                            squares[i] = S::mul_add(value, value, squares[i]);
                        }
                    }
                }
                for i in 0..4 {
                    if lanes[i] > 0 {
                        store::<S>(self.to.add(lane + i * S::LANES), lanes[i], sums[i]);
                        store::<S>(self.to.add(channels + lane + i * S::LANES), lanes[i], squares[i]);
                    }
                }
            }
        }
    }
}

/// Multiplies each channel of some positions by its factor, adds its shift, and applies an activation.
struct Apply<'a> {
    input: &'a [f32],
    positions: Range<usize>,
    factors: &'a [f32],
    activation: Activation,
    out: *mut f32,
}

impl Kernel for Apply<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let channels = self.factors.len() / 2;
        let (scale, shift) = self.factors.split_at(channels);
        for position in self.positions {
            for lane in (0..channels).step_by(S::LANES) {
                let lanes = S::LANES.min(channels - lane);
                let at = position * channels + lane;
                // SAFETY: input and result have `channels` values for each position.
                unsafe {
                    let value = S::mul_add(
                        load::<S>(self.input.as_ptr().add(at), lanes),
                        load::<S>(scale.as_ptr().add(lane), lanes),
                        load::<S>(shift.as_ptr().add(lane), lanes),
                    );
                    store::<S>(self.out.add(at), lanes, self.activation.apply::<S>(value));
                }
            }
        }
    }
}

/// A normalization of each row.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a> {
    /// The input, rows of as many values as `weight` has.
    pub input: &'a [f32],
    /// The factor of each value.
    pub weight: &'a [f32],
    /// Added to each value.
    pub bias: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

impl LayerNorm<'_> {
    /// Computes the norm into `out`, of the shape of the input.
    ///
    /// # Panics
    /// If a slice has another length than the others need.
    pub fn compute(&self, out: &mut [f32]) {
        self.compute_with(Level::best(), out);
    }

    /// Does what [`LayerNorm::compute`] does with an instruction set.
    ///
    /// # Panics
    /// As [`LayerNorm::compute`].
    pub fn compute_with(&self, level: Level, out: &mut [f32]) {
        let size = self.weight.len();
        assert!(size > 0 && self.bias.len() == size);
        assert!(self.input.len().is_multiple_of(size) && out.len() == self.input.len());
        let rows = self.input.len() / size;
        let out = Shared::new(out);
        pool::for_each(rows.div_ceil(ROW_BLOCK), |task| {
            let rows = task * ROW_BLOCK..((task + 1) * ROW_BLOCK).min(rows);
            // SAFETY: each task has its own rows.
            unsafe {
                level.run(NormRows {
                    norm: self,
                    rows,
                    out: out.pointer(),
                })
            }
        });
    }
}

struct NormRows<'a> {
    norm: &'a LayerNorm<'a>,
    rows: Range<usize>,
    out: *mut f32,
}

impl Kernel for NormRows<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let LayerNorm {
            input,
            weight,
            bias,
            eps,
        } = *self.norm;
        let size = weight.len();
        for row in self.rows {
            // SAFETY: input and result have `size` values for each row.
            unsafe {
                let from = input.as_ptr().add(row * size);
                let to = self.out.add(row * size);
                let mut sums = S::splat(0.0);
                for lane in (0..size).step_by(S::LANES) {
                    sums = S::add(sums, load::<S>(from.add(lane), S::LANES.min(size - lane)));
                }
                let mean = total::<S>(sums) / size as f32;
                let mut squares = S::splat(0.0);
                for lane in (0..size).step_by(S::LANES) {
                    let lanes = S::LANES.min(size - lane);
                    let mut value = S::sub(load::<S>(from.add(lane), lanes), S::splat(mean));
                    if lanes < S::LANES {
                        // The values behind the row are no deviations.
                        let mut values = [0.0; 16];
                        store::<S>(values.as_mut_ptr(), lanes, value);
                        value = S::load(values.as_ptr());
                    }
                    squares = S::mul_add(value, value, squares);
                }
                let rstd = 1.0 / (total::<S>(squares) / size as f32 + eps).sqrt();
                for lane in (0..size).step_by(S::LANES) {
                    let lanes = S::LANES.min(size - lane);
                    let value = S::mul(S::sub(load::<S>(from.add(lane), lanes), S::splat(mean)), S::splat(rstd));
                    let (weight, bias) = (weight.as_ptr().add(lane), bias.as_ptr().add(lane));
                    let value = S::mul_add(value, load::<S>(weight, lanes), load::<S>(bias, lanes));
                    store::<S>(to.add(lane), lanes, value);
                }
            }
        }
    }
}

/// Adds up the values of a vector.
///
/// # Safety
/// The machine has the instruction set.
#[inline(always)]
unsafe fn total<S: Simd>(vector: S::V) -> f32 {
    let mut values = [0.0; 16];
    // SAFETY: 16 values hold every vector.
    unsafe { S::store(values.as_mut_ptr(), vector) }
    values.iter().sum()
}
