//! The convolutional blocks that the UNet and the VAE share.
//!
//! Source: diffusers `models/resnet.py` (`ResnetBlock2D`), `models/upsampling.py` (`Upsample2D`),
//! `models/downsampling.py` (`Downsample2D`).

use tch::Tensor;

use super::group_norm::GroupNorm;
use crate::models::layers::{Conv2d, Linear, Rows, silu};
use crate::weights::WeightPath;
use diffusion_core::Result;

/// Two convolutions with norms, the time embedding added between them, and a residual.
pub struct ResnetBlock2D {
    pub(super) norm1: GroupNorm,
    pub(super) conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    pub(super) norm2: GroupNorm,
    pub(super) conv2: Conv2d,
    pub(super) conv_shortcut: Option<Conv2d>,
}

/// What shapes a [`ResnetBlock2D`].
#[derive(Clone, Copy)]
pub struct ResnetConfig {
    /// Groups of both norms.
    pub groups: i64,
    /// The norms' epsilon.
    pub eps: f64,
    /// Size of the time embedding; none in a VAE.
    pub temb_channels: Option<i64>,
}

impl ResnetBlock2D {
    /// Reads the weights below `path`.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
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

    /// `[rows, inputs, height, width]` to `[rows, outputs, height, width]`; `temb` is
    /// `[rows, temb_channels]`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn forward(&self, input: &Tensor, temb: Option<&Tensor>, rows: Rows<'_>) -> Result<Tensor> {
        let mut hidden = silu(&self.norm1.forward(input)?, rows)?;
        hidden = self.conv1.forward(&hidden, rows)?;
        if let (Some(projection), Some(temb)) = (&self.time_emb_proj, temb) {
            let shift = projection.forward(&silu(temb, rows)?, rows)?;
            hidden = hidden.f_add(&shift.f_unsqueeze(-1)?.f_unsqueeze(-1)?)?;
        }
        hidden = silu(&self.norm2.forward(&hidden)?, rows)?;
        hidden = self.conv2.forward(&hidden, rows)?;
        let residual = match &self.conv_shortcut {
            Some(shortcut) => shortcut.forward(&input.f_contiguous()?, rows)?,
            None => input.shallow_clone(),
        };
        // diffusers divides by `output_scale_factor` here, which is 1 in every supported model.
        Ok(residual.f_add(&hidden)?)
    }
}

/// Twice the size by repetition, then a convolution.
pub struct Upsample2D {
    conv: Conv2d,
}

impl Upsample2D {
    /// Reads the weights below `path`.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn new(path: &WeightPath<'_>, channels: i64) -> Result<Self> {
        Ok(Self {
            conv: Conv2d::same(&path.sub("conv"), channels, channels)?,
        })
    }

    /// `[rows, channels, height, width]` to twice that size, or to `size` (height, width) where an
    /// odd size was halved on the way down.
    ///
    /// # Errors
    /// Out of memory.
    pub fn forward(&self, input: &Tensor, size: Option<(i64, i64)>, rows: Rows<'_>) -> Result<Tensor> {
        let (_, _, height, width) = input.size4()?;
        let (height, width) = size.unwrap_or((height * 2, width * 2));
        let larger = input.f_upsample_nearest2d([height, width], None, None)?;
        self.conv.forward(&larger, rows)
    }
}

/// Half the size by a convolution of stride 2.
pub struct Downsample2D {
    conv: Conv2d,
    /// A VAE pads below and to the right only.
    pad_end: bool,
}

impl Downsample2D {
    /// Reads the weights below `path`; `padding` is the config's `downsample_padding`.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn new(path: &WeightPath<'_>, channels: i64, padding: i64) -> Result<Self> {
        let conv = Conv2d::new(&path.sub("conv"), channels, channels, 3, 2, padding)?;
        Ok(Self {
            conv,
            pad_end: padding == 0,
        })
    }

    /// `[rows, channels, height, width]` to half that size, rounded up.
    ///
    /// # Errors
    /// Out of memory.
    pub fn forward(&self, input: &Tensor, rows: Rows<'_>) -> Result<Tensor> {
        if self.pad_end {
            let padded = input.f_constant_pad_nd([0, 1, 0, 1])?;
            self.conv.forward(&padded, rows)
        } else {
            self.conv.forward(input, rows)
        }
    }
}
