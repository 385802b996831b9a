//! Opens files of a model folder, which may be links but lead to regular files of a bounded size.
//!
//! A link to `/dev/zero` has no end, and opening a pipe waits for a writer. Both have the size 0.

use std::fs::{File, Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use diffusion_core::{Error, Result};

/// Opens a regular file.
///
/// # Errors
/// `NotFound` if the file cannot be opened, `InvalidArgument` if it is a device, a pipe or a folder; both name the file.
pub fn open_regular(path: &Path) -> Result<(File, Metadata)> {
    let cannot_read = |error| Error::not_found(format!("{}: {error}", path.display()));
    let mut options = OpenOptions::new();
    // With the flag, opening a pipe does not wait.
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(cannot_read)?;
    let metadata = file.metadata().map_err(cannot_read)?;
    if !metadata.is_file() {
        return Err(Error::invalid_argument(format!("{}: not a file", path.display())));
    }
    Ok((file, metadata))
}

/// Reads a regular file of at most `max_bytes` bytes as text.
///
/// # Errors
/// `NotFound` if the file cannot be opened; `InvalidArgument` if it is a device, a pipe or a folder, if it is longer, and for
/// text that is not UTF-8. All name the file.
pub fn read_text(path: &Path, max_bytes: u64) -> Result<String> {
    let file = open_bounded(path, max_bytes)?;
    let mut bytes = Vec::new();
    // The file may have grown.
    file.take(max_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| Error::not_found(format!("{}: {error}", path.display())))?;
    if bytes.len() as u64 > max_bytes {
        return Err(too_long(path, bytes.len() as u64, max_bytes));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        Error::invalid_argument(format!("{}: not valid UTF-8 at byte {valid}", path.display()))
    })
}

/// Checks that a file that a library reads is a regular file of at most `max_bytes` bytes.
///
/// # Errors
/// `NotFound` if the file cannot be opened; `InvalidArgument` if it is a device, a pipe or a folder, or if it is longer. Both
/// name the file.
pub fn check_size(path: &Path, max_bytes: u64) -> Result<()> {
    open_bounded(path, max_bytes).map(drop)
}

fn open_bounded(path: &Path, max_bytes: u64) -> Result<File> {
    let (file, metadata) = open_regular(path)?;
    if metadata.len() > max_bytes {
        return Err(too_long(path, metadata.len(), max_bytes));
    }
    Ok(file)
}

fn too_long(path: &Path, bytes: u64, max_bytes: u64) -> Error {
    Error::invalid_argument(format!(
        "{}: the file has {bytes} bytes, the limit is {max_bytes}",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn refusal(path: &Path) -> String {
        let error = read_text(path, 100).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
        error.to_string()
    }

    #[test]
    fn regular_file_is_read_up_to_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        std::fs::write(&path, "x".repeat(100)).unwrap();
        assert_eq!(read_text(&path, 100).unwrap().len(), 100);
        assert!(read_text(&path, 99).is_err());
        assert!(matches!(
            read_text(&folder.path().join("b"), 9),
            Err(Error::NotFound(_))
        ));
        std::fs::write(&path, b"ab\xff").unwrap();
        assert!(refusal(&path).ends_with("not valid UTF-8 at byte 2"));
    }

    #[test]
    fn device_pipe_and_folder_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("zero");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        assert!(refusal(&link).ends_with("not a file"));
        assert!(refusal(folder.path()).ends_with("not a file"));
        let pipe = folder.path().join("pipe");
        let name = CString::new(pipe.as_os_str().as_bytes()).unwrap();
        // SAFETY: the name is a C string that outlives the call.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        assert!(refusal(&pipe).ends_with("not a file"));
    }
}
