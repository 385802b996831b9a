//! The digest of a checkpoint, by which models name the base that they share.

use std::fs;
use std::path::Path;

use blake3::Hasher;

use super::ModelIndex;
use super::checkpoint_files::{served_components, served_files};
use crate::weights::{MAX_JSON_BYTES, Variant, WeightFiles, check_size, hash_component};
use diffusion_core::config::Base;
use diffusion_core::{Error, Result};

/// Returns the digest of a checkpoint: [`Base::DIGEST`] and a BLAKE3 hash in hexadecimal digits. Checkpoints with one digest
/// give the same images.
///
/// Hashed are the text files that the server reads, with their paths, and the float tensors of each component by their
/// names, dtypes, shapes and bytes. So the digest does not depend on how the tensors are divided into files. The tensors of
/// a checkpoint that was loaded are not read again.
///
/// # Errors
/// Those of [`served_files`]; `NotFound` or `InvalidArgument` for a file that cannot be read.
pub fn checkpoint_digest(folder: &Path) -> Result<String> {
    let mut hasher = Hasher::new();
    for path in served_files(folder, Variant::Main)? {
        let is_text = path.extension().is_some_and(|end| end == "json" || end == "txt");
        let name = path.as_os_str().as_encoded_bytes();
        // The list of shards is about files.
        if !is_text || name.ends_with(b".safetensors.index.json") {
            continue;
        }
        let path = folder.join(&path);
        check_size(&path, MAX_JSON_BYTES)?;
        let bytes = fs::read(&path).map_err(|error| Error::not_found(format!("{}: {error}", path.display())))?;
        add(&mut hasher, name);
        add(&mut hasher, &bytes);
    }
    let index = ModelIndex::read(folder)?;
    for spec in served_components(folder, &index) {
        let own = folder.join(spec.name);
        if let Some(stem) = spec.stem
            && WeightFiles::find(&own, stem, Variant::Main)?.is_some()
        {
            add(&mut hasher, spec.name.as_bytes());
            hash_component(&own, stem, &mut hasher)?;
        }
    }
    Ok(format!("{}{}", Base::DIGEST, hasher.finalize().to_hex()))
}

/// Adds bytes after their length, so that no two lists of texts are hashed alike.
fn add(hasher: &mut Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}
