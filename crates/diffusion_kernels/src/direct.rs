//! Convolutions as products with the neighborhood of each position.

use std::ops::Range;

use crate::conv::{Conv3x3, TAPS};
use crate::linear::{divide, load, store};
use crate::map::{Nearest, Shape};
use crate::pool;
use crate::product::{Rows, Sums, products, row_chunks};
use crate::scratch::Scratch;
use crate::shared::Shared;
use crate::simd::{Kernel, Level, Simd};
use crate::values::{Part, pack};

/// Positions whose neighborhoods are gathered together.
const POSITION_BLOCK: usize = 24;
/// The most groups of outputs of a task.
const MAX_GROUPS: usize = 4;
/// Channels whose kernels are reordered at a time.
const PACK_BLOCK: usize = 16;

/// Computes a convolution.
pub fn compute(conv: &Conv3x3<'_>, level: Level, out: &mut [f32]) {
    let result = conv.result_shape();
    let groups = conv.outputs.div_ceil(level.columns());
    let threads = pool::threads();
    let blocks = divide(groups, MAX_GROUPS, threads);
    let positions = result.positions();
    let parts = if blocks >= threads {
        1
    } else {
        4 * threads.div_ceil(blocks)
    };
    let parts = parts.min(positions.div_ceil(POSITION_BLOCK));
    let out = Shared::new(out);
    pool::for_each(blocks * parts, |task| {
        let (block, part) = (task / parts, task % parts);
        let task = Direct {
            conv,
            result,
            groups: groups * block / blocks..groups * (block + 1) / blocks,
            positions: positions * part / parts..positions * (part + 1) / parts,
            out: out.pointer(),
        };
        // SAFETY: tasks write different channels or different positions.
        unsafe { level.run(task) }
    });
}

struct Direct<'a> {
    conv: &'a Conv3x3<'a>,
    result: Shape,
    groups: Range<usize>,
    positions: Range<usize>,
    out: *mut f32,
}

impl Kernel for Direct<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let depth = self.conv.shape.channels * TAPS;
        let width = self.groups.len() * S::COLUMNS;
        let lens = [
            depth * width,
            POSITION_BLOCK * depth,
            POSITION_BLOCK * width,
            PACK_BLOCK * TAPS * S::COLUMNS,
        ];
        let mut buffer = Scratch::new(lens.iter().sum());
        let (kernels, rest) = buffer.values().split_at_mut(lens[0]);
        let (gathered, rest) = rest.split_at_mut(lens[1]);
        let (sums, packed) = rest.split_at_mut(lens[2]);
        // SAFETY: the lengths above.
        unsafe {
            for (number, kernels) in self.groups.clone().zip(kernels.chunks_mut(depth * S::COLUMNS)) {
                self.pack::<S>(number, packed, kernels);
            }
            for start in self.positions.clone().step_by(POSITION_BLOCK) {
                let positions = start..(start + POSITION_BLOCK).min(self.positions.end);
                for (position, to) in positions.clone().zip(gathered.chunks_mut(depth)) {
                    self.gather(position, to);
                }
                let input = Rows {
                    data: gathered.as_ptr(),
                    stride: depth,
                };
                for (row, rows) in row_chunks::<S>(positions.len()) {
                    for group in 0..self.groups.len() {
                        let data = sums.as_mut_ptr().add(row * width + group * S::COLUMNS);
                        let sums = Sums {
                            data,
                            stride: width,
                            add: false,
                        };
                        let columns = kernels.as_ptr().add(group * depth * S::COLUMNS);
                        products::<S>(rows, depth, input.from(row), columns, sums);
                    }
                }
                self.finish::<S>(positions, sums);
            }
        }
    }
}

impl Direct<'_> {
    /// Copies the kernels of a group of outputs in the order in which neighborhoods are gathered:
    /// `[3, 3, channels, S::COLUMNS]`.
    #[inline(always)]
    unsafe fn pack<S: Simd>(&self, group: usize, packed: &mut [f32], to: &mut [f32]) {
        let channels = self.conv.shape.channels;
        let row = group * S::COLUMNS;
        for first in (0..channels).step_by(PACK_BLOCK) {
            let count = PACK_BLOCK.min(channels - first);
            let part = Part {
                row,
                rows: S::COLUMNS.min(self.conv.outputs - row),
                stride: channels * TAPS,
                first: first * TAPS,
                count: count * TAPS,
            };
            // SAFETY: `packed` holds `PACK_BLOCK` kernels.
            unsafe { pack::<S>(self.conv.weight, part, packed.as_mut_ptr()) }
            for (at, values) in packed.chunks(S::COLUMNS).take(count * TAPS).enumerate() {
                let (channel, tap) = (first + at / TAPS, at % TAPS);
                to[(tap * channels + channel) * S::COLUMNS..][..S::COLUMNS].copy_from_slice(values);
            }
        }
    }

    /// Copies the neighborhood of a position of the result: `[3, 3, channels]`.
    #[inline(always)]
    fn gather(&self, position: usize, to: &mut [f32]) {
        let (conv, shape) = (self.conv, self.conv.shape);
        let (line, column) = (position / self.result.width, position % self.result.width);
        let (entry, line) = (line / self.result.height, line % self.result.height);
        let (lines, columns) = (
            Nearest::new(shape.height, conv.size.0),
            Nearest::new(shape.width, conv.size.1),
        );
        let padding = usize::from(!conv.pad_end);
        for (tap, to) in to.chunks_mut(shape.channels).enumerate() {
            let (line, column) = (line * conv.stride + tap / 3, column * conv.stride + tap % 3);
            let inside = |at: usize, side: usize| (padding..side + padding).contains(&at);
            if inside(line, conv.size.0) && inside(column, conv.size.1) {
                let line = entry * shape.height + lines.source(line - padding);
                let from = (line * shape.width + columns.source(column - padding)) * shape.channels;
                to.copy_from_slice(&conv.input[from..from + shape.channels]);
            } else {
                to.fill(0.0);
            }
        }
    }

    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, positions: Range<usize>, sums: &[f32]) {
        let outputs = self.conv.outputs;
        let width = self.groups.len() * S::COLUMNS;
        let first = self.groups.start * S::COLUMNS;
        let area = self.result.height * self.result.width;
        for (position, sums) in positions.zip(sums.chunks(width)) {
            let bias = self.conv.bias_of(position / area);
            for lane in (0..width.min(outputs - first)).step_by(S::LANES) {
                let channel = first + lane;
                let lanes = S::LANES.min(outputs - channel);
                let at = position * outputs + channel;
                // SAFETY: the sums have `width` values for each position; `lanes` results are this task's.
                unsafe {
                    let mut value = S::load(sums.as_ptr().add(lane));
                    if let Some(bias) = bias {
                        value = S::add(value, load::<S>(bias.as_ptr().add(channel), lanes));
                    }
                    if let Some(add) = self.conv.add {
                        value = S::add(value, load::<S>(add.as_ptr().add(at), lanes));
                    }
                    store::<S>(self.out.add(at), lanes, value);
                }
            }
        }
    }
}
