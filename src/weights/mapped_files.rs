//! The mapped files that the weights of a model are in.

use std::sync::Arc;

use super::file::MappedFile;
use diffusion_core::{Error, Result};

/// The files whose maps hold weights of a model, also through other models.
#[derive(Clone, Default)]
pub struct MappedFiles(Arc<[Arc<MappedFile>]>);

impl MappedFiles {
    /// Collects files, each once.
    pub(super) fn new(mut files: Vec<Arc<MappedFile>>) -> Self {
        files.sort_by_key(|file| Arc::as_ptr(file).addr());
        files.dedup_by(|a, b| Arc::ptr_eq(a, b));
        Self(files.into())
    }

    /// Checks that all pages that were read so far were there.
    ///
    /// # Errors
    /// `DeviceLost` if a file became shorter, or its disk or network failed: results are wrong since then.
    pub fn check(&self) -> Result<()> {
        if self.0.iter().any(|file| file.is_lost()) {
            return Err(Error::device_lost(
                "a file of the weights can no longer be read; load the model again",
            ));
        }
        Ok(())
    }
}
