//! The tiny decoder: latents to images in a fraction of the VAE's time, with other images.
//!
//! Source: diffusers `models/autoencoders/autoencoder_tiny.py`, `models/autoencoders/vae.py` (`DecoderTiny`),
//! `models/unets/unet_2d_blocks.py` (`AutoencoderTinyBlock`).

use tch::{Kind, Tensor};

use super::tiny_config::AutoencoderTinyConfig;
use crate::models::layers::{BatchSplit, Conv2d};
use crate::torch::numbers::NumberOperators;
use crate::weights::{Frozen, WeightPath, Weights};
use diffusion_core::Result;

/// Latents are squeezed into the range of plus and minus this number (`DecoderTiny.forward`).
const LATENT_RANGE: f64 = 3.0;

/// Three convolutions with a residual.
struct AutoencoderTinyBlock {
    conv: [Conv2d; 3],
}

impl AutoencoderTinyBlock {
    fn new(path: &WeightPath<'_>, channels: i64) -> Result<Self> {
        // The convolutions of `nn.Sequential`, with activations between them.
        let conv = |index| Conv2d::same(&path.sub("conv").sub(index), channels, channels);
        Ok(Self {
            conv: [conv(0)?, conv(2)?, conv(4)?],
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let [first, second, third] = &self.conv;
        let hidden = first.forward(input)?.f_relu()?;
        let hidden = second.forward(&hidden)?.f_relu()?;
        Ok(third.forward_add(&hidden, input, BatchSplit::Joint, None)?.f_relu()?)
    }
}

/// Blocks, and the convolution behind them: before it, all stages but the last enlarge.
struct Stage {
    blocks: Vec<AutoencoderTinyBlock>,
    conv: Conv2d,
}

/// diffusers' `AutoencoderTiny`, without the encoder.
pub struct AutoencoderTiny {
    config: AutoencoderTinyConfig,
    kind: Kind,
    conv_in: Conv2d,
    /// All stages but the last.
    enlarging: Vec<Stage>,
    last: Stage,
}

// SAFETY: the model holds tensors and numbers only. Its methods take `&self` and read the weights through functional
// operations of libtorch; none writes to a weight.
#[expect(unsafe_code, reason = "the promise is about this type and changes with it")]
unsafe impl Frozen for AutoencoderTiny {}

impl AutoencoderTiny {
    /// Builds the decoder from `weights`, all of which it must use, but for the encoder's.
    pub fn new(config: AutoencoderTinyConfig, weights: Weights) -> Result<Self> {
        let weights = weights.ignoring(|name| name.starts_with("encoder."));
        let model = Self::read(config, &weights)?;
        weights.finish()?;
        Ok(model)
    }

    fn read(config: AutoencoderTinyConfig, weights: &Weights) -> Result<Self> {
        let path = weights.root().sub("decoder").sub("layers");
        let channels = config.channels();
        // Places in `nn.Sequential`: a convolution and an activation first.
        let mut next = 2;
        let stage = |blocks: usize, is_last: bool, next: &mut usize| -> Result<Stage> {
            let end = *next + blocks;
            let blocks = (*next..end).map(|index| AutoencoderTinyBlock::new(&path.sub(index), channels));
            let blocks = blocks.collect::<Result<_>>()?;
            // `nn.Upsample` has a place too.
            let conv = if is_last { end } else { end + 1 };
            *next = conv + 1;
            let outputs = if is_last { config.out_channels } else { channels };
            Ok(Stage {
                blocks,
                conv: Conv2d::same_with_bias(&path.sub(conv), channels, outputs, is_last)?,
            })
        };
        let (&last, earlier) = config.num_decoder_blocks.split_last().unwrap_or((&0, &[]));
        Ok(Self {
            kind: weights.kind(),
            conv_in: Conv2d::same(&path.sub(0), config.latent_channels, channels)?,
            enlarging: earlier
                .iter()
                .map(|&blocks| stage(blocks, false, &mut next))
                .collect::<Result<_>>()?,
            last: stage(last, true, &mut next)?,
            config,
        })
    }

    /// Returns the configuration.
    pub fn config(&self) -> &AutoencoderTinyConfig {
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
        let squeezed = latents.div_number(LATENT_RANGE)?.f_tanh()?.mul_number(LATENT_RANGE)?;
        let mut hidden = self.conv_in.forward(&squeezed)?.f_relu()?;
        let factor = self.config.upsampling_scaling_factor;
        for stage in &self.enlarging {
            for block in &stage.blocks {
                hidden = block.forward(&hidden)?;
            }
            let (_, _, height, width) = hidden.size4()?;
            let size = (height.saturating_mul(factor), width.saturating_mul(factor));
            hidden = stage.conv.forward_enlarged(&hidden, size, BatchSplit::Joint, None)?;
        }
        for block in &self.last.blocks {
            hidden = block.forward(&hidden)?;
        }
        // From 0 to 1.
        self.last.conv.forward(&hidden)?.mul_number(2.0)?.sub_number(1.0)
    }
}
