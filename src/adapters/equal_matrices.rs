//! Equal matrices of LoRAs are in memory once, whatever files and models they belong to.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use tch::{Device, Kind};

use crate::models::layers::LowRank;
use crate::weights::{SharedModel, WeakModel};

/// What makes the matrices of two layers equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct MatricesKey {
    /// The hash of the dtypes and bytes in the file.
    pub digest: blake3::Hash,
    /// The shapes in memory.
    pub shapes: [Vec<i64>; 2],
    /// The dtype in memory.
    pub kind: Kind,
    /// The device.
    pub device: Device,
}

/// Entries from which on those without matrices are removed.
const FIRST_CLEANING: usize = 1024;

struct Known {
    matrices: HashMap<MatricesKey, WeakModel<LowRank>>,
    /// The number of entries at which those without matrices are removed.
    cleaning: usize,
}

static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(|| {
    Mutex::new(Known {
        matrices: HashMap::new(),
        cleaning: FIRST_CLEANING,
    })
});

/// Returns the matrices with this key that are in memory already, or else those given, which later calls return.
pub(super) fn once(key: MatricesKey, matrices: SharedModel<LowRank>) -> SharedModel<LowRank> {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(equal) = known.matrices.get(&key).and_then(WeakModel::upgrade) {
        return equal;
    }
    if known.matrices.len() >= known.cleaning {
        known.matrices.retain(|_, matrices| matrices.is_alive());
        known.cleaning = FIRST_CLEANING.max(2 * known.matrices.len());
    }
    known.matrices.insert(key, matrices.downgrade());
    matrices
}
