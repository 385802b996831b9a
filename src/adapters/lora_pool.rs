//! The LoRA files of a folder: found by name, loaded when they are first used, and kept within a bound.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::lora::{AdaptableLayers, Lora};
use super::scaling::Scaling;
use crate::weights::{FileIdentity, TensorFile, check_inside};
use diffusion_core::quote::is_file_name;
use diffusion_core::{Context, Error, Result};

/// The key of diffusers' metadata in a safetensors file.
pub const METADATA_KEY: &str = "lora_adapter_metadata";
/// Names that are listed.
const MAX_LISTED: usize = 10_000;

/// The adapters in a folder, for one model on one device.
#[derive(Debug)]
pub struct LoraPool {
    folder: PathBuf,
    /// The folder that no link may lead out of.
    root: Option<PathBuf>,
    layers: AdaptableLayers,
    max_bytes: u64,
    kept: Mutex<Kept>,
    hits: AtomicU64,
    loads: AtomicU64,
    /// What was reported last.
    reported: Mutex<PoolUsage>,
}

/// The files of an adapter.
#[derive(Debug)]
pub struct LoraFiles {
    /// The safetensors file.
    pub tensors: PathBuf,
    /// `adapter_config.json` of peft.
    pub peft_config: Option<PathBuf>,
}

/// What tells a file that was replaced from the one that was loaded.
type Identity = (FileIdentity, Option<FileIdentity>);

#[derive(Debug, Default)]
struct Kept {
    by_file: HashMap<Identity, (Arc<Lora>, u64)>,
    /// Grows with each use.
    clock: u64,
}

/// How many adapters are kept, and how often they were used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUsage {
    /// Adapters in memory.
    pub adapters: usize,
    /// Their memory in bytes.
    pub bytes: u64,
    /// Requests for an adapter that was in memory.
    pub hits: u64,
    /// Adapters that were loaded.
    pub loads: u64,
}

impl LoraPool {
    /// Makes the pool of a folder, which need not exist. At most `max_bytes` bytes of adapters are kept that no request uses.
    pub fn new(folder: PathBuf, layers: AdaptableLayers, max_bytes: u64) -> Self {
        Self {
            folder,
            root: None,
            layers,
            max_bytes,
            kept: Mutex::default(),
            hits: AtomicU64::new(0),
            loads: AtomicU64::new(0),
            reported: Mutex::default(),
        }
    }

    /// Refuses files outside of `root`, once all links are followed.
    #[must_use]
    pub fn inside(mut self, root: Option<PathBuf>) -> Self {
        self.root = root;
        self
    }

