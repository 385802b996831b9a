//! The convolutional blocks that the UNet and the VAE share.
//!
//! Source: diffusers `models/resnet.py` (`ResnetBlock2D`), `models/upsampling.py` (`Upsample2D`),
//! `models/downsampling.py` (`Downsample2D`).

use tch::Tensor;

use super::batch_split::BatchSplit;
use super::chunked::ChunkSize;
use super::conditioning::TimeShift;
use super::conv::Conv2d;
use super::group_norm::GroupNorm;
use super::linear::Linear;
use crate::torch::kernels;
use crate::weights::WeightPath;
use diffusion_core::{Error, Result};

/// Two convolutions with norms, the time embedding added between them, and a residual.
pub struct ResnetBlock2D {
    pub(crate) norm1: GroupNorm,
    pub(crate) conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    pub(crate) norm2: GroupNorm,
    pub(crate) conv2: Conv2d,
    pub(crate) conv_shortcut: Option<Conv2d>,
}

/// The settings that a model's [`ResnetBlock2D`]s have in common.
#[derive(Clone, Copy)]
pub struct ResnetConfig {
    /// Groups of both norms.
    pub groups: i64,
    /// Epsilon of both norms.
    pub eps: f64,
    /// Size of the time embedding; `None` in a VAE.
    pub temb_channels: Option<i64>,
}

impl ResnetBlock2D {
    /// Reads the weights below `path`.
    pub fn new(path: &WeightPath<'_>, inputs: i64, outputs: i64, config: ResnetConfig) -> Result<Self> {
        Ok(Self {
            norm1: GroupNorm::new(&path.sub("norm1"), config.groups, inputs, config.eps)?,
            conv1: Conv2d::same(&path.sub("conv1"), inputs, outputs)?,
            time_emb_proj: config
                .temb_channels
                .map(|temb| Linear::new(&path.sub("time_emb_proj"), temb, outputs))
                .transpose()?,
            norm2: GroupNorm::new(&path.sub("norm2"), config.groups, outputs, config.eps)?,
            conv2: Conv2d::same(&path.sub("conv2"), outputs, outputs)?,
            conv_shortcut: (inputs != outputs)
                .then(|| Conv2d::pointwise(&path.sub("conv_shortcut"), inputs, outputs))
                .transpose()?,
        })
    }

    /// Joins two maps along the channels, in the layout that the block computes in.
    ///
    /// # Shapes
    /// - `left`, `right`: `[batch, channels, height, width]`, with their own numbers of channels
    pub fn join(&self, left: &Tensor, right: &Tensor) -> Result<Tensor> {
        if self.conv1.is_fast() {
            return kernels::join_channels(left, right);
        }
        Ok(Tensor::f_cat(&[left, right], 1)?)
    }

