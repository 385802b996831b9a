//! The report about a folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use diffusion_core::config::{self, ModelParameters, inputs_of};
use diffusion_core::{Error, Result};
use safetensors::Dtype;
use serde::Serialize;
use triton_diffusion::pipelines::ModelIndex;
use triton_diffusion::pipelines::loading::{ComponentSpec, checkpoint_digest, known_components};
use triton_diffusion::weights::{Component, TensorFile, Variant, WeightFiles, read_json};

use crate::check::check;
use crate::checkpoint::packed_files;
use crate::files;
use crate::progress;

/// Depth of the search for files that serving does not need.
const MAX_DEPTH: usize = 4;

/// The contents of a folder, and whether the server would load it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The folder.
    pub folder: PathBuf,
    /// `_class_name` of `model_index.json`.
    pub pipeline: Option<String>,
    /// The inputs of a request; those in brackets are optional.
    pub inputs: Vec<String>,
    /// The components that the server reads.
    pub components: Vec<ComponentReport>,
    /// The default scheduler of a request.
    pub scheduler: Option<String>,
    /// By which a LoRA model names the checkpoint as its base; only of a folder that was loaded.
    pub digest: Option<String>,
    /// The weights of all components.
    pub total: Weights,
    /// Files that serving does not need, with their sizes in bytes.
    pub not_served: BTreeMap<PathBuf, u64>,
    /// The warnings that the server would log.
    pub warnings: Vec<String>,
    /// The reasons why the server would refuse the folder.
    pub problems: Vec<String>,
    /// Whether the model was loaded.
    pub loaded: bool,
}

/// A component.
#[derive(Debug, Serialize)]
pub struct ComponentReport {
    /// Its key in `model_index.json`.
    pub name: String,
    /// `transformers`, `diffusers`, ...
    pub library: String,
    /// Its class.
    pub class: String,
    /// The files that the server reads, with their sizes in bytes; relative to the folder.
    pub files: BTreeMap<PathBuf, u64>,
    /// Its weights, if it has weights.
    pub weights: Option<Weights>,
}

/// Counts of weights.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Weights {
    /// Number of tensors.
    pub tensors: usize,
    /// Number of elements.
    pub parameters: u64,
    /// Number of bytes.
    pub bytes: u64,
    /// Number of elements of each dtype.
    pub dtypes: BTreeMap<String, u64>,
}

impl Weights {
    fn of_file(file: &TensorFile) -> Self {
        let mut weights = Self::default();
        for info in file.names().iter().filter_map(|name| file.info(name)) {
            let elements: u64 = info.shape.iter().map(|&n| n as u64).product();
            weights.tensors += 1;
            weights.parameters += elements;
            weights.bytes += (info.data_offsets.1 - info.data_offsets.0) as u64;
            *weights.dtypes.entry(dtype_name(info.dtype)).or_default() += elements;
        }
        weights
    }

    fn add(&mut self, other: &Self) {
        self.tensors += other.tensors;
        self.parameters += other.parameters;
        self.bytes += other.bytes;
        for (dtype, elements) in &other.dtypes {
            *self.dtypes.entry(dtype.clone()).or_default() += elements;
        }
    }
}

/// Returns torch's name of a dtype, or that of safetensors.
fn dtype_name(dtype: Dtype) -> String {
    let name = match dtype {
        Dtype::F64 => "float64",
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        Dtype::I64 => "int64",
        Dtype::I32 => "int32",
        Dtype::I16 => "int16",
        Dtype::I8 => "int8",
        Dtype::U8 => "uint8",
        Dtype::BOOL => "bool",
        other => return format!("{other:?}"),
    };
    name.to_owned()
}

