//! Adapters: small files that change a model by request. A LoRA changes its layers, a textual inversion adds words to its
//! prompts.
//!
//! [`LoraPool`] finds, loads and keeps the LoRAs of a folder, [`EmbeddingPool`] the textual inversions. [`JobAdapters`] are
//! those of one request, as the layers and the prompt encoder take them.

mod base_layers;
mod embedding_pool;
mod embeddings;
mod equal_matrices;
mod job_adapters;
mod keys;
mod lora;
mod lora_files;
mod lora_pool;
mod scaling;
#[cfg(test)]
mod tests;
mod textual_inversion;

pub use embedding_pool::EmbeddingPool;
pub use embeddings::Embeddings;
pub use job_adapters::{JobAdapters, ScaledLora};
pub use keys::{AdaptedComponent, AdapterKey, KeyPart};
pub use lora::{AdaptableLayers, FileLayer, FileMatrix, Lora};
pub use lora_files::{LoraFiles, METADATA_KEY, load_lora};
pub use lora_pool::{LoraPool, PoolUsage};
pub use scaling::{LayerScale, Scaling};
pub use textual_inversion::{InversionHeader, TextualInversion};
