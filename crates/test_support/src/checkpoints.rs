//! Generates checkpoint folders, once. `tools/seeded_checkpoints.py` does the same, with the same lock and stamp.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::recipe::Recipe;

const RECIPE: &str = "weights.json";
/// The state of the data from which a folder was generated.
const STAMP: &str = ".stamp";
/// Part of the stamp. Change it, here and in `tools/seeded_checkpoints.py`, when the same data shall give other files.
const VERSION: &str = "1";

/// Generates the checkpoints in `out` from the small files and recipes in `data`, unless they are up to date.
///
/// Processes may call this at the same time: a lock lets one of them do the work, and the folder gets its name when it is
/// complete.
///
/// # Errors
/// The system's; data that cannot be read; weights that do not have the digest of their recipe.
pub fn write(data: &Path, out: &Path) -> io::Result<()> {
    let parent = out.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    let lock = File::create(out.with_extension("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let entries = entries(data)?;
    let stamp = stamp(data, &entries)?;
    if fs::read_to_string(out.join(STAMP)).is_ok_and(|current| current == stamp) {
        return Ok(());
    }
    let work = tempfile::Builder::new().prefix("checkpoints.").tempdir_in(parent)?;
    let complete = work.path().join("new");
    for path in &entries {
        generate(&data.join(path), &complete.join(path))?;
    }
    fs::write(complete.join(STAMP), stamp)?;
    if out.exists() {
        fs::rename(out, work.path().join("old"))?;
    }
    fs::rename(complete, out)
}

/// Relative paths of all files and links below a folder, sorted; links are not followed.
fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(relative) = folders.pop() {
        for entry in fs::read_dir(folder.join(&relative))? {
            let entry = entry?;
            let path = relative.join(entry.file_name());
            let list = if entry.file_type()?.is_dir() {
                &mut folders
            } else {
                &mut found
            };
            list.push(path);
        }
    }
    found.sort_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    Ok(found)
}

/// A digest of everything below a folder.
fn stamp(data: &Path, entries: &[PathBuf]) -> io::Result<String> {
    let mut lines = format!("version\0{VERSION}\n");
    for path in entries {
        let source = data.join(path);
        let (kind, content) = if source.is_symlink() {
            ("link", fs::read_link(source)?.display().to_string())
        } else {
            ("file", format!("{:x}", Sha256::digest(fs::read(source)?)))
        };
        writeln!(lines, "{kind}\0{}\0{content}", path.display()).map_err(io::Error::other)?;
    }
    Ok(format!("{:x}", Sha256::digest(lines)))
}

/// Makes the file or link `target` of a file or link in the data.
fn generate(source: &Path, target: &Path) -> io::Result<()> {
    let parent = target.parent().unwrap_or(target);
    fs::create_dir_all(parent)?;
    if source.is_symlink() {
        symlink(fs::read_link(source)?, target)
    } else if source.file_name().is_some_and(|name| name == RECIPE) {
        let recipe: Recipe = serde_json::from_slice(&fs::read(source)?)?;
        fs::write(parent.join(&recipe.file), recipe.weights()?)
    } else {
        fs::copy(source, target).map(|_| ())
    }
}
