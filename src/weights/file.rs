//! A mapped safetensors file.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use tch::{Kind, Tensor};

use super::bus_errors::GuardedMap;
use super::digest::FileIdentity;
use super::regular_file::open_regular;
use diffusion_core::{Error, Result};

/// Largest header of a file, in bytes. The UNet of Stable Diffusion XL has 200 KB.
const MAX_HEADER_BYTES: u64 = 8 << 20;

/// Most tensors of a file. The UNet of Stable Diffusion XL has 1680.
const MAX_TENSORS: usize = 16_384;

/// A file and its map, which lives until the last tensor in it is dropped.
pub struct MappedFile {
    // Dropped before the map.
    guard: GuardedMap,
    map: Mmap,
    file: File,
    identity: FileIdentity,
}

impl MappedFile {
    /// Returns all bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Returns the identity of the file when it was mapped.
    pub fn identity(&self) -> &FileIdentity {
        &self.identity
    }

    /// Returns whether a page of the map could not be read, and has zeros since then.
    pub fn is_lost(&self) -> bool {
        self.guard.is_lost()
    }

    /// Returns the current identity of the file: a process may have written to it, which the map shows. `None` if the
    /// file is shorter than the map, since reading the map would then end the process.
    pub fn identity_now(&self) -> Option<FileIdentity> {
        let metadata = self.file.metadata().ok()?;
        (metadata.len() >= self.map.len() as u64).then(|| FileIdentity::of(&metadata))
    }
}

/// A mapped safetensors file whose header has been read and checked.
///
/// The map lives as long as this value and the tensors in it.
pub struct TensorFile {
    path: PathBuf,
    mapped: Arc<MappedFile>,
    metadata: Metadata,
    /// The offset of the tensors' bytes.
    data: usize,
    /// Whether the file is on a file system of this machine.
    local: bool,
}

impl TensorFile {
    /// Maps the file and checks its header against its length.
    ///
    /// # Errors
    /// `NotFound` without the file; `InvalidArgument` for a damaged safetensors file (a header that is not JSON,
    /// offsets beyond the end, a truncated file), one that is not a regular file, and one with a header beyond the limits.
    pub fn open(path: &Path) -> Result<Self> {
        let cannot_read = |error| Error::not_found(format!("{}: {error}", path.display()));
        let (file, identity) = open_regular(path)?;
        // SAFETY: the map is read only. A model folder is written before its model is loaded and
        // replaced, not rewritten, as Triton and the Hugging Face cache do. Tensors of a file that
        // another machine can replace are copied ([`TensorFile::is_local`]). If another process
        // shortens the file all the same, pages past its new end read as zeros ([`GuardedMap`]).
        let map = unsafe { Mmap::map(&file) }.map_err(|error| match error.kind() {
            std::io::ErrorKind::OutOfMemory => Error::out_of_memory(format!("{}: cannot be mapped", path.display())),
            _ => cannot_read(error),
        })?;
        let guard = GuardedMap::new(&map)?;
        let invalid = |error: &dyn std::fmt::Display| {
            Error::invalid_argument(format!("{}: not a whole safetensors file: {error}", path.display()))
        };
        let length = map.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        if length > MAX_HEADER_BYTES {
            let what = format!("its header has {length} bytes, the limit is {MAX_HEADER_BYTES}");
            return Err(invalid(&what));
        }
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| invalid(&error))?;
        let tensors = metadata.offset_keys().len();
        if tensors > MAX_TENSORS {
            return Err(invalid(&format_args!(
                "it has {tensors} tensors, the limit is {MAX_TENSORS}"
            )));
        }
        // The header's length is followed by the header; the data comes after both.
        let data = header
            .checked_add(size_of::<u64>())
            .ok_or_else(|| invalid(&"its header is too long"))?;
        if map.len().checked_sub(data) != Some(metadata.data_len()) {
            return Err(invalid(&format_args!(
                "the file has {} bytes, its header needs {}",
                map.len(),
                data.saturating_add(metadata.data_len())
            )));
        }
        Ok(Self {
            path: path.to_owned(),
            local: is_local(&file),
            mapped: Arc::new(MappedFile {
                guard,
                map,
                file,
                identity: FileIdentity::of(&identity),
            }),
            metadata,
            data,
        })
    }

    /// Returns whether the file is on a file system of this machine. A file on another machine can be replaced or deleted
    /// there while it is mapped here, or be out of reach, and reading the map would then end the process.
    pub fn is_local(&self) -> bool {
        self.local
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the names of all tensors, in the order of the data.
    pub fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// Returns a text of the header's `__metadata__`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        let metadata = self.metadata.metadata().as_ref()?;
        metadata.get(key).map(String::as_str)
    }

    /// Returns the shape and the dtype of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    /// Copies a tensor to the CPU, in the dtype of the file.
    ///
    /// # Errors
    /// `NotFound` for a missing tensor, `Unsupported` for a dtype that is not read.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let info = self
            .info(name)
            .ok_or_else(|| Error::not_found(format!("{}: has no tensor {name}", self.path.display())))?;
        let kind = self.kind(name, info)?;
        Ok(Tensor::f_from_data_size(self.bytes(info)?, &shape(info)?, kind)?)
    }

    /// Returns the dtype of a tensor for libtorch.
    ///
    /// # Errors
    /// `Unsupported` for a dtype that is not read.
    pub fn kind(&self, name: &str, info: &TensorInfo) -> Result<Kind> {
        kind(info.dtype).ok_or_else(|| {
            Error::unsupported(format!(
                "{}: tensor {name} has dtype {:?}, expected float32, float16, bfloat16, float64 or an integer",
                self.path.display(),
                info.dtype
            ))
        })
    }

    /// Returns the identity of the file when it was opened.
    pub fn identity(&self) -> &FileIdentity {
        self.mapped.identity()
    }

    /// Returns the file and its map.
    pub fn mapped(&self) -> &Arc<MappedFile> {
        &self.mapped
    }

    /// Returns the range of a tensor's bytes in the map.
    pub fn range(&self, info: &TensorInfo) -> Range<usize> {
        let (start, end) = info.data_offsets;
        self.data + start..self.data + end
    }

    /// Returns the bytes of a tensor, little-endian and in row-major order.
    ///
    /// # Errors
    /// `Internal` for a range outside of the file, which [`TensorFile::open`] rules out.
    pub fn bytes(&self, info: &TensorInfo) -> Result<&[u8]> {
        self.mapped
            .bytes()
            .get(self.range(info))
            .ok_or_else(|| Error::internal("a tensor outside of its file"))
    }
}

