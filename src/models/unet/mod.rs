//! `UNet2DConditionModel`, the network that predicts the noise of latents.

mod blocks;
mod config;
mod embeddings;
mod footprint;
mod unet_2d_condition;

pub use config::{BlockType, PerBlock, SampleSize, UNet2DConfig};
pub use embeddings::guidance_scale_embedding;
pub use unet_2d_condition::{AddedCondition, TimeInput, UNet2DConditionModel, UNetInput};
