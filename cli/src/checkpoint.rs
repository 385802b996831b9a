//! The files of a checkpoint that are packed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use diffusion_core::Result;
use triton_diffusion::pipelines::loading::served_files;
use triton_diffusion::weights::Variant;

/// Files at the top that are packed with the weights, because the license demands it.
const LICENSES: [&str; 6] = [
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "NOTICE.md",
    "NOTICE.txt",
];

/// Returns the files that the server reads and the licenses, relative to the folder. Missing weights are skipped.
///
/// # Errors
/// Those of [`served_files`].
pub fn packed_files(folder: &Path, prefer: Variant) -> Result<BTreeSet<PathBuf>> {
    let mut packed = served_files(folder, prefer)?;
    let licenses = LICENSES.iter().filter(|name| folder.join(name).is_file());
    packed.extend(licenses.map(PathBuf::from));
    Ok(packed)
}
