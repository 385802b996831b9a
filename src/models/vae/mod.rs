//! `AutoencoderKL`, the network between images and latents.

mod autoencoder_kl;
mod config;

pub use autoencoder_kl::AutoencoderKl;
pub use config::AutoencoderKlConfig;
