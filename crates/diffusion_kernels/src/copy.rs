//! Copies by several threads.

use std::ops::Range;

use crate::pool;
use crate::shared::Shared;

/// Values below which one thread copies.
const FEW: usize = 1 << 15;

/// Writes the channels of two maps side by side: rows of `left_size` and of `right_size` values to rows of both.
///
/// # Panics
/// If the slices have different numbers of rows.
pub fn join_channels(left: &[f32], left_size: usize, right: &[f32], right_size: usize, out: &mut [f32]) {
    let size = left_size + right_size;
    assert!(size > 0 && out.len().is_multiple_of(size));
    let rows = out.len() / size;
    assert!(left.len() == rows * left_size && right.len() == rows * right_size);
    let parts = if out.len() < FEW { 1 } else { 4 * pool::threads() };
    let shared = Shared::new(out);
    pool::for_each(parts, |part| {
        let rows = range(rows, parts, part);
        // SAFETY: each task has its own rows.
        let out = unsafe { std::slice::from_raw_parts_mut(shared.pointer().add(rows.start * size), rows.len() * size) };
        for (row, to) in rows.zip(out.chunks_mut(size)) {
            to[..left_size].copy_from_slice(&left[row * left_size..][..left_size]);
            to[left_size..].copy_from_slice(&right[row * right_size..][..right_size]);
        }
    });
}

/// The share of one of `parts` parts.
fn range(count: usize, parts: usize, part: usize) -> Range<usize> {
    count * part / parts..count * (part + 1) / parts
}
