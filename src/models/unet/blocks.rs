//! The UNet's blocks, with and without attention to the text.
//!
//! Source: diffusers `models/unets/unet_2d_blocks.py` (`CrossAttnDownBlock2D`, `DownBlock2D`,
//! `UNetMidBlock2DCrossAttn`, `CrossAttnUpBlock2D`, `UpBlock2D`).

use std::ops::Range;

use tch::Tensor;

use super::config::UNet2DConfig;
use crate::models::layers::{
    BatchSplit, ChunkSize, Conditioning, Downsample2D, ResnetBlock2D, ResnetConfig, Transformer2DConfig,
    Transformer2DModel, Upsample2D,
};
use crate::weights::WeightPath;
use diffusion_core::{Error, Result};

/// The shape of a block.
pub struct BlockConfig<'a> {
    /// Channels in (down, mid), or of the outermost skip connection (up).
    pub inputs: i64,
    /// Channels out.
    pub outputs: i64,
    /// Size of the time embedding.
    pub temb: i64,
    /// Number of resnets.
    pub layers: usize,
    /// Transformer blocks behind each resnet.
    pub transformer_layers: usize,
    /// Whether the block attends to the text.
    pub cross_attention: bool,
    /// Attention heads.
    pub heads: i64,
    /// The first attention also attends to the text.
    pub only_cross_attention: bool,
    /// Whether the block ends with a change of size.
    pub resample: bool,
    /// The settings that all blocks share.
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

    /// Reads all resnets; `inputs` gives the channels into each.
    fn resnets(&self, path: &WeightPath<'_>, inputs: impl Fn(usize) -> i64) -> Result<Vec<ResnetBlock2D>> {
        (0..self.layers)
            .map(|index| self.resnet(path, index, inputs(index)))
            .collect()
    }

    /// Reads one transformer for each layer, or none.
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

/// The settings that all blocks of one UNet call share.
#[derive(Clone, Copy)]
pub struct BlockCall<'a> {
    /// How the batch entries divide among jobs.
    pub split: BatchSplit<'a>,
    /// Convolutions are computed in chunks of this size.
    pub chunk_size: Option<ChunkSize>,
}

impl BlockCall<'_> {
    /// Applies a resnet and the transformer behind it, if there is one. The input's memory is free for the transformer, unless
    /// the input is a skip connection too.
    fn layer(
        &self,
        input: Tensor,
        resnet: &ResnetBlock2D,
        attention: Option<&Transformer2DModel>,
        conditioning: &mut Conditioning<'_>,
    ) -> Result<Tensor> {
        let shift = conditioning.next_shift()?;
        let hidden = resnet.forward_split(&input, Some(shift), self.split, self.chunk_size)?;
        drop(input);
        match attention {
            Some(attention) => attention.forward(&hidden, conditioning, self.split),
            None => Ok(hidden),
        }
    }
}

/// `CrossAttnDownBlock2D` and `DownBlock2D`.
pub struct DownBlock {
    resnets: Vec<ResnetBlock2D>,
    attentions: Vec<Transformer2DModel>,
    downsampler: Option<Downsample2D>,
}

impl DownBlock {
    /// The resnets and the transformers, each in the order of [`DownBlock::forward`].
    pub fn layers(&self) -> (&[ResnetBlock2D], &[Transformer2DModel]) {
        (&self.resnets, &self.attentions)
    }

    /// Reads the weights below `path`.
    pub fn new(path: &WeightPath<'_>, config: &BlockConfig<'_>) -> Result<Self> {
        let inputs = |index| if index == 0 { config.inputs } else { config.outputs };
        let downsampler = config.resample.then(|| {
            let path = path.sub("downsamplers").sub(0);
            Downsample2D::new(&path, config.outputs, config.unet.downsample_padding)
        });
        Ok(Self {
            resnets: config.resnets(path, inputs)?,
            attentions: config.attentions(path)?,
            downsampler: downsampler.transpose()?,
        })
    }

