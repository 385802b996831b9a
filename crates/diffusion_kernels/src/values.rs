//! Weights in the dtype of their file, and their copies in the order in which the matrix kernel reads them.

use crate::simd::Simd;
use crate::simd::widen;

/// Weights. Half-precision values are widened when a kernel reads them; every one of them is a float32 value too.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// float32
    F32(&'a [f32]),
    /// The bits of float16 values.
    F16(&'a [u16]),
    /// The bits of bfloat16 values.
    Bf16(&'a [u16]),
}

impl Values<'_> {
    /// Returns the number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) | Self::Bf16(values) => values.len(),
        }
    }

    /// Returns whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns a value as float32.
    #[inline(always)]
    fn get(&self, index: usize) -> f32 {
        match self {
            Self::F32(values) => values[index],
            Self::F16(values) => widen::f16(values[index]),
            Self::Bf16(values) => widen::bf16(values[index]),
        }
    }

    /// Writes 8 rows of 8 values as 8 columns; see [`Simd::transpose_f32`].
    ///
    /// # Safety
    /// The values from `index` on have 8 rows of `stride` values, 8 of the last; `to` has 8 rows of `to_stride` values.
    #[inline(always)]
    unsafe fn transpose<S: Simd>(&self, index: usize, stride: usize, to: *mut f32, to_stride: usize) {
        debug_assert!(index + 7 * stride + 8 <= self.len());
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::F32(values) => S::transpose_f32(values.as_ptr().add(index), stride, to, to_stride),
                Self::F16(values) => S::transpose_f16(values.as_ptr().add(index), stride, to, to_stride),
                Self::Bf16(values) => S::transpose_bf16(values.as_ptr().add(index), stride, to, to_stride),
            }
        }
    }
}

/// Some rows of a matrix, and some values of each.
#[derive(Clone, Copy)]
pub struct Part {
    /// The first row.
    pub row: usize,
    /// The number of rows, at most `S::COLUMNS`.
    pub rows: usize,
    /// The values of a row of the matrix.
    pub stride: usize,
    /// The first value of each row.
    pub first: usize,
    /// The number of values of each row.
    pub count: usize,
}

/// Copies rows of a matrix as columns, for the matrix kernel: `to[i · S::COLUMNS + j]` becomes value `i` of row `j`, and 0
/// behind the last row.
///
/// # Safety
/// The machine has the instruction set. `to` has `count · S::COLUMNS` values.
#[inline(always)]
pub unsafe fn pack<S: Simd>(values: Values<'_>, part: Part, to: *mut f32) {
    let Part {
        row,
        rows,
        stride,
        first,
        count,
    } = part;
    assert!(rows <= S::COLUMNS && (rows == 0 || (row + rows - 1) * stride + first + count <= values.len()));
    let whole = count / 8 * 8;
    for block in (0..S::COLUMNS).step_by(8) {
        let end = (block + 8).min(S::COLUMNS);
        let transposed = if block + 8 <= rows { whole } else { 0 };
        for i in (0..transposed).step_by(8) {
            // SAFETY: 8 rows and 8 values of each are inside the part, which the assertion above checked.
            unsafe {
                let from = (row + block) * stride + first + i;
                values.transpose::<S>(from, stride, to.add(i * S::COLUMNS + block), S::COLUMNS);
            }
        }
        for i in transposed..count {
            for j in block..end {
                let value = if j < rows {
                    values.get((row + j) * stride + first + i)
                } else {
                    0.0
                };
                // SAFETY: `i < count` and `j < S::COLUMNS`.
                unsafe { *to.add(i * S::COLUMNS + j) = value }
            }
        }
    }
}
