//! Links in a model folder.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use diffusion_core::{Error, Result};

/// Checks that `path` and everything below it lies in `root` once all links are followed. Links without a target are left to
/// those who open them.
///
/// # Errors
/// `InvalidArgument` naming the link; `NotFound` or `Internal` if a folder cannot be read.
pub fn check_inside(path: &Path, root: &Path) -> Result<()> {
    let root = resolve(root)?;
    let mut seen = HashSet::new();
    let mut paths = vec![path.to_path_buf()];
    while let Some(path) = paths.pop() {
        let Ok(target) = path.canonicalize() else {
            continue;
        };
        if !target.starts_with(&root) {
            return Err(Error::invalid_argument(format!(
                "{}: is a link to a place outside of the version folder, which the parameter outside_links refuses",
                path.display()
            )));
        }
        if target.is_dir() && seen.insert(target) {
            for entry in path.read_dir().map_err(|error| failure(&path, &error))? {
                paths.push(entry.map_err(|error| failure(&path, &error))?.path());
            }
        }
    }
    Ok(())
}

fn resolve(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|error| failure(path, &error))
}

fn failure(path: &Path, error: &std::io::Error) -> Error {
    let text = format!("{}: {error}", path.display());
    match error.kind() {
        std::io::ErrorKind::NotFound => Error::not_found(text),
        _ => Error::internal(text),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_inside_are_accepted_and_links_outside_are_refused() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("1");
        let checkpoint = root.join("checkpoint");
        fs::create_dir_all(checkpoint.join("unet")).unwrap();
        fs::create_dir_all(parent.path().join("other/unet")).unwrap();
        fs::write(root.join("weights"), "").unwrap();
        symlink(root.join("weights"), checkpoint.join("unet/inside")).unwrap();
        symlink(&checkpoint, checkpoint.join("loop")).unwrap();
        symlink("nowhere", checkpoint.join("broken")).unwrap();
        check_inside(&checkpoint, &root).unwrap();

        symlink(parent.path().join("other/unet"), checkpoint.join("vae")).unwrap();
        let error = check_inside(&checkpoint, &root).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("checkpoint/vae: is a link to a place outside"),
            "{error}"
        );

        // The folder itself may be a link too.
        let linked = root.join("linked");
        symlink(parent.path().join("other"), &linked).unwrap();
        assert!(check_inside(&linked, &root).is_err());
    }
}
