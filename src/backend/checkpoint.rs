//! Where the checkpoint of a model is: in its folder, or at its `base`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::bases::{Bases, identities};
use crate::pipelines::ModelIndex;
use crate::pipelines::loading::checkpoint_digest;
use crate::weights::{FileIdentity, check_inside};
use diffusion_core::config::{Base, ModelParameters, PipelineClass};
use diffusion_core::{Context, Error, Result};

/// The environment variable with a folder of checkpoints, each a diffusers folder, that models name by their digests.
const BASES_VARIABLE: &str = "TRITON_DIFFUSION_BASES";

/// A checkpoint that a model computes with.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub folder: PathBuf,
    /// Its pipeline.
    pub class: PipelineClass,
    /// Its files, if a model that uses them is loaded. They may be gone from the folder by now.
    pub loaded: Option<Vec<FileIdentity>>,
}

impl Checkpoint {
    /// Finds the checkpoint of the model with this version folder.
    ///
    /// # Errors
    /// `NotFound` if there is none; `InvalidArgument` for a link that the parameters refuse; those of [`ModelIndex::read`].
    pub fn find(version_path: &Path, parameters: &ModelParameters, bases: &Bases) -> Result<Self> {
        match &parameters.base {
            None => {
                let folder = version_path.join(&parameters.checkpoint);
                Self::at(folder, (!parameters.outside_links).then_some(version_path))
            }
            Some(Base::Folder(folder)) => {
                let root = (!parameters.outside_links).then_some(version_path);
                Self::at(version_path.join(folder), root).context(|| "parameter `base`".to_owned())
            }
            Some(Base::Model(name)) => {
                let version = version_of(version_path, name)?;
                let root = (!parameters.outside_links).then_some(version.as_path());
                let folder = version.join(ModelParameters::default().checkpoint);
                Self::at(folder, root).context(|| "parameter `base`".to_owned())
            }
            Some(Base::Digest(digest)) => Self::with_digest(digest, bases),
        }
    }

    fn at(folder: PathBuf, root: Option<&Path>) -> Result<Self> {
        if let Some(root) = root {
            check_inside(&folder, root)?;
        }
        Ok(Self {
            class: ModelIndex::read(&folder)?.pipeline_class()?,
            folder,
            loaded: None,
        })
    }

    /// Finds a checkpoint by what is in it: one that is loaded, or one in the folder of bases.
    fn with_digest(digest: &str, bases: &Bases) -> Result<Self> {
        if let Some(base) = bases.find_digest(digest) {
            return Ok(Self {
                folder: base.key().folder.clone(),
                class: base.components().get()?.class,
                loaded: Some(base.key().files.clone()),
            });
        }
        let root = std::env::var_os(BASES_VARIABLE).map(PathBuf::from);
        for folder in root.as_deref().map(folders).unwrap_or_default() {
            if checkpoint_digest(&folder).is_ok_and(|found| found == digest) {
                return Self::at(folder, None);
            }
        }
        Err(Error::not_found(format!(
            "parameter `base`: no model that is loaded has this digest, and no checkpoint in {}",
            match root {
                Some(root) => root.display().to_string(),
                None => format!("the folder of the environment variable {BASES_VARIABLE}, which is not set"),
            }
        )))
    }

    /// Returns the identities of its files.
    pub fn identities(&self) -> Vec<FileIdentity> {
        self.loaded.clone().unwrap_or_else(|| identities(&self.folder))
    }
}

/// Returns the highest version of a model in the repository of another one.
fn version_of(version_path: &Path, model: &str) -> Result<PathBuf> {
    let repository = version_path.parent().and_then(Path::parent);
    let model = repository.unwrap_or(version_path).join(model);
    let versions = folders(&model).into_iter().filter_map(|folder| {
        let version: u64 = folder.file_name()?.to_str()?.parse().ok()?;
        Some((version, folder))
    });
    let highest = versions.max_by_key(|(version, _)| *version);
    highest.map(|(_, folder)| folder).ok_or_else(|| {
        Error::not_found(format!(
            "parameter `base`: {}: no version of this model",
            model.display()
        ))
    })
}

/// Lists the folders in a folder, sorted by name.
fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<OsString> = entries.map(|entry| entry.file_name()).collect();
    names.sort();
    names
        .into_iter()
        .map(|name| path.join(name))
        .filter(|path| path.is_dir())
        .collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn base_by_name_is_the_highest_version_of_the_model() {
        let repository = tempfile::tempdir().unwrap();
        for version in ["2", "10", "9", "old"] {
            fs::create_dir_all(repository.path().join("sd").join(version)).unwrap();
        }
        let own = repository.path().join("style/1");
        assert_eq!(version_of(&own, "sd").unwrap(), repository.path().join("sd/10"));
        let error = version_of(&own, "other").unwrap_err();
        assert!(matches!(error, Error::NotFound(_)), "{error}");
    }
}
