//! Reading and writing files, with errors that name them.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use diffusion_core::{Error, Result};
use tempfile::{NamedTempFile, TempDir};

/// The error of an operation on a file.
pub fn failed(path: &Path, error: &std::io::Error) -> Error {
    let text = format!("{}: {error}", path.display());
    if error.kind() == std::io::ErrorKind::NotFound {
        Error::not_found(text)
    } else {
        Error::internal(text)
    }
}

/// The length of a file, links followed.
///
/// # Errors
/// It is not there.
pub fn length(path: &Path) -> Result<u64> {
    fs::metadata(path)
        .map(|metadata| metadata.len())
        .map_err(|error| failed(path, &error))
}

/// Makes a folder and those above it.
///
/// # Errors
/// The system's.
pub fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|error| failed(path, &error))
}

/// Writes a file under a temporary name beside its own, and renames it: nobody sees half of it.
///
/// # Errors
/// The system's.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = temporary_file(&folder_of(path))?;
    file.write_all(bytes).map_err(|error| failed(path, &error))?;
    persist(file, path)
}

/// The folder that a file is in.
pub fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// A file in `folder` that goes away unless [`persist`] names it, with the permissions that any new file gets.
///
/// # Errors
/// The system's.
pub fn temporary_file(folder: &Path) -> Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".triton-diffusion-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(|error| failed(folder, &error))
}

/// A folder in `folder` that goes away with what is in it.
///
/// # Errors
/// The system's.
pub fn temporary_folder(folder: &Path) -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix(".triton-diffusion-")
        .permissions(Permissions::from_mode(0o777))
        .tempdir_in(folder)
        .map_err(|error| failed(folder, &error))
}

/// Gives a temporary file its name.
///
/// # Errors
/// The system's.
pub fn persist(file: NamedTempFile, path: &Path) -> Result<()> {
    file.persist(path).map(drop).map_err(|error| failed(path, &error.error))
}

/// Opens a file to read.
///
/// # Errors
/// The system's.
pub fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| failed(path, &error))
}
