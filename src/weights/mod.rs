//! From safetensors files to tensors on a device.
//!
//! [`WeightFiles`] finds the files of a component and [`Component`] maps them. [`Loader`] loads their tensors in
//! parallel into the store, which has one copy of equal tensors of all models. [`Weights`] returns tensors by their
//! names in the checkpoint: a missing tensor, another shape or an unexpected tensor fails the load with the name of the
//! tensor.

mod available_memory;
mod component;
mod convert;
mod digest;
mod file;
mod loader;
mod materialize;
mod parallel;
mod path;
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

pub use component::Component;
pub use convert::convert;
pub use file::TensorFile;
pub use loader::{ComponentId, LoadedWeights, Loader, Progress, WeightMemory};
pub use path::{WeightPath, Weights};
pub use shared::{Frozen, SharedModel};
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
const MAX_JSON_BYTES: u64 = 64 << 20;

/// Reads a JSON file of a model folder.
///
/// # Errors
/// `NotFound` if the file cannot be read, `InvalidArgument` if it does not have the expected JSON; both name the file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let cannot_read = |error| Error::not_found(format!("{}: {error}", path.display()));
    let length = std::fs::metadata(path).map_err(cannot_read)?.len();
    if length > MAX_JSON_BYTES {
        return Err(Error::invalid_argument(format!(
            "{}: the file has {length} bytes, the limit is {MAX_JSON_BYTES}",
            path.display()
        )));
    }
    let text = std::fs::read_to_string(path).map_err(cannot_read)?;
    let mut json = serde_json::Deserializer::from_str(&text);
    let value = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| Error::invalid_argument(format!("{}: {error}", path.display())))?;
    json.end()
        .map_err(|error| Error::invalid_argument(format!("{}: {error}", path.display())))?;
    Ok(value)
}
