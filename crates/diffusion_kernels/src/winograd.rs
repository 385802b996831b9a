//! Winograd's convolutions F(MxM, 3x3): a tile of M x M results costs A x A products instead of 9·M·M, with A = M + 2.
//!
//! The input of each tile and the kernel of each pair of channels are transformed to A x A values. The results of a tile
//! are the transform of the sums over the channels. The transformed kernels, which are larger than the kernels by A²/9,
//! are made anew at each use, in the caches: that takes less time than reading them from memory.
//!
//! Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), for the matrices.

#![expect(clippy::needless_range_loop, reason = "the indices are those of the formulas")]

use std::ops::Range;

use crate::conv::{Conv3x3, TAPS};
use crate::linear::{divide, load, store};
use crate::map::Nearest;
use crate::pool;
use crate::product::{Rows, Sums, products, row_chunks};
use crate::scratch::Scratch;
use crate::shared::Shared;
use crate::simd::{Kernel, Level, Simd};
use crate::values::{Part, pack};

/// Tiles whose sums are computed together.
const TILE_BLOCK: usize = 24;
/// Tiles up to which the sums of one group of outputs stay in the second cache for the whole depth.
const FEW_TILES: usize = 8 * TILE_BLOCK;
/// Channels whose transformed kernels are made at a time if there are few tiles.
const CHANNEL_BLOCK: usize = 128;
/// Channels whose kernels are reordered at a time.
const PACK_BLOCK: usize = 16;
/// Bytes of the transformed input of all tiles that are computed at a time: it should stay in the last cache.
const INPUT_BYTES: usize = 18 << 20;
/// Bytes of the transformed kernels of a task.
const KERNEL_BYTES: usize = 3 << 20;
/// The most groups of outputs of a task.
const MAX_GROUPS: usize = 4;
/// Values between the blocks of two of the A² values. Without them the blocks would begin at multiples of 4096 bytes, all
/// in one set of the first cache.
const GAP: usize = 16;

/// The tiles of a result.
#[derive(Clone, Copy)]
struct Tiles {
    lines: usize,
    columns: usize,
    count: usize,
}

/// The batch entry of a tile, and the first line and column of its results.
#[derive(Clone, Copy)]
struct Tile {
    entry: usize,
    line: usize,
    column: usize,
}

impl Tiles {
    fn new(conv: &Conv3x3<'_>, side: usize) -> Self {
        let (lines, columns) = (conv.size.0.div_ceil(side), conv.size.1.div_ceil(side));
        Self {
            lines,
            columns,
            count: conv.shape.batch * lines * columns,
        }
    }

    fn tile(&self, number: usize, side: usize) -> Tile {
        let line = number / self.columns;
        Tile {
            entry: line / self.lines,
            line: line % self.lines * side,
            column: number % self.columns * side,
        }
    }
}

/// The order of the transformed input of a block of tiles: `[channels / depth, A², TILE_BLOCK, depth]`, with gaps.
#[derive(Clone, Copy)]
struct Layout {
    channels: usize,
    /// The channels that are multiplied at a time; the last time there may be fewer.
    depth: usize,
}

impl Layout {
    /// Returns the length of one of the A² parts.
    fn part(self) -> usize {
        TILE_BLOCK * self.depth + GAP
    }

    /// Returns the length of a block.
    fn block(self, a: usize) -> usize {
        self.channels.div_ceil(self.depth) * a * a * self.part()
    }
}

