//! Digests of tensors, cached by the identity of their file.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

/// The BLAKE3 hash of a tensor's bytes in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Computes the digest of bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Returns the 32 bytes of the digest.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the digest of all input of a hasher.
    pub fn of_all(hasher: &blake3::Hasher) -> Self {
        Self(*hasher.finalize().as_bytes())
    }
}

/// The identity of a file and of its contents.
///
/// It includes the time of the last change (ctime), which only the system sets, unlike the time of the last
/// modification.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileIdentity {
    /// Makes the identity of an open file.
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

/// The digests of files that were read before, so a second load of a file does not read tensors that are in the store.
///
/// A cached digest only finds a tensor in the store, and relies on the identity of the file. A tensor that is added to
/// the store is hashed by the load that adds it.
pub struct DigestCache {
    files: Mutex<HashMap<FileIdentity, Digests>>,
}

/// Largest number of files. The cache is cleared when it is full.
const MAX_FILES: usize = 256;

/// Largest number of digests of all files: about 20 MB.
const MAX_DIGESTS: usize = 200_000;

impl DigestCache {
    /// Makes an empty cache.
    pub fn new() -> Self {
        Self {
            files: Mutex::default(),
        }
    }

    /// Returns the digests of a file that has not changed since it was read.
    pub fn get(&self, file: &FileIdentity) -> Option<Digests> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.get(file).map(Arc::clone)
    }

    /// Adds the digests of a file.
    pub fn insert(&self, file: FileIdentity, digests: Digests) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let all = files.values().map(|digests| digests.len()).sum::<usize>() + digests.len();
        if files.len() >= MAX_FILES || all > MAX_DIGESTS {
            files.clear();
        }
        files.insert(file, digests);
    }

    /// Returns the number of digests.
    #[cfg(test)]
    fn len(&self) -> usize {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.values().map(|digests| digests.len()).sum()
    }

    /// Removes a file whose contents did not match.
    pub fn remove(&self, file: &FileIdentity) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.remove(file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_is_bounded() {
        let file = |inode: u64| FileIdentity {
            device: 1,
            inode,
            size: 1,
            modified: (1, 1),
            changed: (1, 1),
        };
        let digests = |count: usize| Arc::new((0..count).map(|n| (n.to_string(), Digest::of(b"a"))).collect());
        let cache = DigestCache::new();
        let half = digests(MAX_DIGESTS / 2 + 1);
        for inode in 0..3 {
            cache.insert(file(inode), Arc::clone(&half));
            assert_eq!(cache.len(), half.len());
        }
        let one = digests(1);
        for inode in 0..1000 {
            cache.insert(file(inode), Arc::clone(&one));
            assert!(cache.len() <= half.len() + MAX_FILES);
        }
    }
}
