//! Puts a tensor of a mapped file onto its device, in the dtype that the model uses.

use std::sync::Arc;

use tch::{Device, Kind};

use super::convert::convert_into;
use super::digest::Digest;
use super::file::TensorFile;
use super::store::{Key, StoredTensor};
use crate::torch::{Unwritten, Uploader};
use diffusion_core::{Error, Result};

/// libtorch's CPU allocator aligns to this many bytes (`c10/core/alignment.h`). The sums of MKL may depend on the
/// alignment of its inputs, so a float32 tensor is used in its file only if it is aligned like a copy. Other dtypes
/// promise no exact sums, or are upcast before any sum.
const ALIGNMENT: usize = 64;
/// A smaller tensor is copied: it is not worth keeping the map of a whole file.
const MIN_MAPPED_BYTES: usize = 1 << 20;
/// Elements that are converted at once.
const CHUNK: usize = 16384;

/// Makes the stored tensor of `key` from tensor `name` of `file`: mapped where the file's bytes can be used, else
/// copied.
///
/// `hashed` says that the key's digest was just computed from this map, and is not the cached digest of the file. A
/// mapped tensor is then not hashed again; only a change of the file's size or times is noticed.
///
/// # Errors
/// `Unavailable` if the bytes do not have the key's digest; out of memory; those of CUDA.
pub fn materialize(file: &TensorFile, name: &str, key: Key, hashed: bool, uploader: &Uploader) -> Result<StoredTensor> {
    let info = file
        .info(name)
        .ok_or_else(|| Error::internal("a tensor that its file lacks"))?;
    let bytes = file.bytes(info)?;
    let changed = || {
        Error::unavailable(format!(
            "{}: changed while it was read; load the model again",
            file.path().display()
        ))
    };
    if can_map(&key, bytes) {
        let digest = key.digest;
        let held = StoredTensor::mapped(key, Arc::clone(file.mapped()), file.range(info))?;
        let same = hashed || Digest::of(bytes) == digest;
        if !same || file.mapped().identity_now().as_ref() != Some(file.identity()) || file.mapped().is_lost() {
            return Err(changed());
        }
        return Ok(held);
    }
    // Hashes the bytes that are converted, since the file may change at any moment, and other models may get the
    // tensor.
    let mut hasher = blake3::Hasher::new();
    if key.bytes() / key.kind.elt_size_in_bytes() as u64 * key.from.elt_size_in_bytes() as u64 != bytes.len() as u64 {
        return Err(Error::internal("a tensor that does not fill its shape"));
    }
    let mut rest = bytes;
    // Converts before the copy: half-precision tensors then need half of the bus, and diffusers also rounds on the CPU.
    let tensor = uploader.tensor(&key.shape, key.kind, |target| {
        let length = target.remaining() / key.kind.elt_size_in_bytes() * key.from.elt_size_in_bytes();
        let (source, after) = rest
            .split_at_checked(length)
            .ok_or_else(|| Error::internal("a tensor that ends before its shape"))?;
        rest = after;
        convert(source, key.from, target, key.kind, &mut hasher)
    })?;
    if Digest::of_all(&hasher) != key.digest {
        return Err(changed());
    }
    Ok(StoredTensor::owned(key, tensor))
}

/// Returns whether a tensor with these bytes is used in the map of its file.
pub fn can_map(key: &Key, bytes: &[u8]) -> bool {
    let alignment = match key.kind {
        Kind::Float => ALIGNMENT,
        kind => kind.elt_size_in_bytes(),
    };
    key.may_map
        && key.device == Device::Cpu
        && key.from == key.kind
        && bytes.len() >= MIN_MAPPED_BYTES
        && (bytes.as_ptr() as usize).is_multiple_of(alignment)
}

/// Converts `source` of dtype `from`, which need not be aligned, to dtype `to` and writes it to `target`. Every byte that is
/// converted goes through `hasher`.
fn convert(source: &[u8], from: Kind, target: &mut Unwritten<'_>, to: Kind, hasher: &mut blake3::Hasher) -> Result<()> {
    let (from_size, to_size) = (from.elt_size_in_bytes(), to.elt_size_in_bytes());
    // Aligned for every dtype.
    let aligned = |bytes: usize| vec![0u64; bytes.div_ceil(size_of::<u64>())];
    let (mut chunk, mut converted) = (aligned(CHUNK * from_size), aligned(CHUNK * to_size));
    let chunk: &mut [u8] = bytemuck::cast_slice_mut(&mut chunk);
    let converted: &mut [u8] = bytemuck::cast_slice_mut(&mut converted);
    for source in source.chunks(CHUNK * from_size) {
        let chunk = &mut chunk[..source.len()];
        chunk.copy_from_slice(source);
        hasher.update(chunk);
        if from == to {
            target.write(chunk)?;
        } else {
            let converted = &mut converted[..source.len() / from_size * to_size];
            convert_into(chunk, from, converted, to)?;
            target.write(converted)?;
        }
    }
    Ok(())
}
