//! Reads and writes safetensors files in chunks, so a file of any size needs little memory.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use diffusion_core::{Context, Error, Result};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value, json};
use triton_diffusion::weights::{TensorFile, convert};

use crate::files;

/// Elements that are converted at a time.
const CHUNK: usize = 1 << 20;
/// The data begins at a multiple of this, and so do all tensors whose length is a multiple: the server can then map
/// them instead of copying them (`src/weights/materialize.rs`).
const ALIGNMENT: usize = 64;

/// A safetensors file whose tensors are read one by one.
pub struct Source {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    /// The offset of the tensors' bytes.
    data: u64,
}

impl Source {
    /// Opens a file and checks it with the server's reader.
    ///
    /// # Errors
    /// Those of [`TensorFile::open`].
    pub fn open(path: &Path) -> Result<Self> {
        TensorFile::open(path)?;
        let file = files::open(path)?;
        let read = |buffer: &mut [u8], at: u64| {
            file.read_exact_at(buffer, at)
                .map_err(|error| files::failed(path, &error))
        };
        let mut length = [0; size_of::<u64>()];
        read(&mut length, 0)?;
        let length = u64::from_le_bytes(length);
        let invalid = |why: &dyn std::fmt::Display| Error::invalid_argument(format!("{}: {why}", path.display()));
        // `TensorFile::open` has checked this length.
        let mut header = vec![0; usize::try_from(length).map_err(|error| invalid(&error))?];
        read(&mut header, size_of::<u64>() as u64)?;
        let metadata = serde_json::from_slice(&header).map_err(|error| invalid(&error))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            metadata,
            data: length + size_of::<u64>() as u64,
        })
    }

    /// Returns the names of all tensors, in the order of the file.
    pub fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// Returns the shape and the dtype of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    /// Returns the file's metadata.
    pub fn notes(&self) -> BTreeMap<String, String> {
        let notes = self.metadata.metadata().clone().unwrap_or_default();
        notes.into_iter().collect()
    }

    /// Passes the bytes `from..to` of a tensor to `take`, in chunks of whole elements.
    ///
    /// # Errors
    /// The tensor is missing, the file cannot be read; the errors of `take`.
    pub fn read(&self, name: &str, (from, to): (u64, u64), mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let info = self
            .info(name)
            .ok_or_else(|| Error::not_found(format!("{}: has no tensor {name}", self.path.display())))?;
        let (start, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        if from > to || to > end - start {
            return Err(Error::internal(format!("{name}: range outside of the tensor")));
        }
        let mut buffer = vec![0; CHUNK * size_of::<f64>()];
        let mut at = self.data + start + from;
        let end = self.data + start + to;
        while at < end {
            let length = usize::try_from(end - at).map_or(buffer.len(), |n| n.min(buffer.len()));
            let chunk = &mut buffer[..length];
            self.file
                .read_exact_at(chunk, at)
                .map_err(|error| files::failed(&self.path, &error))?;
            take(chunk)?;
            at += length as u64;
        }
        Ok(())
    }
}

/// A tensor of a new file, and the tensor of the source that it comes from.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name in the new file.
    pub name: String,
    /// Its shape in the new file.
    pub shape: Vec<usize>,
    /// Its dtype in the new file.
    pub dtype: Dtype,
    /// Its name in the source.
    pub from: String,
    /// Its bytes in the source's tensor.
    pub range: (u64, u64),
}

impl Entry {
    /// Makes an entry for a whole tensor of the source, under a new name.
    pub fn whole(name: impl Into<String>, from: &str, info: &TensorInfo, dtype: Dtype) -> Self {
        let bytes = info.data_offsets.1 - info.data_offsets.0;
        Self {
            name: name.into(),
            shape: info.shape.clone(),
            dtype,
            from: from.to_owned(),
            range: (0, bytes as u64),
        }
    }

    /// Returns the bytes in the new file.
    fn bytes(&self) -> u64 {
        let elements: u64 = self.shape.iter().map(|&n| n as u64).product();
        elements * (self.dtype.bitsize() as u64 / 8)
    }
}

/// Writes a file of tensors from `source` and converts those whose dtype differs. `done` gets the number of bytes of
/// each chunk that was read. The same tensors give the same file.
///
/// # Errors
/// Errors of the files and of [`convert`], with the name of the tensor.
pub fn write(
    path: &Path,
    source: &Source,
    mut entries: Vec<Entry>,
    notes: &BTreeMap<String, String>,
    done: impl Fn(u64),
) -> Result<()> {
    // The order of the safetensors crate: wide elements first, so each tensor is aligned to its elements. Odd lengths
    // come last, to keep the alignment of the others.
    entries.sort_by_cached_key(|entry| {
        let odd = !entry.bytes().is_multiple_of(ALIGNMENT as u64);
        (Reverse(entry.dtype.bitsize()), odd, entry.name.clone())
    });
    let failed = |error: std::io::Error| files::failed(path, &error);
    let mut file = BufWriter::new(File::create(path).map_err(failed)?);
    let header = header(&entries, notes);
    file.write_all(&(header.len() as u64).to_le_bytes())
        .and_then(|()| file.write_all(header.as_bytes()))
        .map_err(failed)?;
    for entry in &entries {
        let from = source.info(&entry.from).map(|info| info.dtype);
        source
            .read(&entry.from, entry.range, |chunk| {
                done(chunk.len() as u64);
                match from {
                    Some(from) if from != entry.dtype => file.write_all(&convert(chunk, from, entry.dtype)?),
                    _ => file.write_all(chunk),
                }
                .map_err(failed)
            })
            .context(|| format!("tensor {}", entry.from))?;
    }
    file.flush().map_err(failed)
}

fn header(entries: &[Entry], notes: &BTreeMap<String, String>) -> String {
    let mut header = Map::new();
    if !notes.is_empty() {
        header.insert("__metadata__".into(), json!(notes));
    }
    let mut offset = 0;
    for entry in entries {
        let end = offset + entry.bytes();
        header.insert(
            entry.name.clone(),
            json!({"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [offset, end]}),
        );
        offset = end;
    }
    let mut text = Value::Object(header).to_string();
    // The length of the header is before it, in eight bytes.
    let before = size_of::<u64>() + text.len();
    let padding = before.next_multiple_of(ALIGNMENT) - before;
    text.extend(std::iter::repeat_n(' ', padding));
    text
}
