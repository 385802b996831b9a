//! What the tests share: tiny checkpoints that are generated from seeds, temporary folders, and the difference between
//! images. Needs neither libtorch nor Triton.

#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tempfile::TempDir;

pub mod checkpoints;
pub mod noise;
pub mod recipe;

/// Returns the folder of a tiny checkpoint, e.g. `sd1`, in Hugging Face diffusers' layout.
///
/// The first call of a process generates all checkpoints unless they are up to date. Tests must not change the folder;
/// [`copy_folder`] makes a copy that they may change.
pub fn checkpoint(family: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        let out = root.join("target/checkpoints");
        checkpoints::write(&root.join("tests/data/checkpoints"), &out).expect("the checkpoints are generated");
        out
    });
    let folder = folder.join(family);
    assert!(folder.is_dir(), "expected a family of checkpoints, got {family}");
    folder
}

/// Makes a folder that is removed when the value is dropped.
pub fn temporary_folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Copies a folder. Links are followed: the copy holds regular files.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Returns the largest resident memory that this process had so far, in bytes.
pub fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes: u64 = line.unwrap().trim().trim_end_matches(" kB").parse().unwrap();
    kilobytes << 10
}

/// Returns the peak signal to noise ratio of two 8-bit images in dB; infinite if they are equal.
pub fn psnr(ours: &[u8], theirs: &[u8]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let square = |(a, b): (&u8, &u8)| (f64::from(*a) - f64::from(*b)).powi(2);
    let mean = ours.iter().zip(theirs).map(square).sum::<f64>() / ours.len() as f64;
    10.0 * (255.0 * 255.0 / mean).log10()
}
