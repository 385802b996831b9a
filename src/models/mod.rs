//! The networks, with one field for each name in a checkpoint.
//!
//! They take and give tensors and know nothing of requests, schedulers or files other than by
//! [`crate::weights`].

mod attention;
mod autoencoder_kl;
mod autoencoder_kl_config;
mod bit;
mod bit_config;
mod clip_encoder;
mod clip_image_processor;
mod clip_text;
mod clip_vision;
mod dpt;
mod dpt_config;
mod dpt_neck;
mod embeddings;
mod group_norm;
mod layers;
mod resnet;
mod safety_checker;
mod strips;
mod tokenizer;
mod unet_2d_blocks;
mod unet_2d_condition;
mod unet_2d_config;
mod weight;

pub use autoencoder_kl::AutoencoderKl;
pub use autoencoder_kl_config::AutoencoderKlConfig;
pub use bit_config::BitConfig;
pub use clip_encoder::Activation;
pub use clip_image_processor::ClipImageProcessor;
pub use clip_text::{ClipTextConfig, ClipTextModel};
pub use clip_vision::ClipVisionConfig;
pub use dpt::DptForDepthEstimation;
pub use dpt_config::DptConfig;
pub use embeddings::guidance_scale_embedding;
pub use layers::Rows;
pub use safety_checker::{Cosines, SafetyChecker, SafetyCheckerConfig, SafetyScores};
pub use strips::StripSize;
pub use tokenizer::{ClipTokenizer, Tokens};
pub use unet_2d_condition::{UNet2DConditionModel, UNetInput};
pub use unet_2d_config::{BlockType, PerBlock, SampleSize, UNet2DConfig};
pub use weight::release_scratch;