/// The types of file systems whose files are elsewhere (statfs(2), and `include/uapi/linux/magic.h`).
const REMOTE_FILE_SYSTEMS: [(&str, i64); 8] = [
    ("nfs", 0x6969),
    ("smb", 0x517b),
    ("cifs", 0xff53_4d42),
    ("smb2", 0xfe53_4d42),
    // s3 and other object stores, sshfs; virtiofs of virtual machines too.
    ("fuse", 0x6573_5546),
    ("9p", 0x0102_1997),
    ("ceph", 0x00c3_6400),
    ("lustre", 0x0bd0_0bd0),
];

fn is_local(file: &File) -> bool {
    let mut answer = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the descriptor is open, and there is room for the answer, which a call that succeeds writes.
    let kind = unsafe {
        if libc::fstatfs(file.as_raw_fd(), answer.as_mut_ptr()) != 0 {
            return false;
        }
        answer.assume_init().f_type
    };
    REMOTE_FILE_SYSTEMS.iter().all(|(_, remote)| *remote != kind)
}

/// Returns the shape of a tensor for libtorch.
///
/// # Errors
/// `InvalidArgument` for a dimension beyond 2^63.
pub fn shape(info: &TensorInfo) -> Result<Vec<i64>> {
    info.shape
        .iter()
        .map(|&n| i64::try_from(n).map_err(|_| Error::invalid_argument("a tensor of more than 2^63 elements")))
        .collect()
}

/// Returns the dtype for libtorch; `None` for a dtype that is not read.
pub fn kind(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F32 => Some(Kind::Float),
        Dtype::F16 => Some(Kind::Half),
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::F64 => Some(Kind::Double),
        Dtype::I64 => Some(Kind::Int64),
        Dtype::I32 => Some(Kind::Int),
        Dtype::U8 => Some(Kind::Uint8),
        Dtype::BOOL => Some(Kind::Bool),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use safetensors::tensor::TensorView;
    use std::io::Write;
    use tempfile::NamedTempFile;

    fn written(bytes: &[u8]) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn one_tensor() -> Vec<u8> {
        let data: Vec<u8> = [1.0f32, 2.0, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, vec![3], &data).unwrap();
        safetensors::serialize([("a", view)], None).unwrap()
    }

    #[test]
    fn file_system_of_this_machine_is_local() {
        assert!(TensorFile::open(written(&one_tensor()).path()).unwrap().is_local());
    }

    #[test]
    fn header_beyond_the_limits_is_refused() {
        let error = |bytes: &[u8]| TensorFile::open(written(bytes).path()).err().unwrap().to_string();
        let mut long = (MAX_HEADER_BYTES + 1).to_le_bytes().to_vec();
        long.resize(8 + MAX_HEADER_BYTES as usize + 1, b' ');
        assert!(error(&long).contains("its header has 8388609 bytes, the limit is 8388608"));
        let tensors = (0..=MAX_TENSORS).map(|n| (format!("a{n}"), TensorView::new(Dtype::F32, vec![0], &[]).unwrap()));
        let many = safetensors::serialize(tensors, None).unwrap();
        assert!(error(&many).contains("it has 16385 tensors, the limit is 16384"));
    }

    #[test]
    fn tensor_of_a_file_has_its_values() {
        let written = written(&one_tensor());
        let file = TensorFile::open(written.path()).unwrap();
        assert_eq!(file.names(), ["a"]);
        assert_eq!(
            Vec::<f32>::try_from(file.tensor("a").unwrap()).unwrap(),
            [1.0, 2.0, 3.0]
        );
        assert!(file.tensor("b").is_err());
    }

    #[test]
    fn open_of_a_truncated_file_is_refused() {
        let whole = one_tensor();
        for length in 0..whole.len() {
            let cut = written(&whole[..length]);
            assert!(TensorFile::open(cut.path()).is_err(), "cut to {length} bytes");
        }
        let mut longer = whole;
        longer.push(0);
        assert!(TensorFile::open(written(&longer).path()).is_err());
    }
}
