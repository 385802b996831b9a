//! Models that instances share.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Weak};

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

    /// Returns a handle that does not keep the model in memory.
    pub fn downgrade(&self) -> WeakModel<T> {
        WeakModel(Arc::downgrade(&self.0))
    }

    /// Returns whether both are one model.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// A handle that does not keep its model in memory.
#[derive(Debug)]
pub struct WeakModel<T: Frozen>(Weak<T>);

// SAFETY: as for `SharedModel`, which it turns into.
unsafe impl<T: Frozen> Send for WeakModel<T> {}

impl<T: Frozen> WeakModel<T> {
    /// Returns the model if it is still in memory.
    pub fn upgrade(&self) -> Option<SharedModel<T>> {
        self.0.upgrade().map(SharedModel)
    }

    /// Returns whether the model is still in memory.
    pub fn is_alive(&self) -> bool {
        self.0.strong_count() > 0
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
