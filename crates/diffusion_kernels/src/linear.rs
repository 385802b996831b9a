//! Linear layers: products with learned matrices, and what follows them.

use crate::activation::Activation;
use crate::pool;
use crate::product::{Rows, Sums, products, row_chunks};
use crate::scratch::Scratch;
use crate::shared::Shared;
use crate::simd::{Kernel, Level, Simd};
use crate::values::{Part, Values, pack};

/// The most values of a row that are multiplied before the next rows: the packed columns for them stay in the second cache.
const MAX_DEPTH: usize = 320;
/// The most packed groups of columns of a task.
const MAX_GROUPS: usize = 12;
/// Rows whose sums are kept until the whole depth is multiplied.
const ROW_BLOCK: usize = 96;

/// A matrix `[columns, depth]` in the dtype of its file.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// The values, row by row.
    pub values: Values<'a>,
    /// Added to each result, `[columns]`.
    pub bias: Option<&'a [f32]>,
}

/// What is done with the sums of a product.
#[derive(Clone, Copy, Debug)]
pub enum Then<'a> {
    /// Applies an activation.
    Activate(Activation),
    /// Adds values of the result's shape.
    Add(&'a [f32]),
    /// Multiplies the first half of the columns by the GELU of the second (`GEGLU`). The result has half of the columns.
    Gate,
}

/// A linear layer, or several of one input whose results stand side by side.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    /// The number of rows of the input.
    pub rows: usize,
    /// The number of values of a row.
    pub depth: usize,
    /// The input, `[rows, depth]`.
    pub input: &'a [f32],
    /// The matrices, of `columns` rows each.
    pub matrices: &'a [Matrix<'a>],
    /// The columns of the result of each matrix.
    pub columns: usize,
    /// What follows.
    pub then: Then<'a>,
}

/// The columns that are computed together: those of the rows `row..row + count` of a matrix.
#[derive(Clone, Copy)]
struct Group {
    matrix: usize,
    row: usize,
    count: usize,
}

impl Linear<'_> {
    /// The columns of the result.
    pub fn result_columns(&self) -> usize {
        match self.then {
            Then::Gate => self.columns / 2,
            _ => self.columns * self.matrices.len(),
        }
    }

    /// Computes the layer into `out`, `[rows, result_columns]`.
    ///
    /// # Panics
    /// If a slice has another length than its shape.
    pub fn compute(&self, out: &mut [f32]) {
        self.compute_with(Level::best(), out);
    }

    /// Does what [`Linear::compute`] does with an instruction set.
    ///
    /// # Panics
    /// As [`Linear::compute`].
    pub fn compute_with(&self, level: Level, out: &mut [f32]) {
        let columns = self.result_columns();
        assert_eq!(self.input.len(), self.rows * self.depth);
        assert_eq!(out.len(), self.rows * columns);
        for matrix in self.matrices {
            assert_eq!(matrix.values.len(), self.columns * self.depth);
            assert!(matrix.bias.is_none_or(|bias| bias.len() == self.columns));
        }
        match self.then {
            Then::Add(values) => assert_eq!(values.len(), out.len()),
            Then::Gate => assert!(self.matrices.len() == 1 && self.columns.is_multiple_of(2)),
            Then::Activate(_) => {}
        }
        if out.is_empty() {
            return;
        }
        let groups = self.groups(level.columns());
        // A gated group is packed with its gate.
        let most = if matches!(self.then, Then::Gate) {
            MAX_GROUPS / 2
        } else {
            MAX_GROUPS
        };
        let threads = pool::threads();
        let blocks = divide(groups.len(), most, threads);
        let row_parts = row_parts(self.rows, blocks, threads);
        let out = Shared::new(out);
        pool::for_each(blocks * row_parts, |task| {
            let (block, part) = (task / row_parts, task % row_parts);
            let range = |count: usize, parts: usize, part: usize| count * part / parts..count * (part + 1) / parts;
            let task = Task {
                linear: self,
                groups: &groups[range(groups.len(), blocks, block)],
                rows: range(self.rows, row_parts, part),
                out: out.pointer(),
                columns,
            };
            // SAFETY: lengths were checked above. Tasks write different rows or different groups of columns.
            unsafe { level.run(task) }
        });
    }

    /// Divides the columns of the result into groups of at most `columns`.
    fn groups(&self, columns: usize) -> Vec<Group> {
        let of_matrix = match self.then {
            Then::Gate => self.columns / 2,
            _ => self.columns,
        };
        let groups = (0..self.matrices.len()).flat_map(|matrix| {
            (0..of_matrix).step_by(columns).map(move |row| Group {
                matrix,
                row,
                count: columns.min(of_matrix - row),
            })
        });
        groups.collect()
    }
}

