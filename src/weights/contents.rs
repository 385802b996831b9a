//! What is in the weights of a component, whatever files they are in.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::component::Component;
use super::digest::{Digest, Digests};
use super::file::TensorFile;
use super::loader::is_float;
use super::parallel::in_parallel;
use super::store::STORE;
use diffusion_core::{Error, Result};

/// Adds the float tensors of a component to a hash, by their names: dtypes, shapes and the digests of their bytes. See
/// [`Component::open`] for `stem`.
///
/// # Errors
/// Those of [`Component::open`]; `Unsupported` for a dtype that is not supported.
pub fn hash_component(folder: &Path, stem: &str, hasher: &mut blake3::Hasher) -> Result<()> {
    let component = Component::open(folder, stem)?;
    let mut tensors: BTreeMap<String, (String, Digest)> = BTreeMap::new();
    for file in component.files() {
        for (name, digest) in digests(file)?.iter() {
            if let Some(info) = file.info(name) {
                tensors.insert(name.clone(), (format!("{:?} {:?}", info.dtype, info.shape), *digest));
            }
        }
    }
    for (name, (kind, digest)) in tensors {
        for text in [name, kind] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        hasher.update(digest.bytes());
    }
    Ok(())
}

/// Returns the digests of the float tensors of a file: those of an earlier load, or computed now.
fn digests(file: &TensorFile) -> Result<Digests> {
    if let Some(cached) = STORE.digests.get(file.identity()) {
        return Ok(cached);
    }
    let mut names = Vec::new();
    for name in file.names() {
        let info = file
            .info(&name)
            .ok_or_else(|| Error::internal("a tensor that is not in its file"))?;
        if is_float(file.kind(&name, info)?) {
            names.push((name, info));
        }
    }
    names.sort_by_key(|(_, info)| std::cmp::Reverse(info.data_offsets.1 - info.data_offsets.0));
    let digests = in_parallel(&names, |(_, info)| Ok(Digest::of(file.bytes(info)?)))?;
    let digests: HashMap<String, Digest> = names.into_iter().map(|(name, _)| name).zip(digests).collect();
    let digests = Arc::new(digests);
    STORE.digests.insert(file.identity().clone(), Arc::clone(&digests));
    Ok(digests)
}
