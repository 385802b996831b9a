//! The checkpoints in memory, and the engines that compute with them.
//!
//! A model with a `base` joins the checkpoint of the base and its engines, if the parameters that engines depend on are
//! equal. Models without a `base` do not share engines with each other, only weights.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use super::base_components::BaseComponents;
use super::metrics::MetricFamilies;
use super::shared_engine::SharedEngine;
use crate::pipelines::loading::{checkpoint_digest, served_files};
use crate::pipelines::{Components, Device};
use crate::weights::{FileIdentity, Variant};
use diffusion_core::Result;
use diffusion_core::config::ModelParameters;

/// What models must have in common to share a checkpoint in memory and its engines.
#[derive(Clone, PartialEq)]
pub struct BaseKey {
    /// The device.
    pub device: Device,
    /// The folder of the checkpoint, once all links are followed.
    pub folder: PathBuf,
    /// The files in it.
    pub files: Vec<FileIdentity>,
    /// The parameters that engines depend on.
    pub parameters: ModelParameters,
}

/// Returns the identities of the files that the server reads in a checkpoint. A missing file is left to those who open it.
pub fn identities(folder: &Path) -> Vec<FileIdentity> {
    let served = served_files(folder, Variant::Main).unwrap_or_default();
    let metadata = served.iter().filter_map(|path| folder.join(path).metadata().ok());
    metadata.map(|metadata| FileIdentity::of(&metadata)).collect()
}

/// The checkpoints in memory.
#[derive(Default)]
pub struct Bases(Mutex<Vec<Weak<LoadedBase>>>);

impl Bases {
    /// Returns the checkpoint with this key, and whether this call loaded it. `own` is the name of a model whose own
    /// checkpoint it is: two such models do not share it, unless one replaces the other.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn load(
        &self,
        key: BaseKey,
        own: Option<&Arc<str>>,
        families: &Arc<MetricFamilies>,
        load: impl FnOnce() -> Result<Components>,
    ) -> Result<(Arc<LoadedBase>, bool)> {
        let base = self.find_or_add(key, own, families);
        // Other models with this key wait here, and models with other keys do not.
        let loads = base.components.load(load)?;
        Ok((base, loads))
    }

    fn find_or_add(&self, key: BaseKey, own: Option<&Arc<str>>, families: &Arc<MetricFamilies>) -> Arc<LoadedBase> {
        let mut bases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bases.retain(|base| base.strong_count() > 0);
        let found = bases
            .iter()
            .filter_map(Weak::upgrade)
            .find(|base| base.key == key && base.admits(own));
        let base = found.unwrap_or_else(|| {
            let base = Arc::new(LoadedBase {
                components: Arc::new(BaseComponents::new(key.device, families)),
                key,
                own: Mutex::default(),
                engines: Mutex::default(),
                digest: OnceLock::new(),
            });
            bases.push(Arc::downgrade(&base));
            base
        });
        if let Some(own) = own {
            *base.own.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::downgrade(own));
        }
        base
    }

    /// Returns whether models on this device use the same files with other parameters.
    pub fn has_other_parameters(&self, key: &BaseKey) -> bool {
        let same_files = |base: &LoadedBase| {
            let other = &base.key;
            (other.device, &other.folder, &other.files) == (key.device, &key.folder, &key.files)
        };
        self.all()
            .iter()
            .any(|base| same_files(base) && base.key.parameters != key.parameters)
    }

    /// Returns a checkpoint in memory with this digest. Waits for those that are being loaded, if no other one has it.
    pub fn find_digest(&self, digest: &str) -> Option<Arc<LoadedBase>> {
        let (loaded, loading): (Vec<_>, Vec<_>) = self.all().into_iter().partition(|base| base.components.is_loaded());
        let mut bases = loaded.into_iter().chain(loading);
        bases.find(|base| base.digest() == Some(digest))
    }

    fn all(&self) -> Vec<Arc<LoadedBase>> {
        let bases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bases.iter().filter_map(Weak::upgrade).collect()
    }
}

/// A checkpoint on a device.
pub struct LoadedBase {
    key: BaseKey,
    /// The model whose own checkpoint it is.
    own: Mutex<Option<Weak<str>>>,
    components: Arc<BaseComponents>,
    /// By the number of the instance among those of its model on the device.
    engines: Mutex<HashMap<usize, Weak<SharedEngine>>>,
    digest: OnceLock<String>,
}

impl LoadedBase {
    /// Returns the key.
    pub fn key(&self) -> &BaseKey {
        &self.key
    }

    /// Returns the components.
    pub fn components(&self) -> &Arc<BaseComponents> {
        &self.components
    }

    /// Returns the engine of the instance with this number, and whether this call started it. A failed engine is replaced.
    ///
    /// # Errors
    /// Those of `start`.
    pub fn engine(
        &self,
        number: usize,
        start: impl FnOnce() -> Result<Arc<SharedEngine>>,
    ) -> Result<(Arc<SharedEngine>, bool)> {
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        let running = engines.get(&number).and_then(Weak::upgrade);
        if let Some(engine) = running.filter(|engine| engine.is_ready()) {
            return Ok((engine, false));
        }
        let engine = start()?;
        engines.insert(number, Arc::downgrade(&engine));
        Ok((engine, true))
    }

    /// Returns an engine that works.
    pub fn working_engine(&self) -> Option<Arc<SharedEngine>> {
        let engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut engines = engines.values().filter_map(Weak::upgrade);
        engines.find(|engine| engine.is_ready())
    }

    /// Returns whether a model may use it. `own` is the name of a model whose own checkpoint it would be.
    fn admits(&self, own: Option<&Arc<str>>) -> bool {
        let Some(name) = own else {
            return true;
        };
        let current = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let current = current.as_ref().and_then(Weak::upgrade);
        current.is_none_or(|current| current == *name)
    }

    /// Returns the digest of the checkpoint; `None` if its files have changed or are gone.
    fn digest(&self) -> Option<&str> {
        if self.digest.get().is_none() && self.components.get().is_ok() {
            let digest = checkpoint_digest(&self.key.folder).ok()?;
            // A file that was replaced is not what was loaded.
            if identities(&self.key.folder) == self.key.files {
                let _ = self.digest.set(digest);
            }
        }
        self.digest.get().map(String::as_str)
    }
}
