//! `backend-directory`: prints the folder of backends that this program was installed with.

use std::env;
use std::path::{Path, PathBuf};

use clap::Args;
use diffusion_core::{Error, Result};

use crate::output;

/// The backend's library in a folder of backends, as Triton looks for it.
const LIBRARY: &str = "diffusion/libtriton_diffusion.so";
/// Where a folder of backends is, seen from the program's folder: the program is in `bin`, or above the folder of backends,
/// or next to the library. `build.rs` lists the same places for libtorch.
const PLACES: [&str; 3] = ["../backends", "backends", ".."];

/// Prints the folder of backends for `tritonserver --backend-directory`
#[derive(Args)]
pub struct Arguments {}

/// Prints the folder of backends.
///
/// # Errors
/// `NotFound` if the library is in none of the places.
pub fn run() -> Result<()> {
    let program = env::current_exe()
        .map_err(|error| Error::internal(format!("the path of this program cannot be read: {error}")))?;
    let folder = find(program.parent().unwrap_or(Path::new("/")))?;
    output::print(folder.display());
    Ok(())
}

/// Returns the folder of backends for a program in `folder`.
///
/// # Errors
/// `NotFound` with the places.
fn find(folder: &Path) -> Result<PathBuf> {
    PLACES
        .iter()
        .filter_map(|place| folder.join(place).canonicalize().ok())
        .find(|backends| backends.join(LIBRARY).is_file())
        .ok_or_else(|| {
            let expected = PLACES.map(|place| format!("{place}/{LIBRARY}")).join(", ");
            Error::not_found(format!(
                "the backend is not installed with this program: seen from its folder {}, expected one of {expected}",
                folder.display()
            ))
        })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs;

    use diffusion_core::ErrorKind;

    use super::*;

    /// Makes `folder/program` and `folder/backends`, the latter with the library; returns the result for the program.
    fn found(folder: &Path, program: &str, backends: &str) -> Result<PathBuf> {
        fs::create_dir_all(folder.join(program)).unwrap();
        fs::create_dir_all(folder.join(backends).join("diffusion")).unwrap();
        fs::write(folder.join(backends).join(LIBRARY), "").unwrap();
        find(&folder.join(program))
    }

    #[test]
    fn finds_the_library_in_every_place() {
        for (program, backends) in [
            ("dist/bin", "dist/backends"),
            ("dist", "dist/backends"),
            ("opt/backends/diffusion", "opt/backends"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let expected = folder.path().canonicalize().unwrap().join(backends);
            assert_eq!(found(folder.path(), program, backends).unwrap(), expected, "{program}");
        }
    }

    #[test]
    fn error_names_the_places() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("bin")).unwrap();
        // A folder of other backends.
        fs::create_dir_all(folder.path().join("backends/python")).unwrap();
        let error = find(&folder.path().join("bin")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let message = error.to_string();
        assert!(
            message.contains("../backends/diffusion/libtriton_diffusion.so"),
            "{message}"
        );
        assert!(
            message.contains(&folder.path().join("bin").display().to_string()),
            "{message}"
        );
    }
}
