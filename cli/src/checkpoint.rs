//! What of a checkpoint's folder the server reads.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use diffusion_core::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value};
use triton_diffusion::weights::read_json;

/// A component of a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Its folder, and its key in `model_index.json`.
    pub name: &'static str,
    /// What its weight files' names begin with; `None` for one without weights.
    pub stem: Option<&'static str>,
    /// The other files that are read, those that there are.
    pub files: &'static [&'static str],
}

/// Every component that the server knows.
pub const PARTS: [Part; 9] = [
    model("text_encoder", "model"),
    model("unet", "diffusion_pytorch_model"),
    model("vae", "diffusion_pytorch_model"),
    model("depth_estimator", "model"),
    model("safety_checker", "model"),
    plain("feature_extractor", &["preprocessor_config.json"]),
    plain(
        "tokenizer",
        &[
            "added_tokens.json",
            "merges.txt",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
        ],
    ),
    plain("scheduler", &["scheduler_config.json"]),
    plain("low_res_scheduler", &["scheduler_config.json"]),
];

const fn model(name: &'static str, stem: &'static str) -> Part {
    Part {
        name,
        stem: Some(stem),
        files: &["config.json"],
    }
}

const fn plain(name: &'static str, files: &'static [&'static str]) -> Part {
    Part {
        name,
        stem: None,
        files,
    }
}

/// Files at the top that go wherever the weights go: their licence asks for it.
const LICENCES: [&str; 6] = [
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "NOTICE.md",
    "NOTICE.txt",
];

/// The pipeline's description.
pub const MODEL_INDEX: &str = "model_index.json";

/// What `model_index.json` says of a folder, as it stands there.
#[derive(Debug, Clone)]
pub struct Index(Map<String, Value>);

impl Index {
    /// Reads the file.
    ///
    /// # Errors
    /// It is not there, or is no JSON object.
    pub fn read(folder: &Path) -> Result<Self> {
        read_json(&folder.join(MODEL_INDEX)).map(Self)
    }

    /// `_class_name`.
    pub fn pipeline(&self) -> Option<&str> {
        self.0.get("_class_name")?.as_str()
    }

    /// Library and class of a component that the folder has.
    pub fn class_of(&self, component: &str) -> Option<(&str, &str)> {
        let entry = self.0.get(component)?;
        Some((entry.get(0)?.as_str()?, entry.get(1)?.as_str()?))
    }

    /// The components that the server knows, in the order of [`PARTS`].
    pub fn parts(&self) -> impl Iterator<Item = &'static Part> {
        PARTS.iter().filter(|part| self.class_of(part.name).is_some())
    }
}

/// Which files of weights come first where there are several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefer {
    /// The main files, as the server does.
    Main,
    /// The variant `fp16`.
    Fp16,
}

/// The weight files of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightFiles {
    /// The list of the shards, if there are several.
    pub index: Option<PathBuf>,
    /// The safetensors files.
    pub files: Vec<PathBuf>,
}

/// The `*.safetensors.index.json` of a sharded component.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl WeightFiles {
    /// The files that the server would read, or those of the preferred variant. `None` if there are none.
    ///
    /// # Errors
    /// A list of shards that is no such list, or names a file outside of its folder.
    pub fn find(folder: &Path, stem: &str, prefer: Prefer) -> Result<Option<Self>> {
        let variants = match prefer {
            Prefer::Main => ["", ".fp16"],
            Prefer::Fp16 => [".fp16", ""],
        };
        for variant in variants {
            let single = folder.join(format!("{stem}{variant}.safetensors"));
            if single.exists() {
                return Ok(Some(Self {
                    index: None,
                    files: vec![single],
                }));
            }
            for name in [
                format!("{stem}.safetensors.index{variant}.json"),
                format!("{stem}{variant}.safetensors.index.json"),
            ] {
                let path = folder.join(name);
                if path.exists() {
                    return Self::of_index(folder, path).map(Some);
                }
            }
        }
        Ok(None)
    }

    fn of_index(folder: &Path, path: PathBuf) -> Result<Self> {
        let index: ShardIndex = read_json(&path)?;
        let names: BTreeSet<String> = index.weight_map.into_values().collect();
        let is_plain = |name: &String| Path::new(name).file_name().is_some_and(|n| n == name.as_str());
        if !names.iter().all(is_plain) {
            return Err(Error::invalid_argument(format!(
                "{}: names a shard outside of its folder",
                path.display()
            )));
        }
        Ok(Self {
            index: Some(path),
            files: names.iter().map(|name| folder.join(name)).collect(),
        })
    }
}

/// The files that serving needs, relative to the folder, sorted. Weights that are missing are left out.
///
/// # Errors
/// Those of [`Index::read`] and [`WeightFiles::find`].
pub fn served_files(folder: &Path, prefer: Prefer) -> Result<BTreeSet<PathBuf>> {
    let mut served = BTreeSet::from([PathBuf::from(MODEL_INDEX)]);
    served.extend(
        LICENCES
            .iter()
            .filter(|name| folder.join(name).is_file())
            .map(PathBuf::from),
    );
    for part in Index::read(folder)?.parts() {
        let own = folder.join(part.name);
        served.extend(
            part.files
                .iter()
                .filter(|name| own.join(name).is_file())
                .map(|name| Path::new(part.name).join(name)),
        );
        let Some(stem) = part.stem else { continue };
        if let Some(weights) = WeightFiles::find(&own, stem, prefer)? {
            let names = weights.files.iter().chain(&weights.index);
            served.extend(
                names
                    .filter_map(|path| path.strip_prefix(folder).ok())
                    .map(Path::to_owned),
            );
        }
    }
    Ok(served)
}