/// Returns into how many blocks of at most `most` groups the work is divided: as many for each thread.
pub fn divide(groups: usize, most: usize, threads: usize) -> usize {
    let blocks = groups.div_ceil(most).next_multiple_of(threads);
    blocks.min(groups)
}

/// Returns into how many parts the rows are divided where there are fewer blocks of columns than threads.
fn row_parts(rows: usize, blocks: usize, threads: usize) -> usize {
    if blocks >= threads {
        return 1;
    }
    (2 * threads).div_ceil(blocks).min(rows.div_ceil(ROW_BLOCK / 4)).max(1)
}

/// Divides the depth into the fewest blocks of at most [`MAX_DEPTH`] values, nearly equal ones. Returns the values of a
/// block: whole vectors of 8, the size that is packed fast.
fn depth_block(depth: usize) -> usize {
    let blocks = depth.div_ceil(MAX_DEPTH).max(1);
    depth.div_ceil(blocks).max(1).next_multiple_of(8)
}

/// Some rows and some groups of columns of a layer.
struct Task<'a> {
    linear: &'a Linear<'a>,
    groups: &'a [Group],
    rows: std::ops::Range<usize>,
    out: *mut f32,
    columns: usize,
}

impl Kernel for Task<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let depth = self.linear.depth;
        let gated = matches!(self.linear.then, Then::Gate);
        let packed_groups = self.groups.len() * if gated { 2 } else { 1 };
        let width = packed_groups * S::COLUMNS;
        // Columns are packed once; if all rows fit into one block, those of a block of the depth at a time.
        let once = self.rows.len() <= ROW_BLOCK;
        let depth_block = depth_block(depth);
        let packed_depth = if once { depth_block } else { depth };
        let sums_len = ROW_BLOCK * width;
        let mut buffer = Scratch::new(packed_depth * width + sums_len + width);
        let buffer = buffer.values();
        let (packed, rest) = buffer.split_at_mut(packed_depth * width);
        let (sums, bias) = rest.split_at_mut(sums_len);
        self.fill_bias::<S>(bias);
        for start in self.rows.clone().step_by(ROW_BLOCK) {
            let rows = start..(start + ROW_BLOCK).min(self.rows.end);
            if depth == 0 {
                sums.fill(0.0);
            }
            for first in (0..depth).step_by(depth_block) {
                let count = depth_block.min(depth - first);
                let columns = if once {
                    &mut packed[..]
                } else {
                    &mut packed[first * width..]
                };
                // SAFETY: the caller's promise for the matrices; `columns` has `count · width` values, `sums`
                // `width` for each row.
                unsafe {
                    if start == self.rows.start {
                        self.pack::<S>(first, count, columns.as_mut_ptr());
                    }
                    let data = self.linear.input.as_ptr().add(start * depth + first);
                    let input = Rows { data, stride: depth };
                    for (row, rows_now) in row_chunks::<S>(rows.len()) {
                        for group in 0..packed_groups {
                            let sums = Sums {
                                data: sums.as_mut_ptr().add(row * width + group * S::COLUMNS),
                                stride: width,
                                add: first > 0,
                            };
                            let columns = columns.as_ptr().add(group * count * S::COLUMNS);
                            products::<S>(rows_now, count, input.from(row), columns, sums);
                        }
                    }
                }
            }
            // SAFETY: as above.
            unsafe { self.finish::<S>(rows, sums, bias) }
        }
    }
}

