//! A tensor's bytes, from a mapped file into the dtype and onto the device where they are used.

use std::sync::Arc;

use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use tch::{Device, Kind, Tensor};

use super::digest::Digest;
use super::file::TensorFile;
use super::store::{Held, Key};
use crate::torch::{Upload, memory};
use diffusion_core::{Error, Result};

/// libtorch's CPU allocator aligns to this many bytes (`c10/core/alignment.h`); MKL's sums may depend on the alignment of
/// what it reads, so that a tensor of float32 is used in its file only where it lies as a copy would. Nobody is promised the bytes of
/// sums in another dtype, and one that stays narrow is widened before anything is summed.
const ALIGNMENT: usize = 64;
/// A smaller tensor is copied: used in place, it would hold the map of a whole file for whoever shares it.
const LEAST_IN_PLACE: usize = 1 << 20;
/// Elements that are converted at once.
const CHUNK: usize = 16384;

/// Puts tensor `name` of `file` where `key` says: left in the file where it can be used as it lies there, else copied.
///
/// `hashed` says that the key's digest is of this map, just now, and not what is remembered of the file: then one that is left there is
/// not hashed again, and only a file that changed in between by its size or times is noticed.
///
/// # Errors
/// `Unavailable` if the bytes are not those of the key's digest; out of memory, or what CUDA says.
pub fn place(file: &TensorFile, name: &str, key: Key, hashed: bool, upload: &Upload) -> Result<Held> {
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
    if stays(&key, bytes) {
        let digest = key.digest;
        let held = Held::mapped(key, Arc::clone(file.mapped()), file.range(info))?;
        let same = hashed || Digest::of(bytes) == digest;
        if !same || file.mapped().identity_now().as_ref() != Some(file.identity()) {
            return Err(changed());
        }
        return Ok(held);
    }
    // The bytes that are hashed are those that are converted: the file may change at any moment, and what lies under a digest may be
    // handed to the models of others.
    let mut hasher = blake3::Hasher::new();
    let tensor = match converted(bytes, &key, upload, &mut hasher)? {
        Some(tensor) => tensor,
        None => {
            let own = bytes.to_vec();
            hasher.update(&own);
            Tensor::f_from_data_size(&own, &key.shape, key.from)?.f_to_kind(key.kind)?
        }
    };
    if Digest::of_all(&hasher) != key.digest {
        return Err(changed());
    }
    // Dtype before device: half-precision files cross the bus in half the bytes only if the target is half too, and the CPU's
    // rounding is the one that diffusers gets.
    Ok(Held::owned(key, upload.send(tensor)?))
}

/// Whether a tensor with these bytes, in the map of its file, is used there.
pub fn stays(key: &Key, bytes: &[u8]) -> bool {
    let alignment = match key.kind {
        Kind::Float => ALIGNMENT,
        kind => kind.elt_size_in_bytes(),
    };
    key.device == Device::Cpu
        && key.from == key.kind
        && bytes.len() >= LEAST_IN_PLACE
        && (bytes.as_ptr() as usize).is_multiple_of(alignment)
}

/// A copy on the CPU in the key's dtype, for the dtypes that weights have.
///
/// Not by libtorch's own conversion: that would start a team of threads in each thread that loads.
fn converted(bytes: &[u8], key: &Key, upload: &Upload, hasher: &mut blake3::Hasher) -> Result<Option<Tensor>> {
    let new = || upload.staging(&key.shape, key.kind);
    let tensor = match (key.from, key.kind) {
        (Kind::Half, Kind::Float) => filled(new()?, bytes, hasher, |from: &[f16], to: &mut [f32]| {
            from.convert_to_f32_slice(to);
        }),
        (Kind::BFloat16, Kind::Float) => filled(new()?, bytes, hasher, |from: &[bf16], to: &mut [f32]| {
            from.convert_to_f32_slice(to);
        }),
        (Kind::Float, Kind::Half) => filled(new()?, bytes, hasher, |from: &[f32], to: &mut [f16]| {
            to.convert_from_f32_slice(from);
        }),
        (Kind::Float, Kind::BFloat16) => filled(new()?, bytes, hasher, |from: &[f32], to: &mut [bf16]| {
            to.convert_from_f32_slice(from);
        }),
        (from, to) if from == to => filled(new()?, bytes, hasher, |from: &[u8], to: &mut [u8]| {
            to.copy_from_slice(from)
        }),
        _ => return Ok(None),
    };
    tensor.map(Some)
}

/// `new`, a tensor on the host that nothing else refers to, filled by `convert`, a chunk of `bytes` at a time, each of which goes through `hasher`; the bytes need not
/// be aligned.
fn filled<A: Pod, B: Pod>(
    new: Tensor,
    bytes: &[u8],
    hasher: &mut blake3::Hasher,
    convert: impl Fn(&[A], &mut [B]),
) -> Result<Tensor> {
    let count = new.numel() * new.kind().elt_size_in_bytes() / size_of::<B>();
    if count * size_of::<A>() != bytes.len() {
        return Err(Error::internal("a tensor that does not fill its shape"));
    }
    let data = new.data_ptr().cast::<B>();
    memory::prefer_huge_pages(data.cast(), count * size_of::<B>());
    let to = if count == 0 {
        &mut [][..]
    } else {
        // SAFETY: the tensor is new, contiguous, `count` elements of `B` long and aligned for any number; nothing else refers to it.
        // Every bit pattern is a `B` (`Pod`), and all are written below before anything reads them.
        unsafe { std::slice::from_raw_parts_mut(data, count) }
    };
    let mut chunk = vec![A::zeroed(); CHUNK.min(count)];
    for (from, to) in bytes.chunks(CHUNK * size_of::<A>()).zip(to.chunks_mut(CHUNK)) {
        let chunk = &mut chunk[..to.len()];
        let own = bytemuck::cast_slice_mut::<A, u8>(chunk);
        own.copy_from_slice(from);
        hasher.update(own);
        convert(chunk, to);
    }
    Ok(new)
}
