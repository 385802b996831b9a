//! The VAE: images to latents and back.
//!
//! Source: diffusers `models/autoencoders/autoencoder_kl.py`.

use tch::{Kind, Tensor};

use super::config::AutoencoderKlConfig;
use super::decoder::Decoder;
use super::encoder::Encoder;
use crate::models::layers::{ChunkSize, Conv2d};
use crate::weights::{Frozen, Weights};
use diffusion_core::Result;

/// diffusers' `AutoencoderKL`.
pub struct AutoencoderKl {
    config: AutoencoderKlConfig,
    kind: Kind,
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
}

// SAFETY: the model holds tensors and numbers only. Its methods take `&self` and read the weights through functional
// operations of libtorch; none writes to a weight.
#[expect(unsafe_code, reason = "the promise is about this type and changes with it")]
unsafe impl Frozen for AutoencoderKl {}

impl AutoencoderKl {
    /// Builds the model from `weights`, all of which it must use.
    pub fn new(config: AutoencoderKlConfig, weights: Weights) -> Result<Self> {
        let weights = weights.renamed(current_name);
        let model = Self::read(config, &weights)?;
        weights.finish()?;
        Ok(model)
    }

    fn read(config: AutoencoderKlConfig, weights: &Weights) -> Result<Self> {
        let path = weights.root();
        let latents = config.latent_channels;
        let pointwise = |wanted: bool, name: &str, channels: i64| {
            wanted
                .then(|| Conv2d::pointwise(&path.sub(name), channels, channels))
                .transpose()
        };
        Ok(Self {
            encoder: Encoder::new(&path.sub("encoder"), &config)?,
            decoder: Decoder::new(&path.sub("decoder"), &config)?,
            quant_conv: pointwise(config.use_quant_conv, "quant_conv", latents * 2)?,
            post_quant_conv: pointwise(config.use_post_quant_conv, "post_quant_conv", latents)?,
            kind: weights.kind(),
            config,
        })
    }

    /// Returns the configuration.
    pub fn config(&self) -> &AutoencoderKlConfig {
        &self.config
    }

    /// Returns the dtype of the weights, the inputs and the outputs.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Decodes latents that are already divided by `scaling_factor`; f is the configuration's `scale_factor`.
    ///
    /// # Shapes
    /// - `latents`: `[batch, latent_channels, height, width]`
    /// - returns images `[batch, out_channels, height·f, width·f]`, about -1 to 1
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decoder.forward(&self.post_quant(latents)?)
    }

    /// As [`AutoencoderKl::decode`] but for rounding, in less memory: one image after the other, each chunk by chunk.
    pub fn decode_chunked(&self, latents: &Tensor, chunk_size: ChunkSize) -> Result<Tensor> {
        let images = latents
            .f_split(1, 0)?
            .iter()
            .map(|latents| self.decoder.forward_chunked(&self.post_quant(latents)?, chunk_size))
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_cat(&images, 0)?)
    }

    fn post_quant(&self, latents: &Tensor) -> Result<Tensor> {
        match &self.post_quant_conv {
            Some(conv) => conv.forward(latents),
            None => Ok(latents.shallow_clone()),
        }
    }

    /// Encodes images to the moments of the latents' distribution: means, then log-variances.
    ///
    /// # Shapes
    /// - `images`: `[batch, in_channels, height, width]`, -1 to 1
    /// - returns `[batch, 2·latent_channels, height/f, width/f]`
    pub fn encode(&self, images: &Tensor) -> Result<Tensor> {
        let moments = self.encoder.forward(images)?;
        match &self.quant_conv {
            Some(conv) => conv.forward(&moments),
            None => Ok(moments),
        }
    }
}

/// Returns the current name of a tensor of the middle block's attention if older diffusers, in which it was an
/// `AttentionBlock`, wrote the file (`_convert_deprecated_attention_blocks` in `models/modeling_utils.py`).
fn current_name(name: &str) -> Option<String> {
    const NAMES: [(&str, &str); 4] = [
        ("query", "to_q"),
        ("key", "to_k"),
        ("value", "to_v"),
        ("proj_attn", "to_out.0"),
    ];
    if !name.contains("mid_block.attentions.0.") {
        return None;
    }
    let (path, end) = name.rsplit_once('.')?;
    let (path, layer) = path.rsplit_once('.')?;
    let (_, current) = NAMES.iter().find(|(old, _)| *old == layer)?;
    Some(format!("{path}.{current}.{end}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn current_name_deprecated_attention_is_renamed() {
        let now = |name| current_name(name).unwrap_or_else(|| String::from(name));
        assert_eq!(
            now("decoder.mid_block.attentions.0.proj_attn.weight"),
            "decoder.mid_block.attentions.0.to_out.0.weight"
        );
        assert_eq!(
            now("encoder.mid_block.attentions.0.key.bias"),
            "encoder.mid_block.attentions.0.to_k.bias"
        );
        assert_eq!(
            now("encoder.mid_block.attentions.0.to_q.bias"),
            "encoder.mid_block.attentions.0.to_q.bias"
        );
        assert_eq!(now("decoder.conv_in.weight"), "decoder.conv_in.weight");
    }
}