impl Report {
    /// Inspects a folder; with `load`, loads the model like the server.
    ///
    /// # Errors
    /// The folder or its `model_index.json` cannot be read.
    pub fn of(folder: &Path, load: bool) -> Result<Self> {
        if !folder.is_dir() {
            return Err(Error::not_found(format!("{}: no such folder", folder.display())));
        }
        let index = ModelIndex::read(folder)?;
        let mut report = Self {
            folder: folder.to_owned(),
            pipeline: index.class_name().map(str::to_owned),
            inputs: Vec::new(),
            components: Vec::new(),
            scheduler: None,
            digest: None,
            total: Weights::default(),
            not_served: BTreeMap::new(),
            warnings: Vec::new(),
            problems: Vec::new(),
            loaded: false,
        };
        match index.pipeline_class() {
            Ok(class) => {
                let inputs = inputs_of(class).iter();
                report.inputs = inputs
                    .map(|input| match input.optional {
                        true => format!("[{}]", input.name),
                        false => input.name.to_owned(),
                    })
                    .collect();
            }
            Err(error) => report.problem(&error),
        }
        for spec in known_components(&index) {
            report.add_component(folder, spec, &index);
        }
        report.scheduler = read_class(&folder.join("scheduler/scheduler_config.json"));
        report.find_not_served(folder);
        // Missing files are known; loading finds other problems.
        if load && report.problems.is_empty() {
            report.load(folder);
        }
        Ok(report)
    }

    /// Returns the dtype of most weights.
    pub fn dtype(&self) -> config::Dtype {
        let most = self.total.dtypes.iter().max_by_key(|(_, elements)| **elements);
        match most.map(|(name, _)| name.as_str()) {
            Some("float16") => config::Dtype::Float16,
            Some("bfloat16") => config::Dtype::Bfloat16,
            _ => config::Dtype::Float32,
        }
    }

    fn problem(&mut self, error: &Error) {
        let text = error.to_string();
        if !self.problems.contains(&text) {
            self.problems.push(text);
        }
    }

    fn load(&mut self, folder: &Path) {
        let spinner = progress::spinner("loading");
        let outcome = check(folder, None, &ModelParameters::default(), self.dtype());
        spinner.finish_and_clear();
        self.loaded = true;
        match outcome {
            Ok(checked) => {
                self.scheduler = Some(checked.scheduler.to_owned());
                self.warnings.extend(checked.warnings);
            }
            Err(error) => self.problem(&error),
        }
        match checkpoint_digest(folder) {
            Ok(digest) => self.digest = Some(digest),
            Err(error) => self.problem(&error),
        }
    }

    fn add_component(&mut self, folder: &Path, spec: &ComponentSpec, index: &ModelIndex) {
        let own = folder.join(spec.name);
        let mut paths: Vec<PathBuf> = spec.files.iter().map(|name| own.join(name)).collect();
        let mut weights = None;
        if let Some(stem) = spec.stem {
            match WeightFiles::find(&own, stem, Variant::Main) {
                Ok(found) => {
                    let found = found.into_iter();
                    paths.extend(found.flat_map(|found| found.files.into_iter().chain(found.index)));
                }
                Err(error) => self.problem(&error),
            }
            match Component::open(&own, stem) {
                Ok(component) => {
                    let mut counted = Weights::default();
                    for file in component.files() {
                        counted.add(&Weights::of_file(file));
                    }
                    self.total.add(&counted);
                    weights = Some(counted);
                }
                Err(error) => self.problem(&error),
            }
        }
        let sized = paths.into_iter().filter_map(|path| {
            let bytes = files::length(&path).ok()?;
            Some((path.strip_prefix(folder).ok()?.to_owned(), bytes))
        });
        let (library, class) = index.component(spec.name).unwrap_or_default();
        self.components.push(ComponentReport {
            name: spec.name.to_owned(),
            library: library.to_owned(),
            class: class.to_owned(),
            files: sized.collect(),
            weights,
        });
    }

    fn find_not_served(&mut self, folder: &Path) {
        let served = match packed_files(folder, Variant::Main) {
            Ok(served) => served,
            // Reported with the component.
            Err(_) => return,
        };
        let mut found = BTreeMap::new();
        walk(folder, folder, MAX_DEPTH, &mut found);
        found.retain(|path, _| !served.contains(path));
        self.not_served = found;
    }
}

/// Reads `_class_name` of a configuration.
fn read_class(path: &Path) -> Option<String> {
    let config: serde_json::Value = read_json(path).ok()?;
    Some(config.get("_class_name")?.as_str()?.to_owned())
}

/// Lists the files below a folder; follows links and skips hidden files.
fn walk(root: &Path, folder: &Path, depth: usize, found: &mut BTreeMap<PathBuf, u64>) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries {
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if path.is_dir() {
            if depth > 0 {
                walk(root, &path, depth - 1, found);
            }
        } else if let (Ok(bytes), Ok(relative)) = (files::length(&path), path.strip_prefix(root)) {
            found.insert(relative.to_owned(), bytes);
        }
    }
}