/// Computes a convolution of stride 1. `A` is `M` + 2.
pub fn compute<const M: usize, const A: usize>(conv: &Conv3x3<'_>, level: Level, out: &mut [f32]) {
    assert!(conv.stride == 1 && !conv.pad_end && conv.shape.channels.is_multiple_of(level.lanes()));
    let channels = conv.shape.channels;
    let tiles = Tiles::new(conv, M);
    let most = INPUT_BYTES / (A * A * channels * size_of::<f32>());
    let most = (most / TILE_BLOCK).max(1) * TILE_BLOCK;
    let rounds = tiles.count.div_ceil(most);
    let at_once = tiles.count.div_ceil(rounds).next_multiple_of(TILE_BLOCK);
    let few = at_once.min(tiles.count) <= FEW_TILES;
    let depth = if few { CHANNEL_BLOCK.min(channels) } else { channels };
    let layout = Layout { channels, depth };
    let blocks_at_once = at_once.min(tiles.count).div_ceil(TILE_BLOCK);
    let mut input = Scratch::new(blocks_at_once * layout.block(A));
    let input = Shared::new(input.values());
    let out = Shared::new(out);
    for first in (0..tiles.count).step_by(at_once) {
        let numbers = first..(first + at_once).min(tiles.count);
        let blocks = numbers.len().div_ceil(TILE_BLOCK);
        pool::for_each(blocks, |block| {
            let start = numbers.start + block * TILE_BLOCK;
            let task = TransformInput::<M, A> {
                conv,
                tiles,
                layout,
                numbers: start..(start + TILE_BLOCK).min(numbers.end),
                // SAFETY: the buffer has room for all blocks.
                to: unsafe { input.pointer().add(block * layout.block(A)) },
            };
            // SAFETY: each task has its own block.
            unsafe { level.run(task) }
        });

        let columns = level.columns();
        let groups = conv.outputs.div_ceil(columns);
        let group_bytes = A * A * channels * columns * size_of::<f32>();
        let most = if few {
            1
        } else {
            (KERNEL_BYTES / group_bytes).clamp(1, MAX_GROUPS)
        };
        let threads = pool::threads();
        let parts = divide(groups, most, threads);
        let tile_parts = if parts >= threads {
            1
        } else {
            threads.div_ceil(parts).min(blocks)
        };
        pool::for_each(parts * tile_parts, |task| {
            let (part, tile_part) = (task / tile_parts, task % tile_parts);
            let task = Multiply::<M, A> {
                conv,
                tiles,
                layout,
                groups: groups * part / parts..groups * (part + 1) / parts,
                numbers: numbers.clone(),
                blocks: blocks * tile_part / tile_parts..blocks * (tile_part + 1) / tile_parts,
                input: input.pointer(),
                out: out.pointer(),
            };
            // SAFETY: the input is complete. Tasks write different channels or different tiles.
            unsafe { level.run(task) }
        });
    }
}

/// Transforms the input of the tiles of a block.
struct TransformInput<'a, const M: usize, const A: usize> {
    conv: &'a Conv3x3<'a>,
    tiles: Tiles,
    layout: Layout,
    numbers: Range<usize>,
    to: *mut f32,
}

impl<const M: usize, const A: usize> Kernel for TransformInput<'_, M, A> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let shape = self.conv.shape;
        let channels = shape.channels;
        let (height, width) = self.conv.size;
        let (lines, columns) = (Nearest::new(shape.height, height), Nearest::new(shape.width, width));
        let mut zeros = Scratch::new(channels);
        let zeros = zeros.values();
        zeros.fill(0.0);
        for (index, number) in self.numbers.enumerate() {
            let tile = self.tiles.tile(number, M);
            let mut from = [[zeros.as_ptr(); A]; A];
            for (i, from) in from.iter_mut().enumerate() {
                for (j, from) in from.iter_mut().enumerate() {
                    // The padding is one position.
                    let (line, column) = (tile.line + i, tile.column + j);
                    if (1..=height).contains(&line) && (1..=width).contains(&column) {
                        let line = tile.entry * shape.height + lines.source(line - 1);
                        let position = line * shape.width + columns.source(column - 1);
                        *from = self.conv.input[position * channels..(position + 1) * channels].as_ptr();
                    }
                }
            }
            let depth = self.layout.depth;
            for channel in (0..channels).step_by(S::LANES) {
                let part = channel / depth * A * A;
                let within = index * depth + channel % depth;
                // SAFETY: each pointer has `channels` values, a multiple of the lanes; `Layout::block` counts the room.
                unsafe {
                    let mut half = [[S::splat(0.0); A]; A];
                    for j in 0..A {
                        let mut column = [S::splat(0.0); A];
                        for i in 0..A {
                            column[i] = S::load(from[i][j].add(channel));
                        }
                        let column = transform_input::<S, A>(column);
                        for i in 0..A {
                            half[i][j] = column[i];
                        }
                    }
                    for i in 0..A {
                        let line = transform_input::<S, A>(half[i]);
                        for j in 0..A {
                            let to = (part + i * A + j) * self.layout.part() + within;
                            S::store(self.to.add(to), line[j]);
                        }
                    }
                }
            }
        }
    }
}

/// Multiplies the transformed input and kernels of some groups of outputs, and writes the results of some tiles.
struct Multiply<'a, const M: usize, const A: usize> {
    conv: &'a Conv3x3<'a>,
    tiles: Tiles,
    layout: Layout,
    groups: Range<usize>,
    /// The numbers of the tiles of all blocks.
    numbers: Range<usize>,
    blocks: Range<usize>,
    input: *const f32,
    out: *mut f32,
}

