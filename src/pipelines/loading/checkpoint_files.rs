//! The files of a checkpoint that the server reads.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::ModelIndex;
use crate::weights::{Variant, WeightFiles};
use diffusion_core::Result;
use diffusion_core::config::PipelineClass;

/// A component of a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ComponentSpec {
    /// Its folder, and its key in `model_index.json`.
    pub name: &'static str,
    /// The beginning of the names of its weight files; `None` for a component without weights.
    pub stem: Option<&'static str>,
    /// The other files that the server reads if they exist.
    pub files: &'static [&'static str],
}

/// The components that the server knows.
pub const COMPONENTS: [ComponentSpec; 11] = [
    model("text_encoder", "model"),
    model("text_encoder_2", "model"),
    model("unet", "diffusion_pytorch_model"),
    model("vae", "diffusion_pytorch_model"),
    model("depth_estimator", "model"),
    model("safety_checker", "model"),
    plain("feature_extractor", &["preprocessor_config.json"]),
    plain("tokenizer", TOKENIZER_FILES),
    plain("tokenizer_2", TOKENIZER_FILES),
    plain("scheduler", &["scheduler_config.json"]),
    plain("low_res_scheduler", &["scheduler_config.json"]),
];

/// The files of a tokenizer.
const TOKENIZER_FILES: &[&str] = &[
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
];

/// The tiny decoder, which `model_index.json` need not name.
const VAE_TINY: ComponentSpec = model("vae_tiny", "diffusion_pytorch_model");

const fn model(name: &'static str, stem: &'static str) -> ComponentSpec {
    ComponentSpec {
        name,
        stem: Some(stem),
        files: &["config.json"],
    }
}

const fn plain(name: &'static str, files: &'static [&'static str]) -> ComponentSpec {
    ComponentSpec {
        name,
        stem: None,
        files,
    }
}

/// Returns the components of the folder that the server knows, in the order of [`COMPONENTS`].
pub fn known_components(index: &ModelIndex) -> impl Iterator<Item = &'static ComponentSpec> {
    COMPONENTS.iter().filter(|spec| index.component(spec.name).is_some())
}

/// Returns all components that the server reads: those that `model_index.json` names, and the tiny decoder.
pub(super) fn served_components(folder: &Path, index: &ModelIndex) -> impl Iterator<Item = &'static ComponentSpec> {
    let is_upscaler = index.class_name() == Some(PipelineClass::Upscale.name());
    let tiny = (!is_upscaler && folder.join(VAE_TINY.name).is_dir()).then_some(&VAE_TINY);
    known_components(index).chain(tiny)
}

/// Returns the files that the server reads, relative to the folder. Missing weights are skipped.
///
/// # Errors
/// Those of [`ModelIndex::read`] and [`WeightFiles::find`].
pub fn served_files(folder: &Path, prefer: Variant) -> Result<BTreeSet<PathBuf>> {
    let mut served = BTreeSet::from([PathBuf::from(ModelIndex::FILE)]);
    let index = ModelIndex::read(folder)?;
    for spec in served_components(folder, &index) {
        let own = folder.join(spec.name);
        served.extend(
            spec.files
                .iter()
                .filter(|name| own.join(name).is_file())
                .map(|name| Path::new(spec.name).join(name)),
        );
        let Some(stem) = spec.stem else { continue };
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
