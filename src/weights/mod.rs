//! From safetensors files to tensors on a device.
//!
//! [`WeightFiles`] finds the files of a component and [`Component`] maps them. [`Loader`] loads their tensors in
//! parallel into the store, which has one copy of equal tensors of all models. [`Weights`] returns tensors by their
//! names in the checkpoint: a missing tensor, another shape or an unexpected tensor fails the load with the name of the
//! tensor.

mod available_memory;
mod bus_errors;
mod component;
mod contents;
mod convert;
mod digest;
mod file;
mod links;
mod loader;
mod mapped_files;
mod materialize;
mod parallel;
mod path;
mod regular_file;
mod shared;
mod store;
#[cfg(test)]
mod tests;
mod weight_files;

use std::path::Path;

use serde::de::DeserializeOwned;
use tch::{Device, Kind};

use crate::torch;
use diffusion_core::{Error, Result};

pub use bus_errors::uninstall as uninstall_bus_error_handler;
pub use component::Component;
pub use contents::hash_component;
pub use convert::convert;
pub use digest::FileIdentity;
pub use file::TensorFile;
pub use links::check_inside;
pub use loader::{ComponentId, LoadedWeights, Loader, Progress, WeightMemory};
pub use mapped_files::MappedFiles;
pub use parallel::in_parallel;
pub use path::{LayerShapes, WeightPath, Weights};
pub use regular_file::{check_size, read_text};
pub use shared::{Frozen, SharedModel, WeakModel};
pub use weight_files::{Variant, WeightFiles};

/// Returns the memory of the weights of all models on a device in bytes; equal tensors count once.
pub fn resident_bytes(device: torch::Device) -> u64 {
    store::STORE.bytes(device.into())
}

/// Loads the weights of one component; see [`Component::open`] for `stem`.
///
/// # Errors
/// Those of [`Loader::open`] and [`Loader::load`].
pub fn load_component(folder: &Path, stem: &str, device: Device, kind: Kind) -> Result<Weights> {
    let mut loader = Loader::new(device);
    let part = loader.open(folder, stem, kind)?;
    loader.load(&|_| {})?.take(part)
}

/// Largest JSON file that is read, in bytes. The largest in supported folders is the `vocab.json` of a tokenizer with 1
/// MB.
pub const MAX_JSON_BYTES: u64 = 64 << 20;

/// Reads a JSON file of a model folder.
///
/// # Errors
/// Those of [`read_text`]; `InvalidArgument` if the file does not have the expected JSON, with its name.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = read_text(path, MAX_JSON_BYTES)?;
    let mut json = serde_json::Deserializer::from_str(&text);
    let value = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| Error::invalid_argument(format!("{}: {error}", path.display())))?;
    json.end()
        .map_err(|error| Error::invalid_argument(format!("{}: {error}", path.display())))?;
    Ok(value)
}
