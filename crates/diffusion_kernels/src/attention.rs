//! Attention whose matrix of scores is never in memory as a whole.
//!
//! The keys are taken block by block. For each query the largest score, the sum of the weights and the weighted sum of the
//! values are kept, and corrected when a block has a larger score.
//!
//! Source: Dao et al., "FlashAttention" (2022), algorithm 1.

use std::ops::Range;

use crate::activation::exp2;
use crate::linear::{load, store};
use crate::pool;
use crate::product::{Rows, Sums, products, row_chunks};
use crate::scratch::Scratch;
use crate::shared::Shared;
use crate::simd::{Kernel, Level, Simd};
use crate::values::{Part, Values, pack};

/// Keys of a block.
const KEY_BLOCK: usize = 256;
/// Queries whose scores are in the first cache together.
const QUERY_BLOCK: usize = 24;
/// The most queries of a task.
const MAX_QUERIES: usize = 1024;

/// Vectors `[batch, rows, heads · head_size]` inside a larger tensor.
#[derive(Clone, Copy, Debug)]
pub struct Vectors<'a> {
    /// The values from the first on.
    pub values: &'a [f32],
    /// Values from batch entry to batch entry.
    pub entry_stride: usize,
    /// Values from row to row.
    pub row_stride: usize,
}

impl Vectors<'_> {
    /// Returns whether all rows are inside the values.
    fn hold(&self, batch: usize, rows: usize, size: usize) -> bool {
        batch == 0
            || rows == 0
            || (batch - 1) * self.entry_stride + (rows - 1) * self.row_stride + size <= self.values.len()
    }

    fn start(&self, entry: usize, row: usize) -> usize {
        entry * self.entry_stride + row * self.row_stride
    }
}

/// softmax(q·kᵀ·scale)·v in each head.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// The queries.
    pub query: Vectors<'a>,
    /// The keys.
    pub key: Vectors<'a>,
    /// The values.
    pub value: Vectors<'a>,
    /// Batch entries.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Values of a head.
    pub head_size: usize,
    /// Queries of an entry.
    pub queries: usize,
    /// Keys of an entry, at least 1.
    pub keys: usize,
    /// The factor of the scores.
    pub scale: f32,
    /// Whether a query attends to the keys up to its own position only.
    pub causal: bool,
}

impl Attention<'_> {
    /// Computes the attention into `out`, `[batch, queries, heads · head_size]`.
    ///
    /// # Panics
    /// If a slice is shorter than its shape.
    pub fn compute(&self, out: &mut [f32]) {
        self.compute_with(Level::best(), out);
    }

    /// Does what [`Attention::compute`] does with an instruction set.
    ///
    /// # Panics
    /// As [`Attention::compute`].
    pub fn compute_with(&self, level: Level, out: &mut [f32]) {
        let size = self.heads * self.head_size;
        assert!(self.keys > 0);
        assert!(self.query.hold(self.batch, self.queries, size));
        assert!(self.key.hold(self.batch, self.keys, size) && self.value.hold(self.batch, self.keys, size));
        assert_eq!(out.len(), self.batch * self.queries * size);
        if out.is_empty() {
            return;
        }
        let heads = self.batch * self.heads;
        let threads = pool::threads();
        // Several tasks for each thread, so that the last one is not waited for.
        let wanted = if threads == 1 { 1 } else { (4 * threads).div_ceil(heads) };
        let parts = wanted
            .max(self.queries.div_ceil(MAX_QUERIES))
            .min(self.queries.div_ceil(QUERY_BLOCK));
        let out = Shared::new(out);
        pool::for_each(heads * parts, |task| {
            let (head, part) = (task / parts, task % parts);
            let task = Task {
                attention: self,
                entry: head / self.heads,
                head: head % self.heads,
                queries: self.queries * part / parts..self.queries * (part + 1) / parts,
                out: out.pointer(),
            };
            // SAFETY: lengths were checked above; tasks write different queries or different heads.
            unsafe { level.run(task) }
        });
    }
}

/// Some queries of one head.
struct Task<'a> {
    attention: &'a Attention<'a>,
    entry: usize,
    head: usize,
    queries: Range<usize>,
    out: *mut f32,
}