    /// Applies the block and pushes one skip connection for each layer, and one after the change of size.
    ///
    /// # Shapes
    /// - `input`: `[batch, inputs, height, width]`
    /// - returns `[batch, outputs, height, width]`, or half that size with `resample`
    pub fn forward(
        &self,
        input: &Tensor,
        call: BlockCall<'_>,
        conditioning: &mut Conditioning<'_>,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        let mut hidden = input.shallow_clone();
        for (index, resnet) in self.resnets.iter().enumerate() {
            hidden = call.layer(hidden, resnet, self.attentions.get(index), conditioning)?;
            skips.push(hidden.shallow_clone());
        }
        if let Some(downsampler) = &self.downsampler {
            hidden = downsampler.forward(&hidden, call.split)?;
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
    /// The resnets in the order of [`MidBlock::forward`].
    pub fn resnets(&self) -> impl Iterator<Item = &ResnetBlock2D> {
        std::iter::once(&self.first).chain(self.layers.iter().map(|(_, resnet)| resnet))
    }

    /// The transformers in the order of [`MidBlock::forward`].
    pub fn attentions(&self) -> impl Iterator<Item = &Transformer2DModel> {
        self.layers.iter().map(|(attention, _)| attention)
    }

    /// Reads the weights below `path`.
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

    /// Applies the block.
    ///
    /// # Shapes
    /// - `input` and the result: `[batch, inputs, height, width]`
    pub fn forward(&self, input: &Tensor, call: BlockCall<'_>, conditioning: &mut Conditioning<'_>) -> Result<Tensor> {
        let mut hidden = call.layer(input.shallow_clone(), &self.first, None, conditioning)?;
        for (attention, resnet) in &self.layers {
            hidden = attention.forward(&hidden, conditioning, call.split)?;
            hidden = call.layer(hidden, resnet, None, conditioning)?;
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
    /// The resnets and the transformers, each in the order of [`UpBlock::forward`].
    pub fn layers(&self) -> (&[ResnetBlock2D], &[Transformer2DModel]) {
        (&self.resnets, &self.attentions)
    }

    /// Reads the weights below `path`; `previous` is the number of channels of the block below.
    pub fn new(path: &WeightPath<'_>, config: &BlockConfig<'_>, previous: i64) -> Result<Self> {
        let inputs = |index| {
            let is_last = index + 1 == config.layers;
            let skip = if is_last { config.inputs } else { config.outputs };
            let below = if index == 0 { previous } else { config.outputs };
            below + skip
        };
        let upsampler = config
            .resample
            .then(|| Upsample2D::new(&path.sub("upsamplers").sub(0), config.outputs));
        Ok(Self {
            resnets: config.resnets(path, inputs)?,
            attentions: config.attentions(path)?,
            upsampler: upsampler.transpose()?,
        })
    }

    /// Applies the block and takes one skip connection for each layer from the end of `skips`.
    ///
    /// # Shapes
    /// - `input`: `[batch, previous, height, width]`
    /// - returns `[batch, outputs, height, width]`; with `resample` in the size of the next skip connection, or twice the
    ///   size if there is none
    pub fn forward(
        &self,
        input: Tensor,
        call: BlockCall<'_>,
        conditioning: &mut Conditioning<'_>,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        let hidden = self.forward_before_last(input, call, conditioning, skips)?;
        self.forward_last(hidden, call, conditioning, skips)
    }

    /// Applies all layers but the last one; arguments as in [`UpBlock::forward`].
    ///
    /// # Shapes
    /// - returns `[batch, outputs, height, width]`, or `input` if there is one layer
    pub fn forward_before_last(
        &self,
        input: Tensor,
        call: BlockCall<'_>,
        conditioning: &mut Conditioning<'_>,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        let layers = 0..self.resnets.len().saturating_sub(1);
        self.forward_layers(layers, input, call, conditioning, skips)
    }

    /// Applies the last layer and the change of size to the result of [`UpBlock::forward_before_last`], and returns the
    /// result of [`UpBlock::forward`].
    pub fn forward_last(
        &self,
        hidden: Tensor,
        call: BlockCall<'_>,
        conditioning: &mut Conditioning<'_>,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        let layers = self.resnets.len().saturating_sub(1)..self.resnets.len();
        let hidden = self.forward_layers(layers, hidden, call, conditioning, skips)?;
        match &self.upsampler {
            // Half of an odd size was rounded up on the way down, so twice the size may be too large.
            Some(upsampler) => {
                let size = skips.last().map(Tensor::size4).transpose()?;
                let size = size.map(|(_, _, height, width)| (height, width));
                upsampler.forward_split(&hidden, size, call.split, call.chunk_size)
            }
            None => Ok(hidden),
        }
    }

    fn forward_layers(
        &self,
        layers: Range<usize>,
        mut hidden: Tensor,
        call: BlockCall<'_>,
        conditioning: &mut Conditioning<'_>,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        for (index, resnet) in self.resnets.iter().enumerate().take(layers.end).skip(layers.start) {
            let skip = skips
                .pop()
                .ok_or_else(|| Error::internal("fewer skip connections than the up blocks need"))?;
            hidden = resnet.join(&hidden, &skip)?;
            // Its memory is free for the layer.
            drop(skip);
            hidden = call.layer(hidden, resnet, self.attentions.get(index), conditioning)?;
        }
        Ok(hidden)
    }
}