    /// Calls `report` with the usage that was reported last and the usage now.
    pub fn report_usage(&self, report: impl FnOnce(PoolUsage, PoolUsage)) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.usage();
        report(std::mem::replace(&mut *reported, now), now);
    }

    /// Frees the adapters that no request uses, and calls `report` as [`LoraPool::report_usage`] does.
    pub fn clear(&self, report: impl FnOnce(PoolUsage, PoolUsage)) {
        self.kept().by_file.clear();
        self.report_usage(report);
    }

    /// Returns the names of the adapters that the folder has now and that requests can ask for, sorted; at most 10,000.
    pub fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return Vec::new();
        };
        let names = entries.flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let name = name.strip_suffix(".safetensors").unwrap_or(&name).to_owned();
            (is_file_name(&name) && self.files(&name).is_some()).then_some(name)
        });
        let mut names: Vec<String> = names.take(MAX_LISTED).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Returns an adapter if it is in memory and its file has not changed.
    pub fn loaded(&self, name: &str) -> Option<Arc<Lora>> {
        let identity = self.files(name)?.identity()?;
        let lora = self.kept().find(&identity)?;
        self.hits.fetch_add(1, Ordering::Relaxed);
        Some(lora)
    }

    /// Returns an adapter, and loads it if it is not in memory or its file has changed.
    ///
    /// # Errors
    /// `NotFound` if the folder has no such adapter; `InvalidArgument` for a file outside of the root; those of [`Lora::load`].
    pub fn get(&self, name: &str) -> Result<Arc<Lora>> {
        if let Some(lora) = self.loaded(name) {
            return Ok(lora);
        }
        let files = self
            .files(name)
            .ok_or_else(|| Error::not_found("the model has no LoRA of this name"))?;
        if let Some(root) = &self.root {
            for path in [Some(&files.tensors), files.peft_config.as_ref()].into_iter().flatten() {
                check_inside(path, root)?;
            }
        }
        let file = TensorFile::open(&files.tensors)?;
        // Before it is read: a configuration that is replaced meanwhile has another identity, and is read again.
        let config = files.peft_config.as_deref().and_then(identity);
        let scaling = files.scaling(&file)?;
        let lora = Arc::new(Lora::load(&file, &scaling, &self.layers)?);
        self.loads.fetch_add(1, Ordering::Relaxed);
        let mut kept = self.kept();
        kept.insert((file.identity().clone(), config), Arc::clone(&lora));
        kept.evict(self.max_bytes);
        Ok(lora)
    }

    /// Returns how many adapters are kept.
    pub fn usage(&self) -> PoolUsage {
        let kept = self.kept();
        PoolUsage {
            adapters: kept.by_file.len(),
            bytes: kept.bytes(),
            hits: self.hits.load(Ordering::Relaxed),
            loads: self.loads.load(Ordering::Relaxed),
        }
    }

    /// Finds the files of an adapter: those of diffusers, of peft and of everybody else.
    fn files(&self, name: &str) -> Option<LoraFiles> {
        let single = self.folder.join(format!("{name}.safetensors"));
        if single.is_file() {
            return Some(LoraFiles {
                tensors: single,
                peft_config: None,
            });
        }
        LoraFiles::in_folder(&self.folder.join(name))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LoraFiles {
    /// Finds the files in the folder of one adapter, as peft or diffusers writes it.
    pub fn in_folder(folder: &Path) -> Option<Self> {
        let peft = folder.join("adapter_model.safetensors");
        if peft.is_file() {
            return Some(Self {
                tensors: peft,
                peft_config: Some(folder.join("adapter_config.json")),
            });
        }
        let diffusers = folder.join("pytorch_lora_weights.safetensors");
        diffusers.is_file().then_some(Self {
            tensors: diffusers,
            peft_config: None,
        })
    }

    fn identity(&self) -> Option<Identity> {
        let config = self.peft_config.as_deref().map(identity);
        match config {
            Some(None) => None,
            config => Some((identity(&self.tensors)?, config.flatten())),
        }
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

fn identity(path: &Path) -> Option<FileIdentity> {
    Some(FileIdentity::of(&fs::metadata(path).ok()?))
}

impl Kept {
    fn find(&mut self, identity: &Identity) -> Option<Arc<Lora>> {
        self.clock += 1;
        let (lora, used) = self.by_file.get_mut(identity)?;
        *used = self.clock;
        Some(Arc::clone(lora))
    }

    fn insert(&mut self, identity: Identity, lora: Arc<Lora>) {
        self.clock += 1;
        self.by_file.insert(identity, (lora, self.clock));
    }

    fn bytes(&self) -> u64 {
        self.by_file.values().map(|(lora, _)| lora.bytes()).sum()
    }

    /// Frees the adapters that were not used for longest, down to `max_bytes`. The last one stays.
    fn evict(&mut self, max_bytes: u64) {
        while self.bytes() > max_bytes && self.by_file.len() > 1 {
            let oldest = self.by_file.iter().min_by_key(|(_, (_, used))| *used);
            let Some(identity) = oldest.map(|(identity, _)| identity.clone()) else {
                return;
            };
            self.by_file.remove(&identity);
        }
    }
}
