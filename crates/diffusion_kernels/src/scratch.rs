//! Buffers that a thread uses again from task to task.

use std::cell::RefCell;

/// Values of the largest buffer that a thread keeps: 32 MiB.
const MAX_KEPT: usize = 8 << 20;
/// The number of buffers that a thread keeps.
const MAX_BUFFERS: usize = 4;
/// Buffers begin at a cache line, of this many bytes.
const CACHE_LINE: usize = 64;
/// The bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;

thread_local! {
    static BUFFERS: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer whose values may be anything at first.
pub struct Scratch {
    values: Vec<f32>,
    start: usize,
    len: usize,
}

impl Scratch {
    /// Takes a buffer of `len` values: the smallest kept one that is large enough, or a new one.
    pub fn new(len: usize) -> Self {
        let padding = CACHE_LINE / size_of::<f32>();
        let mut values = BUFFERS.with_borrow_mut(|buffers| take(buffers, len + padding));
        if values.len() < len + padding {
            // The kernel gives zeroed pages, so a new buffer is written by its user alone.
            values = vec![0.0; len + padding];
            use_huge_pages(&values);
        }
        let start = values.as_ptr().align_offset(CACHE_LINE).min(padding);
        Self { values, start, len }
    }

    /// Returns the values.
    pub fn values(&mut self) -> &mut [f32] {
        &mut self.values[self.start..self.start + self.len]
    }
}

/// Asks for huge pages for the memory of a new buffer, before it is written: kernels read some hundred places of a buffer in
/// turn, more than the processor knows the addresses of small pages.
fn use_huge_pages(values: &[f32]) {
    let range = values.as_ptr_range();
    let start = range.start.addr().next_multiple_of(HUGE_PAGE);
    let end = range.end.addr() / HUGE_PAGE * HUGE_PAGE;
    if start < end && cfg!(all(target_os = "linux", not(miri))) {
        let offset = start - range.start.addr();
        // SAFETY: the pages belong to the buffer, and this advice does not change what they contain. Without huge pages
        // the call fails, and nothing changes.
        unsafe {
            libc::madvise(
                values.as_ptr().byte_add(offset).cast_mut().cast(),
                end - start,
                libc::MADV_HUGEPAGE,
            )
        };
    }
}

/// Takes the smallest buffer of at least `len` values out of `buffers`. Without one, drops the largest if no more can be
/// kept.
fn take(buffers: &mut Vec<Vec<f32>>, len: usize) -> Vec<f32> {
    buffers.sort_by_key(Vec::len);
    match buffers.iter().position(|buffer| buffer.len() >= len) {
        Some(index) => buffers.remove(index),
        None if buffers.len() >= MAX_BUFFERS => {
            buffers.pop();
            Vec::new()
        }
        None => Vec::new(),
    }
}

/// Keeps the buffer for later.
impl Drop for Scratch {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        if values.len() <= MAX_KEPT {
            // A thread that ends keeps nothing.
            let _ = BUFFERS.try_with(|buffers| buffers.borrow_mut().push(values));
        }
    }
}
