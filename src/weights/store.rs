//! One copy of equal weights.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

use tch::{Device, Kind, Tensor};

use super::digest::{Digest, FileIdentity, Memory};
use super::file::MappedFile;
use crate::torch;
use diffusion_core::{Error, Result};

/// What makes two tensors one: their bytes, how these are to be read, and what they were made into.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Of the bytes in the file.
    pub digest: Digest,
    /// The dtype in the file.
    pub from: Kind,
    /// Sides, in the file and here: weights are laid out contiguously.
    pub shape: Vec<i64>,
    /// The dtype here.
    pub kind: Kind,
    /// Where it is.
    pub device: Device,
}

impl Key {
    /// The tensor's length here, in bytes.
    pub fn bytes(&self) -> u64 {
        let elements = self.shape.iter().fold(1u64, |product, &side| {
            product.saturating_mul(u64::try_from(side).unwrap_or(0))
        });
        elements.saturating_mul(self.kind.elt_size_in_bytes() as u64)
    }
}

/// Where a tensor's values lie.
enum Values {
    /// In the file itself, mapped, and what the file was when it held them for certain.
    Mapped(Arc<MappedFile>, Range<usize>, Mutex<FileIdentity>),
    /// In memory of libtorch's.
    Owned(Tensor),
}

/// A tensor in the store. Every tensor that was handed out over it keeps it alive.
pub struct Held {
    key: Key,
    bytes: usize,
    values: Values,
}

// SAFETY: we never write to a map, and what others do to the file is ruled out by `TensorFile::open`. The tensor is never handed out: its
// address is all that is read of it here, until it is dropped, by the one owner that is left. On a GPU its values may still be on
// their way when it comes here, and nobody reads them before `Loader::load` has waited for them, which other loads on the device wait
// for in turn. libtorch's storage may be freed on any thread.
unsafe impl Sync for Held {}

// SAFETY: both kinds of values stay where they are, as long as they are and unwritten while `self` lives.
unsafe impl torch::Memory for Held {
    fn data(&self) -> *const u8 {
        match &self.values {
            Values::Mapped(file, range, _) => file.bytes()[range.clone()].as_ptr(),
            Values::Owned(tensor) => tensor.data_ptr().cast_const().cast(),
        }
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn device(&self) -> Device {
        self.key.device
    }
}

impl Held {
    /// Values in a mapped file.
    ///
    /// # Errors
    /// A range outside of the file.
    pub fn mapped(key: Key, file: Arc<MappedFile>, range: Range<usize>) -> Result<Self> {
        let bytes = file
            .bytes()
            .get(range.clone())
            .ok_or_else(|| Error::internal("a tensor outside of its file"))?
            .len();
        Ok(Self {
            key,
            bytes,
            values: Values::Mapped(Arc::clone(&file), range, Mutex::new(file.identity().clone())),
        })
    }

    /// Values in a tensor of the key's shape, dtype and device that nothing else refers to.
    pub fn owned(key: Key, tensor: Tensor) -> Self {
        Self {
            key,
            bytes: tensor.numel() * tensor.kind().elt_size_in_bytes(),
            values: Values::Owned(tensor),
        }
    }

    /// Whether the values are what was put here: those in a file may have been written over. A file that is another by its size or
    /// times is read again, once: its model may just have been deleted, which changes its time too.
    pub fn is_unchanged(&self) -> bool {
        let Values::Mapped(file, range, held_them) = &self.values else {
            return true;
        };
        let mut held_them = held_them.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(now) = file.identity_now() else {
            return false;
        };
        if *held_them == now {
            return true;
        }
        let bytes = file.bytes().get(range.clone()).unwrap_or_default();
        let same = Digest::of(bytes) == self.key.digest && file.identity_now().as_ref() == Some(&now);
        if same {
            *held_them = now;
        }
        same
    }

    /// A tensor over the values, for reading only: other models read them too.
    ///
    /// # Errors
    /// Out of memory.
    pub fn tensor(self: &Arc<Self>) -> Result<Tensor> {
        // SAFETY: weights are handed to models alone, which are `Frozen`: nothing writes to them.
        unsafe { torch::borrow(Arc::clone(self), &self.key.shape, self.key.kind) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        STORE.forget(&self.key);
    }
}

/// The place of one key: locked while its tensor is made, so that it is made once.
type Slot = Arc<Mutex<Weak<Held>>>;

/// The weights of all models in the process.
pub struct Store {
    slots: Mutex<HashMap<Key, Slot>>,
    /// Held by the load that places tensors on a device.
    placing: Mutex<HashMap<Device, Arc<Mutex<()>>>>,
    /// The digests of files that were read.
    pub memory: Memory,
}

/// The store of this process.
pub static STORE: LazyLock<Store> = LazyLock::new(|| Store {
    slots: Mutex::default(),
    placing: Mutex::default(),
    memory: Memory::new(),
});

impl Store {
    /// The tensor of this key, made by `make` if it is not there, or if its file was written into since: then whoever has it keeps
    /// it, and nobody else gets it.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn get(&self, key: &Key, make: impl FnOnce() -> Result<Held>) -> Result<Arc<Held>> {
        let slot = Arc::clone(self.slots().entry(key.clone()).or_default());
        let mut weak = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = weak.upgrade()
            && held.is_unchanged()
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

    /// To be locked by a load from the moment that it looks at what is free on the device until it has taken it.
    pub fn placing(&self, device: Device) -> Arc<Mutex<()>> {
        let mut placing = self.placing.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(placing.entry(device).or_default())
    }

    /// Whether [`Store::get`] would find a tensor of this key now, or one that is being made.
    pub fn has(&self, key: &Key) -> bool {
        let Some(slot) = self.slots().get(key).map(Arc::clone) else {
            return false;
        };
        let held = match slot.try_lock() {
            Ok(weak) => weak.upgrade(),
            Err(TryLockError::Poisoned(weak)) => weak.into_inner().upgrade(),
            Err(TryLockError::WouldBlock) => return true,
        };
        // Before the tensor: if it is the last of its kind it takes the slot away, which another count would keep.
        drop(slot);
        let Some(held) = held else {
            self.forget(key);
            return false;
        };
        held.is_unchanged()
    }

    /// The bytes of all tensors on `device`, each counted once.
    pub fn bytes(&self, device: Device) -> u64 {
        let slots = self.slots();
        let here = slots
            .iter()
            .filter(|(key, slot)| key.device == device && is_taken(slot));
        here.map(|(key, _)| key.bytes()).sum()
    }

    /// Takes the place of a tensor away that is gone, unless somebody is about to fill it again or has done so.
    fn forget(&self, key: &Key) {
        let mut slots = self.slots();
        // One count is the table's own; whoever is about to fill the slot has another, and got it under the table's lock.
        if slots
            .get(key)
            .is_some_and(|slot| Arc::strong_count(slot) == 1 && !is_taken(slot))
        {
            slots.remove(key);
        }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<Key, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Never waits: a slot that is locked is being filled. (To wait would be to hold the table's lock against the one who fills it.)
fn is_taken(slot: &Slot) -> bool {
    match slot.try_lock() {
        Ok(weak) => weak.strong_count() > 0,
        Err(TryLockError::Poisoned(weak)) => weak.into_inner().strong_count() > 0,
        Err(TryLockError::WouldBlock) => true,
    }
}
