//! `AutoencoderKL`, the network between images and latents.

mod autoencoder_kl;
mod blocks;
mod chunked_decoder;
mod config;
mod decoder;
mod encoder;

pub use autoencoder_kl::AutoencoderKl;
pub use config::AutoencoderKlConfig;
