//! The UNet's blocks, with and without attention to the text.
//!
//! Source: diffusers `models/unets/unet_2d_blocks.py` (`CrossAttnDownBlock2D`, `DownBlock2D`,
//! `UNetMidBlock2DCrossAttn`, `CrossAttnUpBlock2D`, `UpBlock2D`).

use tch::Tensor;

use super::config::UNet2DConfig;
use crate::models::layers::Rows;
use crate::models::layers::attention::{Transformer2DConfig, Transformer2DModel};
use crate::models::layers::resnet::{Downsample2D, ResnetBlock2D, ResnetConfig, Upsample2D};
use crate::weights::WeightPath;
use diffusion_core::{Error, Result};

/// What shapes a block.
pub struct BlockConfig<'a> {
    /// Channels in (down, mid), or of the outermost skip (up).
    pub inputs: i64,
    /// Channels out.
    pub outputs: i64,
    /// Size of the time embedding.
    pub temb: i64,
    /// Resnets.
    pub layers: usize,
    /// Transformer blocks behind each resnet.
    pub transformer_layers: usize,
    /// Whether there is attention at all.
    pub cross_attention: bool,
    /// Attention heads.
    pub heads: i64,
    /// The first attention attends to the text too.
    pub only_cross_attention: bool,
    /// Whether the block ends with a change of size.
    pub resample: bool,
    /// The rest.
    pub unet: &'a UNet2DConfig,
}

impl BlockConfig<'_> {
    fn resnet(&self, path: &WeightPath<'_>, index: usize, inputs: i64) -> Result<ResnetBlock2D> {
        let config = ResnetConfig {
            groups: self.unet.norm_num_groups,
            eps: self.unet.norm_eps,
            temb_channels: Some(self.temb),
        };
        ResnetBlock2D::new(&path.sub("resnets").sub(index), inputs, self.outputs, config)
    }

    /// One transformer a layer, or none.
    fn attentions(&self, path: &WeightPath<'_>) -> Result<Vec<Transformer2DModel>> {
        let config = Transformer2DConfig {
            channels: self.outputs,
            heads: self.heads,
            cross_attention_dim: self.unet.cross_attention_dim,
            norm_num_groups: self.unet.norm_num_groups,
            layers: self.transformer_layers,
            use_linear_projection: self.unet.use_linear_projection,
            only_cross_attention: self.only_cross_attention,
        };
        let layers = if self.cross_attention { self.layers } else { 0 };
        (0..layers)
            .map(|index| Transformer2DModel::new(&path.sub("attentions").sub(index), &config))
            .collect()
    }
}

/// `CrossAttnDownBlock2D` and `DownBlock2D`.
pub struct DownBlock {
    resnets: Vec<ResnetBlock2D>,
    attentions: Vec<Transformer2DModel>,
    downsampler: Option<Downsample2D>,
}

impl DownBlock {
    /// Reads the weights below `path`.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn new(path: &WeightPath<'_>, config: &BlockConfig<'_>) -> Result<Self> {
        let resnets = (0..config.layers)
            .map(|index| {
                let inputs = if index == 0 { config.inputs } else { config.outputs };
                config.resnet(path, index, inputs)
            })
            .collect::<Result<_>>()?;
        let downsampler = config
            .resample
            .then(|| {
                let path = path.sub("downsamplers").sub(0);
                Downsample2D::new(&path, config.outputs, config.unet.downsample_padding)
            })
            .transpose()?;
        Ok(Self {
            resnets,
            attentions: config.attentions(path)?,
            downsampler,
        })
    }

    /// Returns the feature map and pushes one skip a layer, and one after the change of size.
    ///
    /// # Errors
    /// Out of memory.
    pub fn forward(
        &self,
        input: &Tensor,
        temb: &Tensor,
        context: &Tensor,
        skips: &mut Vec<Tensor>,
        rows: Rows<'_>,
    ) -> Result<Tensor> {
        let mut hidden = input.shallow_clone();
        for (index, resnet) in self.resnets.iter().enumerate() {
            hidden = resnet.forward(&hidden, Some(temb), rows)?;
            if let Some(attention) = self.attentions.get(index) {
                hidden = attention.forward(&hidden, context, rows)?;
            }
            skips.push(hidden.shallow_clone());
        }
        if let Some(downsampler) = &self.downsampler {
            hidden = downsampler.forward(&hidden, rows)?;
            skips.push(hidden.shallow_clone());
        }
        Ok(hidden)
    }
}

