//! The store of weights, with one copy of equal tensors.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

use tch::{Device, Kind, Tensor};

use super::digest::{Digest, DigestCache, FileIdentity};
use super::file::MappedFile;
use crate::torch;
use diffusion_core::{Error, Result};

/// The identity of a stored tensor. Tensors with equal keys are shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The digest of the bytes in the file.
    pub digest: Digest,
    /// The dtype in the file.
    pub from: Kind,
    /// The shape, in the file and in the store: weights are contiguous.
    pub shape: Vec<i64>,
    /// The dtype in the store.
    pub kind: Kind,
    /// The device of the tensor.
    pub device: Device,
    /// Whether the tensor may be in the map of a file; true for a GPU. A model whose weights are copied does not use the maps
    /// of others.
    pub may_map: bool,
}

impl Key {
    /// Returns the bytes of the tensor in the store.
    pub fn bytes(&self) -> u64 {
        let elements = self.shape.iter().fold(1u64, |product, &side| {
            product.saturating_mul(u64::try_from(side).unwrap_or(0))
        });
        elements.saturating_mul(self.kind.elt_size_in_bytes() as u64)
    }
}

/// The memory of a tensor.
enum Storage {
    /// In the map of its file, with the identity of the file when its contents were last verified.
    Mapped(Arc<MappedFile>, Range<usize>, Mutex<FileIdentity>),
    /// In memory of libtorch.
    Owned(Tensor),
}

/// A tensor in the store. The tensors over it, which models hold, keep it alive.
pub struct StoredTensor {
    key: Key,
    bytes: usize,
    values: Storage,
}

// SAFETY: a map is never written, and `TensorFile::open` says why other processes do not write to the file. An owned
// tensor is never handed out: only its address is read, until its last owner drops it. On a GPU its values may still be
// in a copy when it is stored; nobody reads them before `Loader::load` has waited for the copy, and other loads on the
// device wait for that load. libtorch may free its storage on any thread.
unsafe impl Sync for StoredTensor {}

// SAFETY: both kinds of storage keep their address, their length and their contents while `self` lives.
unsafe impl torch::TensorStorage for StoredTensor {
    fn data(&self) -> *const u8 {
        match &self.values {
            Storage::Mapped(file, range, _) => file.bytes()[range.clone()].as_ptr(),
            Storage::Owned(tensor) => tensor.data_ptr().cast_const().cast(),
        }
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn device(&self) -> Device {
        self.key.device
    }
}

impl StoredTensor {
    /// Makes a tensor in a mapped file.
    ///
    /// # Errors
    /// `Internal` for a range outside of the file.
    pub fn mapped(key: Key, file: Arc<MappedFile>, range: Range<usize>) -> Result<Self> {
        let bytes = file
            .bytes()
            .get(range.clone())
            .ok_or_else(|| Error::internal("a tensor outside of its file"))?
            .len();
        Ok(Self {
            key,
            bytes,
            values: Storage::Mapped(Arc::clone(&file), range, Mutex::new(file.identity().clone())),
        })
    }

    /// Makes a tensor from one with the key's shape, dtype and device that has no other owner.
    pub fn owned(key: Key, tensor: Tensor) -> Self {
        Self {
            key,
            bytes: tensor.numel() * tensor.kind().elt_size_in_bytes(),
            values: Storage::Owned(tensor),
        }
    }

    /// Returns whether the contents are still those of the key, for a load of `reader`: a process may have written into the
    /// mapped file. A file with another size or times is hashed again, once, because deleting the model also changes the
    /// times. For another file the contents are always hashed: a process that has the file mapped can change it without a
    /// change of its times, and must not reach the models of others.
    pub fn is_unchanged(&self, reader: &FileIdentity) -> bool {
        let Storage::Mapped(file, range, verified) = &self.values else {
            return true;
        };
        let mut verified = verified.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(now) = file.identity_now().filter(|_| !file.is_lost()) else {
            return false;
        };
        if *verified == now && now == *reader {
            return true;
        }
        let bytes = file.bytes().get(range.clone()).unwrap_or_default();
        let same =
            Digest::of(bytes) == self.key.digest && file.identity_now().as_ref() == Some(&now) && !file.is_lost();
        if same {
            *verified = now;
        }
        same
    }

    /// Returns the mapped file that the tensor is in.
    pub fn mapped_file(&self) -> Option<&Arc<MappedFile>> {
        match &self.values {
            Storage::Mapped(file, ..) => Some(file),
            Storage::Owned(_) => None,
        }
    }