impl<const M: usize, const A: usize> Kernel for Multiply<'_, M, A> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let channels = self.conv.shape.channels;
        let groups = self.groups.len();
        let width = groups * S::COLUMNS;
        let depth = self.layout.depth;
        // The sums of few tiles are kept while the kernels are made for some channels at a time.
        let few = depth < channels;
        let sum_blocks = if few { self.blocks.len() } else { 1 };
        let kernels_len = A * A * (depth * width + GAP);
        let packed_len = PACK_BLOCK * TAPS * S::COLUMNS;
        let block_len = A * A * (TILE_BLOCK * width + GAP);
        let input_part = self.layout.part();
        let mut buffer = Scratch::new(kernels_len + packed_len + sum_blocks * block_len);
        let (kernels, rest) = buffer.values().split_at_mut(kernels_len);
        let (packed, sums) = rest.split_at_mut(packed_len);
        for first in (0..channels).step_by(depth) {
            let count = depth.min(channels - first);
            // SAFETY: the lengths above; the input has `Layout::block` values for each block.
            unsafe {
                self.transform_kernels::<S>(first..first + count, packed, kernels.as_mut_ptr());
                for (index, block) in self.blocks.clone().enumerate() {
                    let start = self.numbers.start + block * TILE_BLOCK;
                    let numbers = start..(start + TILE_BLOCK).min(self.numbers.end);
                    let sums = sums.as_mut_ptr().add(if few { index * block_len } else { 0 });
                    let input = self
                        .input
                        .add(block * self.layout.block(A) + first / depth * A * A * input_part);
                    for k in 0..A * A {
                        let input = Rows {
                            data: input.add(k * input_part),
                            stride: depth,
                        };
                        for (row, rows) in row_chunks::<S>(numbers.len()) {
                            for group in 0..groups {
                                let data = sums.add(k * (TILE_BLOCK * width + GAP) + row * width + group * S::COLUMNS);
                                let sums = Sums {
                                    data,
                                    stride: width,
                                    add: first > 0,
                                };
                                let kernels = kernels
                                    .as_ptr()
                                    .add(k * (count * width + GAP) + group * count * S::COLUMNS);
                                products::<S>(rows, count, input.from(row), kernels, sums);
                            }
                        }
                    }
                    if first + count == channels {
                        self.finish::<S>(numbers, sums);
                    }
                }
            }
        }
    }
}

