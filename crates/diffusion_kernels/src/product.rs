//! The matrix kernel: some rows times two vectors of columns.
//!
//! A sum over the depth is always added up in order, one term after the other, whatever the number of rows. All kernels
//! of this crate are batch-invariant for this reason: a row has the same bytes in any company.

use crate::simd::Simd;

/// Rows of values at equal distances.
#[derive(Clone, Copy)]
pub struct Rows {
    /// The first value of the first row.
    pub data: *const f32,
    /// Values from row to row.
    pub stride: usize,
}

impl Rows {
    /// The rows from `row` on.
    ///
    /// # Safety
    /// There is such a row.
    #[inline(always)]
    pub unsafe fn from(self, row: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Self {
                data: self.data.add(row * self.stride),
                stride: self.stride,
            }
        }
    }
}

/// Where the sums go.
#[derive(Clone, Copy)]
pub struct Sums {
    /// The first value of the first row; `S::COLUMNS` values of each row are written.
    pub data: *mut f32,
    /// Values from row to row.
    pub stride: usize,
    /// Whether to add to what is there.
    pub add: bool,
}

/// Computes the sums of `R` rows.
#[inline(always)]
unsafe fn product<S: Simd, const R: usize>(depth: usize, rows: Rows, columns: *const f32, sums: Sums) {
    // SAFETY: the promises of `products`.
    unsafe {
        let mut acc = [[S::splat(0.0); 2]; R];
        if sums.add {
            for (r, acc) in acc.iter_mut().enumerate() {
                let from = sums.data.add(r * sums.stride);
                *acc = [S::load(from), S::load(from.add(S::LANES))];
            }
        }
        let mut row = rows.data;
        let mut column = columns;
        for _ in 0..depth {
            let b0 = S::load(column);
            let b1 = S::load(column.add(S::LANES));
            for (r, acc) in acc.iter_mut().enumerate() {
                let a = S::splat(*row.add(r * rows.stride));
                acc[0] = S::mul_add(a, b0, acc[0]);
                acc[1] = S::mul_add(a, b1, acc[1]);
            }
            row = row.add(1);
            column = column.add(S::COLUMNS);
        }
        for (r, acc) in acc.into_iter().enumerate() {
            let to = sums.data.add(r * sums.stride);
            S::store(to, acc[0]);
            S::store(to.add(S::LANES), acc[1]);
        }
    }
}

/// Computes the product of `count` rows, at most `S::ROWS`, and packed columns.
///
/// # Safety
/// The machine has the instruction set. Each row has `depth` values, `columns` has `depth · S::COLUMNS`, and `sums` has
/// `S::COLUMNS` values for each row.
#[inline(always)]
pub unsafe fn products<S: Simd>(count: usize, depth: usize, rows: Rows, columns: *const f32, sums: Sums) {
    // SAFETY: the caller's promise.
    unsafe {
        if S::ROWS == 12 && count == 12 {
            product::<S, 12>(depth, rows, columns, sums);
        } else if count > 6 {
            product::<S, 6>(depth, rows, columns, sums);
            let rest = Sums {
                data: sums.data.add(6 * sums.stride),
                ..sums
            };
            few::<S>(count - 6, depth, rows.from(6), columns, rest);
        } else {
            few::<S>(count, depth, rows, columns, sums);
        }
    }
}

/// Does what [`products`] does, for at most 6 rows.
#[inline(always)]
unsafe fn few<S: Simd>(count: usize, depth: usize, rows: Rows, columns: *const f32, sums: Sums) {
    // SAFETY: the promises of `products`.
    unsafe {
        match count {
            1 => product::<S, 1>(depth, rows, columns, sums),
            2 => product::<S, 2>(depth, rows, columns, sums),
            3 => product::<S, 3>(depth, rows, columns, sums),
            4 => product::<S, 4>(depth, rows, columns, sums),
            5 => product::<S, 5>(depth, rows, columns, sums),
            6 => product::<S, 6>(depth, rows, columns, sums),
            _ => {}
        }
    }
}