/// `UNetMidBlock2DCrossAttn`.
pub struct MidBlock {
    first: ResnetBlock2D,
    layers: Vec<(Transformer2DModel, ResnetBlock2D)>,
}

impl MidBlock {
    /// Reads the weights below `path`.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn new(path: &WeightPath<'_>, config: &BlockConfig<'_>) -> Result<Self> {
        let first = config.resnet(path, 0, config.inputs)?;
        let layers = config
            .attentions(path)?
            .into_iter()
            .enumerate()
            .map(|(index, attention)| Ok((attention, config.resnet(path, index + 1, config.outputs)?)))
            .collect::<Result<_>>()?;
        Ok(Self { first, layers })
    }

    /// The shape of the input.
    ///
    /// # Errors
    /// Out of memory.
    pub fn forward(&self, input: &Tensor, temb: &Tensor, context: &Tensor, rows: Rows<'_>) -> Result<Tensor> {
        let mut hidden = self.first.forward(input, Some(temb), rows)?;
        for (attention, resnet) in &self.layers {
            hidden = attention.forward(&hidden, context, rows)?;
            hidden = resnet.forward(&hidden, Some(temb), rows)?;
        }
        Ok(hidden)
    }
}

/// `CrossAttnUpBlock2D` and `UpBlock2D`.
pub struct UpBlock {
    resnets: Vec<ResnetBlock2D>,
    attentions: Vec<Transformer2DModel>,
    upsampler: Option<Upsample2D>,
}

impl UpBlock {
    /// Reads the weights below `path`; `previous` is the channels that come from below.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn new(path: &WeightPath<'_>, config: &BlockConfig<'_>, previous: i64) -> Result<Self> {
        let resnets = (0..config.layers)
            .map(|index| {
                let skip = if index + 1 == config.layers {
                    config.inputs
                } else {
                    config.outputs
                };
                let from_below = if index == 0 { previous } else { config.outputs };
                config.resnet(path, index, from_below + skip)
            })
            .collect::<Result<_>>()?;
        let upsampler = config
            .resample
            .then(|| Upsample2D::new(&path.sub("upsamplers").sub(0), config.outputs))
            .transpose()?;
        Ok(Self {
            resnets,
            attentions: config.attentions(path)?,
            upsampler,
        })
    }

    /// Takes one skip a layer from the end of `skips`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn forward(
        &self,
        input: &Tensor,
        temb: &Tensor,
        context: &Tensor,
        skips: &mut Vec<Tensor>,
        rows: Rows<'_>,
    ) -> Result<Tensor> {
        let mut hidden = input.shallow_clone();
        for (index, resnet) in self.resnets.iter().enumerate() {
            let skip = skips
                .pop()
                .ok_or_else(|| Error::internal("the UNet ran out of skips"))?;
            hidden = Tensor::f_cat(&[hidden, skip], 1)?;
            hidden = resnet.forward(&hidden, Some(temb), rows)?;
            if let Some(attention) = self.attentions.get(index) {
                hidden = attention.forward(&hidden, context, rows)?;
            }
        }
        match &self.upsampler {
            // The next skip has the size to come back to: half of an odd size was rounded.
            Some(upsampler) => {
                let size = skips.last().map(Tensor::size4).transpose()?;
                upsampler.forward(&hidden, size.map(|(_, _, height, width)| (height, width)), rows)
            }
            None => Ok(hidden),
        }
    }
}