    /// Applies the block to the whole batch, without a time embedding.
    ///
    /// # Shapes
    /// - `input`: `[batch, inputs, height, width]`
    /// - returns `[batch, outputs, height, width]`
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        self.forward_split(input, None, BatchSplit::Joint, None)
    }

    /// Projects a time embedding after its SiLU, for [`ResnetBlock2D::forward_split`].
    ///
    /// # Shapes
    /// - `activated`: `[batch, temb_channels]`
    /// - returns `[batch, outputs]`
    ///
    /// # Errors
    /// `Internal` for a block without a time embedding.
    pub fn time_shift(&self, activated: &Tensor, split: BatchSplit<'_>) -> Result<Tensor> {
        self.time_emb_proj
            .as_ref()
            .ok_or_else(|| Error::internal("a resnet without a time embedding"))?
            .forward_split(activated, split)
    }

    /// Returns the result of [`ResnetBlock2D::time_shift`] with the bias of the first convolution added.
    ///
    /// # Errors
    /// Those of [`ResnetBlock2D::time_shift`].
    pub fn time_bias(&self, activated: &Tensor, split: BatchSplit<'_>) -> Result<Tensor> {
        let shift = self.time_shift(activated, split)?;
        match self.conv1.bias() {
            Some(bias) => Ok(shift.f_add(bias)?),
            None => Ok(shift),
        }
    }

    /// Applies the block to each job's entries, with a time embedding after the first convolution; other shapes as in
    /// [`ResnetBlock2D::forward`].
    pub fn forward_split(
        &self,
        input: &Tensor,
        time_shift: Option<TimeShift<'_>>,
        split: BatchSplit<'_>,
        chunk_size: Option<ChunkSize>,
    ) -> Result<Tensor> {
        let mut hidden = self.norm1.forward_silu(input, split)?;
        let conv1 = |bias| self.conv1.forward_with_bias(&hidden, bias, split, chunk_size);
        hidden = match time_shift {
            None => conv1(self.conv1.bias())?,
            Some(TimeShift::Added(shift)) => {
                conv1(self.conv1.bias())?.f_add(&shift.f_unsqueeze(-1)?.f_unsqueeze(-1)?)?
            }
            Some(TimeShift::Bias(bias)) if bias.size2()?.0 == 1 => conv1(Some(&bias.f_view([-1])?))?,
            Some(TimeShift::Bias(biases)) => conv1(Some(biases))?,
        };
        hidden = self.norm2.forward_silu(&hidden, split)?;
        let residual = match &self.conv_shortcut {
            Some(shortcut) if shortcut.is_fast() => shortcut.forward_split(input, split, None)?,
            Some(shortcut) => shortcut.forward_split(&input.f_contiguous()?, split, None)?,
            None => input.shallow_clone(),
        };
        // diffusers divides by `output_scale_factor` here, which is 1 in every supported model.
        self.conv2.forward_add(&hidden, &residual, split, chunk_size)
    }
}

/// Doubles height and width by repetition, then applies a convolution.
pub struct Upsample2D {
    conv: Conv2d,
}

impl Upsample2D {
    /// Reads the weights below `path`.
    pub fn new(path: &WeightPath<'_>, channels: i64) -> Result<Self> {
        Ok(Self {
            conv: Conv2d::same(&path.sub("conv"), channels, channels)?,
        })
    }

    /// Doubles the size of the whole batch.
    ///
    /// # Shapes
    /// - `input`: `[batch, channels, height, width]`
    /// - returns `[batch, channels, 2·height, 2·width]`
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        self.forward_split(input, None, BatchSplit::Joint, None)
    }

    /// Doubles the size of each job's entries, or enlarges them to `size` (height, width) where an odd size was halved
    /// before.
    pub fn forward_split(
        &self,
        input: &Tensor,
        size: Option<(i64, i64)>,
        split: BatchSplit<'_>,
        chunk_size: Option<ChunkSize>,
    ) -> Result<Tensor> {
        let (_, _, height, width) = input.size4()?;
        let (height, width) = size.unwrap_or((height * 2, width * 2));
        self.conv.forward_enlarged(input, (height, width), split, chunk_size)
    }
}

/// Halves height and width by a convolution of stride 2.
pub struct Downsample2D {
    conv: Conv2d,
    /// A VAE pads at the bottom and at the right only.
    pad_end: bool,
}

impl Downsample2D {
    /// Reads the weights below `path`. `padding` is `downsample_padding` of the configuration.
    pub fn new(path: &WeightPath<'_>, channels: i64, padding: i64) -> Result<Self> {
        Ok(Self {
            conv: Conv2d::new(&path.sub("conv"), channels, channels, 3, 2, padding)?,
            pad_end: padding == 0,
        })
    }

    /// Halves the size of each job's entries; odd sizes are rounded up.
    ///
    /// # Shapes
    /// - `input`: `[batch, channels, height, width]`
    /// - returns `[batch, channels, height/2, width/2]`
    pub fn forward(&self, input: &Tensor, split: BatchSplit<'_>) -> Result<Tensor> {
        if self.pad_end {
            self.conv.forward_padded_at_end(input, split)
        } else {
            self.conv.forward_split(input, split, None)
        }
    }
}
