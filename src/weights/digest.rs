//! What tensors hold, told by a hash, and remembered by the identity of their file.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

/// BLAKE3 of a tensor's bytes, as they lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The digest of all that the hasher was given.
    pub fn of_all(hasher: &blake3::Hasher) -> Self {
        Self(*hasher.finalize().as_bytes())
    }
}

/// What tells a file from every other, and from what it was before.
///
/// The time of its last change (ctime) is among it: unlike the time of its last modification nobody but the system sets it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileIdentity {
    /// Of an open file.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The digests of a file's tensors, by name.
pub type Digests = Arc<HashMap<String, Digest>>;

/// The digests of files that were read before: a second load of a file need not read what is in the store.
///
/// They say where to look: a tensor that is in the store under a remembered digest is taken without reading the file, on the word of
/// the file's identity. What enters the store was hashed by the load that put it there.
pub struct Memory {
    files: Mutex<HashMap<FileIdentity, Digests>>,
}

/// Files whose digests are remembered. One takes some hundred kilobytes; beyond this all are forgotten.
const MAX_FILES: usize = 256;

impl Memory {
    /// One that remembers nothing.
    pub fn new() -> Self {
        Self {
            files: Mutex::default(),
        }
    }

    /// The digests of a file, if it was read before and has not changed since.
    pub fn of(&self, file: &FileIdentity) -> Option<Digests> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.get(file).map(Arc::clone)
    }

    /// Remembers the digests of a file.
    pub fn remember(&self, file: FileIdentity, digests: Digests) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if files.len() >= MAX_FILES {
            files.clear();
        }
        files.insert(file, digests);
    }

    /// Forgets a file, since what was read last was not what is remembered.
    pub fn forget(&self, file: &FileIdentity) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.remove(file);
    }
}