impl<const M: usize, const A: usize> Multiply<'_, M, A> {
    /// Transforms the kernels of some channels: `[A², groups, channels, S::COLUMNS]`.
    #[inline(always)]
    unsafe fn transform_kernels<S: Simd>(&self, channels: Range<usize>, packed: &mut [f32], to: *mut f32) {
        let inputs = self.conv.shape.channels;
        let (depth, groups) = (channels.len(), self.groups.len());
        for (group, number) in self.groups.clone().enumerate() {
            let row = number * S::COLUMNS;
            let rows = S::COLUMNS.min(self.conv.outputs - row);
            for first in (0..depth).step_by(PACK_BLOCK) {
                let count = PACK_BLOCK.min(depth - first);
                let part = Part {
                    row,
                    rows,
                    stride: inputs * TAPS,
                    first: (channels.start + first) * TAPS,
                    count: count * TAPS,
                };
                // SAFETY: `packed` holds `PACK_BLOCK` kernels, and `to` `A²` values for each of them.
                unsafe {
                    pack::<S>(self.conv.weight, part, packed.as_mut_ptr());
                    for channel in 0..count {
                        for lane in (0..S::COLUMNS).step_by(S::LANES) {
                            let from = packed.as_ptr().add(channel * TAPS * S::COLUMNS + lane);
                            let mut half = [[S::splat(0.0); 3]; A];
                            for j in 0..3 {
                                let tap = |i: usize| from.add((i * 3 + j) * S::COLUMNS);
                                let kernel = [S::load(tap(0)), S::load(tap(1)), S::load(tap(2))];
                                let column = transform_kernel::<S, A>(kernel);
                                for i in 0..A {
                                    half[i][j] = column[i];
                                }
                            }
                            for i in 0..A {
                                let line = transform_kernel::<S, A>(half[i]);
                                for j in 0..A {
                                    let block = (i * A + j) * (depth * groups * S::COLUMNS + GAP);
                                    let row = group * depth + first + channel;
                                    S::store(to.add(block + row * S::COLUMNS + lane), line[j]);
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// Transforms the sums of the tiles of a block to results, and writes them.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, numbers: Range<usize>, sums: *const f32) {
        let outputs = self.conv.outputs;
        let (height, width) = self.conv.size;
        let sums_width = self.groups.len() * S::COLUMNS;
        let first = self.groups.start * S::COLUMNS;
        for (index, number) in numbers.enumerate() {
            let tile = self.tiles.tile(number, M);
            let bias = self.conv.bias_of(tile.entry);
            for lane in (0..sums_width.min(outputs - first)).step_by(S::LANES) {
                let channel = first + lane;
                let lanes = S::LANES.min(outputs - channel);
                // SAFETY: the sums have `sums_width` values for each of `A² · TILE_BLOCK` rows; the results of this tile
                // and these channels are this task's.
                unsafe {
                    let mut half = [[S::splat(0.0); A]; M];
                    for j in 0..A {
                        let mut column = [S::splat(0.0); A];
                        for i in 0..A {
                            column[i] = S::load(
                                sums.add((i * A + j) * (TILE_BLOCK * sums_width + GAP) + index * sums_width + lane),
                            );
                        }
                        let column = transform_sums::<S, M, A>(column);
                        for i in 0..M {
                            half[i][j] = column[i];
                        }
                    }
                    let bias = match bias {
                        Some(bias) => load::<S>(bias.as_ptr().add(channel), lanes),
                        None => S::splat(0.0),
                    };
                    for i in 0..M.min(height - tile.line) {
                        let line = transform_sums::<S, M, A>(half[i]);
                        for j in 0..M.min(width - tile.column) {
                            let position = (tile.entry * height + tile.line + i) * width + tile.column + j;
                            let at = position * outputs + channel;
                            let mut value = S::add(line[j], bias);
                            if let Some(add) = self.conv.add {
                                value = S::add(value, load::<S>(add.as_ptr().add(at), lanes));
                            }
                            store::<S>(self.out.add(at), lanes, value);
                        }
                    }
                }
            }
        }
    }
}

/// The matrix Bᵀ times a column of the input.
#[inline(always)]
unsafe fn transform_input<S: Simd, const A: usize>(d: [S::V; A]) -> [S::V; A] {
    let mut result = d;
    // SAFETY: the caller's machine has the instruction set.
    unsafe {
        if A == 4 {
            result[0] = S::sub(d[0], d[2]);
            result[1] = S::add(d[1], d[2]);
            result[2] = S::sub(d[2], d[1]);
            result[3] = S::sub(d[1], d[3]);
        } else {
            let (two, four, five) = (S::splat(2.0), S::splat(4.0), S::splat(-5.0));
            let even = S::mul_add(S::splat(-4.0), d[2], d[4]);
            let odd = S::mul_add(S::splat(-4.0), d[1], d[3]);
            let (even2, odd2) = (S::sub(d[4], d[2]), S::mul(two, S::sub(d[3], d[1])));
            result[0] = S::mul_add(four, d[0], S::mul_add(five, d[2], d[4]));
            result[1] = S::add(even, odd);
            result[2] = S::sub(even, odd);
            result[3] = S::add(even2, odd2);
            result[4] = S::sub(even2, odd2);
            result[5] = S::mul_add(four, d[1], S::mul_add(five, d[3], d[5]));
        }
    }
    result
}

/// The matrix G times a column of a kernel.
#[inline(always)]
unsafe fn transform_kernel<S: Simd, const A: usize>(g: [S::V; 3]) -> [S::V; A] {
    // SAFETY: the caller's machine has the instruction set.
    unsafe {
        let mut result = [g[0]; A];
        let outer = S::add(g[0], g[2]);
        if A == 4 {
            let half = S::splat(0.5);
            result[1] = S::mul(half, S::add(outer, g[1]));
            result[2] = S::mul(half, S::sub(outer, g[1]));
            result[3] = g[2];
        } else {
            let sixth = S::splat(-1.0 / 6.0);
            let outer4 = S::mul(S::splat(1.0 / 24.0), S::mul_add(S::splat(4.0), g[2], g[0]));
            let inner = S::mul(S::splat(1.0 / 12.0), g[1]);
            result[0] = S::mul(S::splat(0.25), g[0]);
            result[1] = S::mul(sixth, S::add(outer, g[1]));
            result[2] = S::mul(sixth, S::sub(outer, g[1]));
            result[3] = S::add(outer4, inner);
            result[4] = S::sub(outer4, inner);
            result[5] = g[2];
        }
        result
    }
}

/// The matrix Aᵀ times a column of sums.
#[inline(always)]
unsafe fn transform_sums<S: Simd, const M: usize, const A: usize>(m: [S::V; A]) -> [S::V; M] {
    // SAFETY: the caller's machine has the instruction set.
    unsafe {
        let mut result = [m[0]; M];
        let (sum, difference) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
        if A == 4 {
            result[0] = S::add(m[0], sum);
            result[1] = S::sub(difference, m[3]);
        } else {
            let (sum2, difference2) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
            result[0] = S::add(m[0], S::add(sum, sum2));
            result[1] = S::mul_add(S::splat(2.0), difference2, difference);
            result[2] = S::mul_add(S::splat(4.0), sum2, sum);
            result[3] = S::add(S::mul_add(S::splat(8.0), difference2, difference), m[5]);
        }
        result
    }
}
