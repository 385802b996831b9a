//! `AutoencoderKL`, the network between images and latents, and the decoder of `AutoencoderTiny`.

mod autoencoder_kl;
mod autoencoder_tiny;
mod blocks;
mod chunked_decoder;
mod config;
mod decoder;
mod encoder;
mod footprint;
mod tiny_config;

pub use autoencoder_kl::AutoencoderKl;
pub use autoencoder_tiny::AutoencoderTiny;
pub use config::AutoencoderKlConfig;
pub use tiny_config::AutoencoderTinyConfig;
