//! Adapters: small files that change a model's layers by request (LoRA).
//!
//! [`LoraPool`] finds, loads and keeps the files of a folder. [`JobAdapters`] are those of one request, as the layers take
//! them.

mod base_layers;
mod equal_matrices;
mod job_adapters;
mod keys;
mod lora;
mod lora_files;
mod lora_pool;
mod scaling;
#[cfg(test)]
mod tests;

pub use job_adapters::{JobAdapters, ScaledLora};
pub use keys::{AdaptedComponent, AdapterKey, KeyPart};
pub use lora::{AdaptableLayers, FileLayer, FileMatrix, Lora};
pub use lora_files::{LoraFiles, METADATA_KEY, load_lora};
pub use lora_pool::{LoraPool, PoolUsage};
pub use scaling::{LayerScale, Scaling};