impl Task<'_> {
    /// The groups as they are packed: those of the result, then their gates.
    fn packed(&self) -> impl Iterator<Item = Group> {
        let gates = match self.linear.then {
            Then::Gate => self.groups,
            _ => &[],
        };
        let gate = |group: &Group| Group {
            row: group.row + self.linear.columns / 2,
            ..*group
        };
        self.groups.iter().copied().chain(gates.iter().map(gate))
    }

    #[inline(always)]
    unsafe fn pack<S: Simd>(&self, first: usize, count: usize, to: *mut f32) {
        for (index, group) in self.packed().enumerate() {
            let part = Part {
                row: group.row,
                rows: group.count,
                stride: self.linear.depth,
                first,
                count,
            };
            // SAFETY: `to` has `count · S::COLUMNS` values for each group.
            unsafe {
                pack::<S>(
                    self.linear.matrices[group.matrix].values,
                    part,
                    to.add(index * count * S::COLUMNS),
                )
            }
        }
    }

    #[inline(always)]
    fn fill_bias<S: Simd>(&self, bias: &mut [f32]) {
        bias.fill(0.0);
        for (group, bias) in self.packed().zip(bias.chunks_mut(S::COLUMNS)) {
            if let Some(values) = self.linear.matrices[group.matrix].bias {
                bias[..group.count].copy_from_slice(&values[group.row..group.row + group.count]);
            }
        }
    }

    /// Adds the bias to the sums, and writes what follows.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, rows: std::ops::Range<usize>, sums: &[f32], bias: &[f32]) {
        let width = bias.len();
        let gates = self.groups.len() * S::COLUMNS;
        for (row, sums) in rows.zip(sums.chunks(width)) {
            for (index, group) in self.groups.iter().enumerate() {
                let column = group.matrix * self.linear.columns + group.row;
                let to = row * self.columns + column;
                for lane in (0..group.count).step_by(S::LANES) {
                    let at = index * S::COLUMNS + lane;
                    let lanes = S::LANES.min(group.count - lane);
                    // SAFETY: `at` and `at + gates` are whole vectors of the sums and the bias; `lanes` values of the
                    // result are this task's.
                    unsafe {
                        let biased = S::add(S::load(sums.as_ptr().add(at)), S::load(bias.as_ptr().add(at)));
                        let value = match self.linear.then {
                            Then::Activate(activation) => activation.apply::<S>(biased),
                            Then::Add(values) => S::add(biased, load::<S>(values.as_ptr().add(to + lane), lanes)),
                            Then::Gate => {
                                let (gate, bias) = (sums.as_ptr().add(at + gates), bias.as_ptr().add(at + gates));
                                S::mul(
                                    biased,
                                    Activation::Gelu.apply::<S>(S::add(S::load(gate), S::load(bias))),
                                )
                            }
                        };
                        store::<S>(self.out.add(to + lane), lanes, value);
                    }
                }
            }
        }
    }
}

/// Reads the first `lanes` values of a vector; the others are 0.
///
/// # Safety
/// The machine has the instruction set, and there are `lanes` values.
#[inline(always)]
pub unsafe fn load<S: Simd>(from: *const f32, lanes: usize) -> S::V {
    // SAFETY: the caller's promise; 16 values hold every vector.
    unsafe {
        if lanes == S::LANES {
            return S::load(from);
        }
        let mut values = [0.0; 16];
        std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), lanes);
        S::load(values.as_ptr())
    }
}

/// Writes the first `lanes` values of a vector.
///
/// # Safety
/// As [`load`].
#[inline(always)]
pub unsafe fn store<S: Simd>(to: *mut f32, lanes: usize, value: S::V) {
    // SAFETY: as in `load`.
    unsafe {
        if lanes == S::LANES {
            return S::store(to, value);
        }
        let mut values = [0.0; 16];
        S::store(values.as_mut_ptr(), value);
        std::ptr::copy_nonoverlapping(values.as_ptr(), to, lanes);
    }
}
