//! The networks, with one field for each name in a checkpoint.
//!
//! They take and give tensors and know nothing of requests, schedulers or files other than by
//! [`crate::weights`].

mod attention;
mod autoencoder_kl;
mod autoencoder_kl_config;
mod clip_text;
mod embeddings;
mod layers;
mod resnet;
mod tokenizer;
mod unet_2d_blocks;
mod unet_2d_condition;
mod unet_2d_config;

pub use autoencoder_kl::AutoencoderKl;
pub use autoencoder_kl_config::AutoencoderKlConfig;
pub use clip_text::{Activation, ClipTextConfig, ClipTextModel};
pub use layers::Rows;
pub use tokenizer::{ClipTokenizer, Tokens};
pub use unet_2d_condition::{UNet2DConditionModel, UNetInput};
pub use unet_2d_config::{BlockType, PerBlock, SampleSize, UNet2DConfig};
