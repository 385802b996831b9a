//! The files of a LoRA: of diffusers, of peft and of everybody else.

use std::fs;
use std::path::{Path, PathBuf};

use super::lora::{AdaptableLayers, Lora};
use super::scaling::Scaling;
use crate::weights::{FileIdentity, TensorFile, check_inside};
use diffusion_core::{Context, Error, Result};

/// The key of diffusers' metadata in a safetensors file.
pub const METADATA_KEY: &str = "lora_adapter_metadata";

/// The files of a LoRA.
#[derive(Debug)]
pub struct LoraFiles {
    /// The safetensors file.
    pub tensors: PathBuf,
    /// `adapter_config.json` of peft.
    pub peft_config: Option<PathBuf>,
}

/// What tells files that were replaced from those that were loaded.
pub(super) type Identity = (FileIdentity, Option<FileIdentity>);

impl LoraFiles {
    /// Finds the files for a name in a folder of LoRAs.
    pub fn named(folder: &Path, name: &str) -> Option<Self> {
        Self::single(folder.join(format!("{name}.safetensors"))).or_else(|| Self::in_folder(&folder.join(name)))
    }

    /// Finds the files at a path: a file, or a folder of peft or diffusers.
    pub fn at(path: &Path) -> Option<Self> {
        Self::single(path.to_owned()).or_else(|| Self::in_folder(path))
    }

    fn single(path: PathBuf) -> Option<Self> {
        path.is_file().then_some(Self {
            tensors: path,
            peft_config: None,
        })
    }

    /// Finds the files in the folder of one LoRA, as peft or diffusers writes it.
    pub fn in_folder(folder: &Path) -> Option<Self> {
        let peft = folder.join("adapter_model.safetensors");
        if peft.is_file() {
            return Some(Self {
                tensors: peft,
                peft_config: Some(folder.join("adapter_config.json")),
            });
        }
        Self::single(folder.join("pytorch_lora_weights.safetensors"))
    }

    /// Returns the identity of the files as they are now.
    pub(super) fn identity(&self) -> Option<Identity> {
        let config = self.peft_config.as_deref().map(identity);
        match config {
            Some(None) => None,
            config => Some((identity(&self.tensors)?, config.flatten())),
        }
    }

    /// Loads the LoRA. Returns the identity of the files that were read too.
    ///
    /// # Errors
    /// `InvalidArgument` for a file outside of `root`, once all links are followed; those of [`Lora::load`].
    pub(super) fn load(&self, layers: &AdaptableLayers, root: Option<&Path>) -> Result<(Lora, Identity)> {
        if let Some(root) = root {
            for path in [Some(&self.tensors), self.peft_config.as_ref()].into_iter().flatten() {
                check_inside(path, root)?;
            }
        }
        let file = TensorFile::open(&self.tensors)?;
        // Before it is read: a configuration that is replaced meanwhile has another identity, and is read again.
        let config = self.peft_config.as_deref().and_then(identity);
        let lora = Lora::load(&file, &self.scaling(&file)?, layers)?;
        Ok((lora, (file.identity().clone(), config)))
    }

    /// Reads where the scales of the layers come from.
    ///
    /// # Errors
    /// Those of [`Scaling::from_peft`] and [`Scaling::from_metadata`], with the name of the file.
    pub fn scaling(&self, file: &TensorFile) -> Result<Scaling> {
        if let Some(path) = &self.peft_config {
            return Scaling::from_peft(path);
        }
        match file.metadata(METADATA_KEY) {
            Some(text) => Scaling::from_metadata(text).context(|| self.tensors.display().to_string()),
            None => Ok(Scaling::default()),
        }
    }
}

/// Loads the LoRA at a path: a file, or a folder of peft or diffusers. With a `root`, no link may lead out of it.
///
/// # Errors
/// `NotFound` if there is none, `InvalidArgument` for a file outside of the root, and those of [`Lora::load`].
pub fn load_lora(path: &Path, layers: &AdaptableLayers, root: Option<&Path>) -> Result<Lora> {
    let files = LoraFiles::at(path).ok_or_else(|| Error::not_found(format!("{}: no LoRA", path.display())))?;
    Ok(files.load(layers, root)?.0)
}

fn identity(path: &Path) -> Option<FileIdentity> {
    Some(FileIdentity::of(&fs::metadata(path).ok()?))
}
