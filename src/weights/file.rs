//! One safetensors file, mapped.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use tch::{Kind, Tensor};

use super::digest::FileIdentity;
use diffusion_core::{Error, Result};

/// A file and its map, which stays until the last tensor in it is gone.
pub struct MappedFile {
    map: Mmap,
    file: File,
    identity: FileIdentity,
}

impl MappedFile {
    /// All bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// What the file was when it was mapped.
    pub fn identity(&self) -> &FileIdentity {
        &self.identity
    }

    /// What it is now: somebody may have written into it, and then the map shows that. `None` if it has become shorter, so that
    /// reading the map would end the process.
    pub fn identity_now(&self) -> Option<FileIdentity> {
        let about = self.file.metadata().ok()?;
        (about.len() >= self.map.len() as u64).then(|| FileIdentity::of(&about))
    }
}

/// A mapped safetensors file whose header has been read and checked.
///
/// The map lives as long as this value, and as tensors that lie in it.
pub struct TensorFile {
    path: PathBuf,
    mapped: Arc<MappedFile>,
    metadata: Metadata,
    /// Where the tensors' bytes begin.
    data: usize,
}

impl TensorFile {
    /// Maps the file and checks its header against its length.
    ///
    /// # Errors
    /// `NotFound` if there is no such file; `InvalidArgument` if it is not a whole safetensors file
    /// (a header that is no JSON, offsets past the end, a file that was cut short).
    pub fn open(path: &Path) -> Result<Self> {
        let cannot_read = |error| Error::not_found(format!("{}: {error}", path.display()));
        // To open a pipe would wait for somebody who writes.
        if !std::fs::metadata(path).map_err(cannot_read)?.is_file() {
            return Err(Error::invalid_argument(format!("{}: not a file", path.display())));
        }
        let file = File::open(path).map_err(cannot_read)?;
        // SAFETY: the map is read only. A file that another process shortens while it is mapped
        // would raise SIGBUS on a read past its new end; a model folder is written before its model
        // is loaded and replaced, not rewritten, as Triton and the Hugging Face cache do.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| match error.kind() {
            std::io::ErrorKind::OutOfMemory => Error::out_of_memory(format!("{}: cannot be mapped", path.display())),
            _ => cannot_read(error),
        })?;
        let invalid = |error: &dyn std::fmt::Display| {
            Error::invalid_argument(format!("{}: not a whole safetensors file: {error}", path.display()))
        };
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| invalid(&error))?;
        // The header's length is followed by the header; the data comes after both.
        let data = header
            .checked_add(size_of::<u64>())
            .ok_or_else(|| invalid(&"its header is too long"))?;
        if map.len().checked_sub(data) != Some(metadata.data_len()) {
            return Err(invalid(&format_args!(
                "{} bytes, but its header asks for {}",
                map.len(),
                data.saturating_add(metadata.data_len())
            )));
        }
        let about = file.metadata().map_err(cannot_read)?;
        Ok(Self {
            path: path.to_owned(),
            mapped: Arc::new(MappedFile {
                map,
                file,
                identity: FileIdentity::of(&about),
            }),
            metadata,
            data,
        })
    }

    /// The file's path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every tensor's name, in the order of the data.
    pub fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// Shape and dtype of a tensor, if the file has it.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    /// A copy of a tensor on the CPU, in the dtype of the file.
    ///
    /// # Errors
    /// `NotFound` for a name that the file lacks, `Unsupported` for a dtype that libtorch or we do
    /// not know.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let info = self
            .info(name)
            .ok_or_else(|| Error::not_found(format!("{}: has no tensor {name}", self.path.display())))?;
        let kind = self.kind(name, info)?;
        Ok(Tensor::f_from_data_size(self.bytes(info)?, &shape(info)?, kind)?)
    }

    /// The dtype of a tensor, as libtorch's.
    ///
    /// # Errors
    /// `Unsupported` for one that libtorch or we do not know.
    pub fn kind(&self, name: &str, info: &TensorInfo) -> Result<Kind> {
        kind(info.dtype).ok_or_else(|| {
            Error::unsupported(format!(
                "{}: tensor {name} has dtype {:?}; float32, float16, bfloat16, float64 and integers are read",
                self.path.display(),
                info.dtype
            ))
        })
    }

    /// What tells this file from others.
    pub fn identity(&self) -> &FileIdentity {
        self.mapped.identity()
    }

    /// The file and its map.
    pub fn mapped(&self) -> &Arc<MappedFile> {
        &self.mapped
    }

    /// Where the bytes of a tensor lie in the map.
    pub fn range(&self, info: &TensorInfo) -> Range<usize> {
        let (start, end) = info.data_offsets;
        self.data + start..self.data + end
    }

    /// The bytes of a tensor, little-endian, rows first.
    ///
    /// # Errors
    /// A range that the file does not have, which [`TensorFile::open`] has ruled out.
    pub fn bytes(&self, info: &TensorInfo) -> Result<&[u8]> {
        self.mapped
            .bytes()
            .get(self.range(info))
            .ok_or_else(|| Error::internal("a tensor outside of its file"))
    }
}

/// A tensor's shape as libtorch takes it.
///
/// # Errors
/// A dimension beyond 2^63.
pub fn shape(info: &TensorInfo) -> Result<Vec<i64>> {
    info.shape
        .iter()
        .map(|&n| i64::try_from(n).map_err(|_| Error::invalid_argument("a tensor of more than 2^63 elements")))
        .collect()
}

/// A file's dtype as libtorch's.
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
    fn tensors_come_back() {
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
    fn every_cut_is_refused() {
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