impl Kernel for Task<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Attention {
            query,
            key,
            value,
            head_size,
            keys,
            heads,
            ..
        } = *self.attention;
        let count = self.queries.len();
        let groups = head_size.div_ceil(S::COLUMNS);
        let width = groups * S::COLUMNS;
        let key_block = KEY_BLOCK.min(keys.next_multiple_of(S::COLUMNS));
        let lens = [
            key_block * head_size,
            key_block * width,
            QUERY_BLOCK * key_block,
            count * width,
            2 * count,
        ];
        let mut buffer = Scratch::new(lens.iter().sum());
        let (packed_keys, rest) = buffer.values().split_at_mut(lens[0]);
        let (packed_values, rest) = rest.split_at_mut(lens[1]);
        let (scores, rest) = rest.split_at_mut(lens[2]);
        let (sums, state) = rest.split_at_mut(lens[3]);
        let (largest, weights) = state.split_at_mut(count);
        sums.fill(0.0);
        largest.fill(f32::MIN);
        weights.fill(0.0);
        let head_start = self.head * head_size;
        for first in (0..keys).step_by(key_block) {
            let block = key_block.min(keys - first);
            let padded = block.next_multiple_of(S::COLUMNS);
            // SAFETY: the lengths above, and those of the attention.
            unsafe {
                let from = &key.values[key.start(self.entry, first) + head_start..];
                for row in (0..block).step_by(S::COLUMNS) {
                    let rows = S::COLUMNS.min(block - row);
                    let part = Part {
                        row,
                        rows,
                        stride: key.row_stride,
                        first: 0,
                        count: head_size,
                    };
                    pack::<S>(Values::F32(from), part, packed_keys.as_mut_ptr().add(row * head_size));
                }
                let from = &value.values[value.start(self.entry, first) + head_start..];
                for group in 0..groups {
                    let columns = S::COLUMNS.min(head_size - group * S::COLUMNS);
                    for row in 0..block {
                        let to = &mut packed_values[(group * block + row) * S::COLUMNS..][..S::COLUMNS];
                        let from = &from[row * value.row_stride + group * S::COLUMNS..][..columns];
                        to[..columns].copy_from_slice(from);
                        to[columns..].fill(0.0);
                    }
                }
                for start in (0..count).step_by(QUERY_BLOCK) {
                    let rows = QUERY_BLOCK.min(count - start);
                    let last_query = self.queries.start + start + rows - 1;
                    if self.attention.causal && first > last_query {
                        continue;
                    }
                    let from = query.start(self.entry, self.queries.start + start) + head_start;
                    let queries = Rows {
                        data: query.values.as_ptr().add(from),
                        stride: query.row_stride,
                    };
                    for (row, rows) in row_chunks::<S>(rows) {
                        for column in (0..padded).step_by(S::COLUMNS) {
                            let data = scores.as_mut_ptr().add(row * key_block + column);
                            let sums = Sums {
                                data,
                                stride: key_block,
                                add: false,
                            };
                            let keys = packed_keys.as_ptr().add(column * head_size);
                            products::<S>(rows, head_size, queries.from(row), keys, sums);
                        }
                    }
                    for row in 0..rows {
                        let scores = &mut scores[row * key_block..][..padded];
                        let visible = if self.attention.causal {
                            block.min((self.queries.start + start + row + 1).saturating_sub(first))
                        } else {
                            block
                        };
                        scores[visible..].fill(f32::MIN);
                        let at = start + row;
                        self.weigh::<S>(
                            scores,
                            &mut largest[at],
                            &mut weights[at],
                            &mut sums[at * width..][..width],
                        );
                    }
                    let scores = Rows {
                        data: scores.as_ptr(),
                        stride: key_block,
                    };
                    for (row, rows) in row_chunks::<S>(rows) {
                        for group in 0..groups {
                            let data = sums.as_mut_ptr().add((start + row) * width + group * S::COLUMNS);
                            let sums = Sums {
                                data,
                                stride: width,
                                add: true,
                            };
                            let values = packed_values.as_ptr().add(group * block * S::COLUMNS);
                            products::<S>(rows, block, scores.from(row), values, sums);
                        }
                    }
                }
            }
        }
        for (row, query) in self.queries.clone().enumerate() {
            let to = (self.entry * self.attention.queries + query) * heads * head_size + head_start;
            for lane in (0..head_size).step_by(S::LANES) {
                // SAFETY: `sums` has whole vectors; these results are this task's.
                unsafe {
                    let value = S::mul(
                        S::load(sums.as_ptr().add(row * width + lane)),
                        S::splat(1.0 / weights[row]),
                    );
                    store::<S>(self.out.add(to + lane), S::LANES.min(head_size - lane), value);
                }
            }
        }
    }
}

impl Task<'_> {
    /// Turns the scores of a query into weights, and corrects what was summed up before by the new largest score.
    #[inline(always)]
    unsafe fn weigh<S: Simd>(&self, scores: &mut [f32], largest: &mut f32, weights: &mut f32, sums: &mut [f32]) {
        // SAFETY: the slices have whole vectors.
        unsafe {
            let mut most = S::splat(f32::MIN);
            for lane in (0..scores.len()).step_by(S::LANES) {
                most = S::max(most, S::load(scores.as_ptr().add(lane)));
            }
            let mut lanes = [f32::MIN; 16];
            S::store(lanes.as_mut_ptr(), most);
            let now = lanes.iter().fold(*largest, |a, &b| if a > b { a } else { b });
            // Powers of 2 instead of e.
            let scale = self.attention.scale * std::f32::consts::LOG2_E;
            let (factor, offset) = (S::splat(scale), S::splat(-now * scale));
            let mut total = S::splat(0.0);
            for lane in (0..scores.len()).step_by(S::LANES) {
                let at = scores.as_mut_ptr().add(lane);
                let weight = exp2::<S>(S::mul_add(load::<S>(at, S::LANES), factor, offset));
                S::store(at, weight);
                total = S::add(total, weight);
            }
            let mut lanes = [0.0; 16];
            S::store(lanes.as_mut_ptr(), total);
            let total: f32 = lanes.iter().sum();
            if now > *largest {
                let correction = exp2::<S>(S::splat((*largest - now) * scale));
                let mut lanes = [0.0; 16];
                S::store(lanes.as_mut_ptr(), correction);
                *weights *= lanes[0];
                for lane in (0..sums.len()).step_by(S::LANES) {
                    let at = sums.as_mut_ptr().add(lane);
                    S::store(at, S::mul(S::load(at), correction));
                }
            }
            *weights += total;
            *largest = now;
        }
    }
}
