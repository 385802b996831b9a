//! Adapters: small files that change a model's layers by request (LoRA).
//!
//! [`LoraPool`] finds, loads and keeps the files of a folder. [`JobAdapters`] are those of one request, as the layers take
//! them.

mod base_layers;
mod job_adapters;
mod keys;
mod lora;
mod lora_pool;
mod scaling;
#[cfg(test)]
mod tests;

pub use job_adapters::{JobAdapters, ScaledLora};
pub use keys::{AdaptedComponent, AdapterKey, KeyPart};
pub use lora::{AdaptableLayers, FileLayer, FileMatrix, Lora};
pub use lora_pool::{LoraFiles, LoraPool, METADATA_KEY, PoolUsage};
pub use scaling::{LayerScale, Scaling};
