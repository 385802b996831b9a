//! Results that several tasks write.

use std::marker::PhantomData;

/// A slice of which each task writes its own part.
pub struct Shared<'a> {
    data: *mut f32,
    slice: PhantomData<&'a mut [f32]>,
}

// SAFETY: only a pointer is handed out. Who writes through it promises that no other task has the same part.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    /// Shares a slice.
    pub fn new(slice: &'a mut [f32]) -> Self {
        Self {
            data: slice.as_mut_ptr(),
            slice: PhantomData,
        }
    }

    /// Returns a pointer to the first value.
    pub fn pointer(&self) -> *mut f32 {
        self.data
    }
}
