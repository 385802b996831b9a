//! Files, with errors that name them.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use diffusion_core::{Error, Result};
use tempfile::{NamedTempFile, TempDir};

/// Makes the error of an operation on a file.
pub fn failed(path: &Path, error: &std::io::Error) -> Error {
    let text = format!("{}: {error}", path.display());
    if error.kind() == std::io::ErrorKind::NotFound {
        Error::not_found(text)
    } else {
        Error::internal(text)
    }
}

/// Returns the length of a file; follows links.
///
/// # Errors
/// `NotFound` if the file is missing.
pub fn length(path: &Path) -> Result<u64> {
    fs::metadata(path)
        .map(|metadata| metadata.len())
        .map_err(|error| failed(path, &error))
}

/// Makes a folder and its parents.
///
/// # Errors
/// Errors of the file system.
pub fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|error| failed(path, &error))
}

/// Writes a file under a temporary name in the same folder and renames it, so readers never see an incomplete file.
///
/// # Errors
/// Errors of the file system.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = temporary_file(&folder_of(path))?;
    file.write_all(bytes).map_err(|error| failed(path, &error))?;
    persist(file, path)
}

/// Returns the folder of a file.
pub fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Makes a file in `folder` that is deleted unless [`persist`] names it, with the permissions of a new file.
///
/// # Errors
/// Errors of the file system.
pub fn temporary_file(folder: &Path) -> Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".triton-diffusion-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(|error| failed(folder, &error))
}

/// Makes a folder in `folder` that is deleted with its contents.
///
/// # Errors
/// Errors of the file system.
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
/// Errors of the file system.
pub fn persist(file: NamedTempFile, path: &Path) -> Result<()> {
    file.persist(path).map(drop).map_err(|error| failed(path, &error.error))
}

/// Checks that nothing exists at a path.
///
/// # Errors
/// `InvalidArgument` that names the path.
pub fn require_absent(path: &Path) -> Result<()> {
    if path.exists() {
        return Err(Error::invalid_argument(format!("{}: already exists", path.display())));
    }
    Ok(())
}

/// Opens a file to read.
///
/// # Errors
/// Errors of the file system.
pub fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| failed(path, &error))
}