    /// Returns a read-only tensor over the storage, which other models share.
    pub fn tensor(self: &Arc<Self>) -> Result<Tensor> {
        // SAFETY: only models get weights, and they are `Frozen`: they do not write to them.
        unsafe { torch::from_blob(Arc::clone(self), &self.key.shape, self.key.kind) }
    }
}

impl Drop for StoredTensor {
    fn drop(&mut self) {
        STORE.forget(&self.key);
    }
}

/// The slot of one key, locked while its tensor is made, so it is made once.
type Slot = Arc<Mutex<Weak<StoredTensor>>>;

/// The weights of all models in the process.
pub struct Store {
    slots: Mutex<HashMap<Key, Slot>>,
    /// One lock per device, which a load holds while it allocates.
    /// The memory that loads have reserved on each device.
    loading: Mutex<HashMap<Device, u64>>,
    /// Notified when a load ends.
    loaded: Condvar,
    /// The digests of files that were read before.
    pub digests: DigestCache,
}

/// The store of this process.
pub static STORE: LazyLock<Store> = LazyLock::new(|| Store {
    slots: Mutex::default(),
    loading: Mutex::default(),
    loaded: Condvar::new(),
    digests: DigestCache::new(),
});

impl Store {
    /// Returns the tensor of a key for a load of `reader`. Calls `make` if there is none, or if its file has been written to; models that have
    /// the old tensor keep it.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn get_or_insert(
        &self,
        key: &Key,
        reader: &FileIdentity,
        make: impl FnOnce() -> Result<StoredTensor>,
    ) -> Result<Arc<StoredTensor>> {
        let slot = Arc::clone(self.slots().entry(key.clone()).or_default());
        let mut weak = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = weak.upgrade()
            && held.is_unchanged(reader)
        {
            return Ok(held);
        }
        match make() {
            Ok(held) => {
                let held = Arc::new(held);
                *weak = Arc::downgrade(&held);
                Ok(held)
            }
            Err(error) => {
                drop(weak);
                drop(slot);
                self.forget(key);
                Err(error)
            }
        }
    }

    /// Reserves memory of a device for a load, until the result is dropped. `check` gets what other loads have reserved, and
    /// returns what this load needs. If there is not enough next to other loads, waits until one of them ends; loads that
    /// fit do not wait for one whose files are slow.
    ///
    /// # Errors
    /// That of `check` if no other load is left.
    pub fn reserve(&self, device: Device, check: impl Fn(u64) -> Result<u64>) -> Result<LoadReservation<'_>> {
        let mut loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let reserved = loading.get(&device).copied().unwrap_or(0);
            match check(reserved) {
                Ok(bytes) => {
                    *loading.entry(device).or_default() += bytes;
                    return Ok(LoadReservation {
                        store: self,
                        device,
                        bytes,
                    });
                }
                Err(error) if reserved == 0 => return Err(error),
                Err(_) => loading = self.loaded.wait(loading).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Returns whether the store has a tensor of this key, or one is being made. Its contents are verified by
    /// [`Store::get_or_insert`].
    pub fn has(&self, key: &Key) -> bool {
        let Some(slot) = self.slots().get(key).map(Arc::clone) else {
            return false;
        };
        let held = match slot.try_lock() {
            Ok(weak) => weak.upgrade(),
            Err(TryLockError::Poisoned(weak)) => weak.into_inner().upgrade(),
            Err(TryLockError::WouldBlock) => return true,
        };
        // Dropped before the tensor: if this is its last owner, the drop removes the slot, unless there is another
        // count.
        drop(slot);
        if held.is_none() {
            self.forget(key);
        }
        held.is_some()
    }

    /// Returns the bytes of all tensors on `device`, each counted once.
    pub fn bytes(&self, device: Device) -> u64 {
        let slots = self.slots();
        let here = slots
            .iter()
            .filter(|(key, slot)| key.device == device && is_filled(slot));
        here.map(|(key, _)| key.bytes()).sum()
    }

    /// Removes the slot of a dropped tensor, unless it is filled again or about to be.
    fn forget(&self, key: &Key) {
        let mut slots = self.slots();
        // One count is that of the table. A thread that is about to fill the slot has another, which it got under the
        // lock of the table.
        if slots
            .get(key)
            .is_some_and(|slot| Arc::strong_count(slot) == 1 && !is_filled(slot))
        {
            slots.remove(key);
        }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<Key, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory that a load has reserved.
pub struct LoadReservation<'a> {
    store: &'a Store,
    device: Device,
    bytes: u64,
}

impl Drop for LoadReservation<'_> {
    fn drop(&mut self) {
        let mut loading = self.store.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reserved) = loading.get_mut(&self.device) {
            *reserved = reserved.saturating_sub(self.bytes);
        }
        drop(loading);
        self.store.loaded.notify_all();
    }
}

/// Returns whether a slot has a tensor. Does not wait: a locked slot is being filled, and its thread may need the lock
/// of the table.
fn is_filled(slot: &Slot) -> bool {
    match slot.try_lock() {
        Ok(weak) => weak.strong_count() > 0,
        Err(TryLockError::Poisoned(weak)) => weak.into_inner().strong_count() > 0,
        Err(TryLockError::WouldBlock) => true,
    }
}
