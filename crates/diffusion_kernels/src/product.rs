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

/// Divides `count` rows into the fewest parts of at most `S::ROWS`, nearly equal ones: a product of one or two rows would
/// wait for its sums. Returns the first row of each part, and its number of rows.
#[inline(always)]
pub fn row_chunks<S: Simd>(count: usize) -> impl Iterator<Item = (usize, usize)> {
    let parts = count.div_ceil(S::ROWS);
    (0..parts).map(move |part| {
        let start = count * part / parts;
        (start, count * (part + 1) / parts - start)
    })
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
        match count {
            1 => product::<S, 1>(depth, rows, columns, sums),
            2 => product::<S, 2>(depth, rows, columns, sums),
            3 => product::<S, 3>(depth, rows, columns, sums),
            4 => product::<S, 4>(depth, rows, columns, sums),
            5 => product::<S, 5>(depth, rows, columns, sums),
            6 => product::<S, 6>(depth, rows, columns, sums),
            _ if S::ROWS <= 6 => {}
            7 => product::<S, 7>(depth, rows, columns, sums),
            8 => product::<S, 8>(depth, rows, columns, sums),
            9 => product::<S, 9>(depth, rows, columns, sums),
            10 => product::<S, 10>(depth, rows, columns, sums),
            11 => product::<S, 11>(depth, rows, columns, sums),
            12 => product::<S, 12>(depth, rows, columns, sums),
            _ => {}
        }
    }
}
