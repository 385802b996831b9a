//! Models that instances share.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A model that never writes to its own tensors.
///
/// # Safety
/// Nothing that takes `&self` may write to a tensor that the model holds (in-place operations,
/// `set_requires_grad`, `set_data`, ...), and the model has no interior mutability.
pub unsafe trait Frozen: Send {}

/// A loaded model that several threads read.
///
/// Tensors of tch are `Send` but not `Sync`, since any tensor can be written through a shared reference. A [`Frozen`]
/// model writes to none.
pub struct SharedModel<T: Frozen>(Arc<T>);

// SAFETY: `T` is reached by shared reference only and, being `Frozen`, reads only; libtorch permits
// concurrent reads of one tensor, and its reference counts are atomic.
unsafe impl<T: Frozen> Send for SharedModel<T> {}
// SAFETY: as above.
unsafe impl<T: Frozen> Sync for SharedModel<T> {}

impl<T: Frozen> SharedModel<T> {
    /// Makes a model shareable.
    pub fn new(model: T) -> Self {
        Self(Arc::new(model))
    }
}

impl<T: Frozen> Clone for SharedModel<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Frozen> fmt::Debug for SharedModel<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedModel")
    }
}

impl<T: Frozen> Deref for SharedModel<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
