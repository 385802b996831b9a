//! Neck and head of a DPT: feature maps to a depth map.
//!
//! Source: transformers `models/dpt/modeling_dpt.py` (`DPTNeck`, `DPTDepthEstimationHead`).

use tch::Tensor;

use super::config::DptConfig;
use crate::models::layers::{Conv2d, Linear};
use crate::weights::WeightPath;
use diffusion_core::{Error, Result};

/// Index of the first feature map that is reassembled; the maps before it are the backbone's.
const FIRST_REASSEMBLED: usize = 2;

/// Doubles height and width with aligned corners.
fn doubled(input: &Tensor) -> Result<Tensor> {
    Ok(input.f_upsample_bilinear2d_vec(None::<i64>, true, [2.0, 2.0])?)
}

/// Makes a feature map of tokens: one readout of `DPTReassembleStage`, and a `DPTReassembleLayer`.
struct Reassemble {
    readout_project: Linear,
    projection: Conv2d,
    /// For a map that gets smaller.
    resize: Option<Conv2d>,
    grid: i64,
}

impl Reassemble {
    fn new(path: &WeightPath<'_>, index: usize, channels: i64, factor: f64, config: &DptConfig) -> Result<Self> {
        let size = config.hidden_size;
        let layer = path.sub("layers").sub(index);
        // Cut off, as Python's `int` does.
        let stride = (1.0 / factor) as i64;
        Ok(Self {
            readout_project: Linear::new(&path.sub("readout_projects").sub(index).sub(0), 2 * size, size)?,
            projection: Conv2d::pointwise(&layer.sub("projection"), size, channels)?,
            resize: (factor < 1.0)
                .then(|| Conv2d::new(&layer.sub("resize"), channels, channels, 3, stride, 1))
                .transpose()?,
            grid: config.grid(),
        })
    }

    /// Reassembles `[batch, 1 + grid², size]` to `[batch, channels, height, width]`.
    fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let (batch, count, size) = tokens.size3()?;
        let map_shape = [batch, size, self.grid, self.grid];
        let cls_token = tokens.f_select(1, 0)?;
        let patches = tokens
            .f_narrow(1, 1, count - 1)?
            .f_reshape([batch, self.grid, self.grid, size])?
            .f_permute([0, 3, 1, 2])?
            .f_contiguous()?
            .f_flatten(2, -1)?
            .f_permute([0, 2, 1])?;
        let readout = cls_token.f_unsqueeze(1)?.f_expand_as(&patches)?;
        let map = self
            .readout_project
            .forward(&Tensor::f_cat(&[&patches, &readout], -1)?)?
            .f_gelu("none")?
            .f_permute([0, 2, 1])?
            .f_reshape(map_shape)?;
        let map = self.projection.forward(&map)?;
        match &self.resize {
            Some(resize) => resize.forward(&map),
            None => Ok(map),
        }
    }
}

/// `DPTPreActResidualLayer`.
struct ResidualLayer {
    convolution1: Conv2d,
    convolution2: Conv2d,
}

impl ResidualLayer {
    fn new(path: &WeightPath<'_>, config: &DptConfig) -> Result<Self> {
        let channels = config.fusion_hidden_size;
        let bias = config.use_bias_in_fusion_residual.unwrap_or(true);
        let convolution = |name: &str| Conv2d::same_with_bias(&path.sub(name), channels, channels, bias);
        Ok(Self {
            convolution1: convolution("convolution1")?,
            convolution2: convolution("convolution2")?,
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let hidden = self.convolution1.forward(&input.f_relu()?)?;
        let hidden = self.convolution2.forward(&hidden.f_relu()?)?;
        Ok(hidden.f_add(input)?)
    }
}

/// `DPTFeatureFusionLayer`.
struct FusionLayer {
    /// `None` in the first layer, which starts with its feature map.
    residual_layer1: Option<ResidualLayer>,
    residual_layer2: ResidualLayer,
    projection: Conv2d,
}

impl FusionLayer {
    fn new(path: &WeightPath<'_>, first: bool, config: &DptConfig) -> Result<Self> {
        let channels = config.fusion_hidden_size;
        Ok(Self {
            residual_layer1: (!first)
                .then(|| ResidualLayer::new(&path.sub("residual_layer1"), config))
                .transpose()?,
            residual_layer2: ResidualLayer::new(&path.sub("residual_layer2"), config)?,
            projection: Conv2d::pointwise(&path.sub("projection"), channels, channels)?,
        })
    }

    /// Fuses one more feature map and doubles the size.
    fn forward(&self, fused: Option<&Tensor>, feature: &Tensor) -> Result<Tensor> {
        let hidden = match (&self.residual_layer1, fused) {
            (Some(layer), Some(fused)) => {
                let (_, _, height, width) = fused.size4()?;
                let feature = if feature.size() == fused.size() {
                    feature.shallow_clone()
                } else {
                    feature.f_upsample_bilinear2d([height, width], false, None, None)?
                };
                fused.f_add(&layer.forward(&feature)?)?
            }
            _ => feature.shallow_clone(),
        };
        let hidden = doubled(&self.residual_layer2.forward(&hidden)?)?;
        self.projection.forward(&hidden)
    }
}

/// `DPTNeck`: fuses four feature maps of different sizes.
pub struct DptNeck {
    reassemble_stage: Vec<Reassemble>,
    convs: Vec<Conv2d>,
    fusion_stage: Vec<FusionLayer>,
}

impl DptNeck {
    /// Reads the weights below `path`.
    pub fn new(path: &WeightPath<'_>, config: &DptConfig) -> Result<Self> {
        let sizes = &config.neck_hidden_sizes;
        let convs = path.sub("convs");
        let layers = path.sub("fusion_stage").sub("layers");
        let stage = path.sub("reassemble_stage");
        Ok(Self {
            reassemble_stage: sizes
                .iter()
                .zip(&config.reassemble_factors)
                .enumerate()
                .skip(FIRST_REASSEMBLED)
                .map(|(index, (&channels, &factor))| Reassemble::new(&stage, index, channels, factor, config))
                .collect::<Result<_>>()?,
            convs: sizes
                .iter()
                .enumerate()
                .map(|(index, &channels)| {
                    Conv2d::same_with_bias(&convs.sub(index), channels, config.fusion_hidden_size, false)
                })
                .collect::<Result<_>>()?,
            fusion_stage: (0..sizes.len())
                .map(|index| FusionLayer::new(&layers.sub(index), index == 0, config))
                .collect::<Result<_>>()?,
        })
    }

    /// Fuses the feature maps.
    ///
    /// # Shapes
    /// - `features`: two maps of the backbone, `[batch, neck_hidden_sizes[i], ..]`, and the tokens of two layers,
    ///   `[batch, 1 + grid², size]`
    /// - returns `[batch, fusion_hidden_size, height, width]`
    pub fn forward(&self, features: &[Tensor]) -> Result<Tensor> {
        let mut maps = Vec::with_capacity(features.len());
        for (index, (feature, conv)) in features.iter().zip(&self.convs).enumerate() {
            let reassemble = index
                .checked_sub(FIRST_REASSEMBLED)
                .and_then(|index| self.reassemble_stage.get(index));
            maps.push(match reassemble {
                Some(reassemble) => conv.forward(&reassemble.forward(feature)?)?,
                None => conv.forward(feature)?,
            });
        }
        // From the smallest to the largest.
        let mut fused = None;
        for (map, layer) in maps.iter().rev().zip(&self.fusion_stage) {
            fused = Some(layer.forward(fused.as_ref(), map)?);
        }
        fused.ok_or_else(|| Error::internal("DPT without feature maps"))
    }
}

/// `DPTDepthEstimationHead`; layers have the indices of its `nn.Sequential`.
pub struct DptHead {
    conv0: Conv2d,
    conv2: Conv2d,
    conv4: Conv2d,
}

impl DptHead {
    /// Channels before the last convolution.
    const CHANNELS: i64 = 32;

    /// Reads the weights below `path`; `features` is the number of channels of the fused map.
    pub fn new(path: &WeightPath<'_>, features: i64) -> Result<Self> {
        Ok(Self {
            conv0: Conv2d::same(&path.sub(0), features, features / 2)?,
            conv2: Conv2d::same(&path.sub(2), features / 2, Self::CHANNELS)?,
            conv4: Conv2d::pointwise(&path.sub(4), Self::CHANNELS, 1)?,
        })
    }

    /// Computes depths of at least 0.
    ///
    /// # Shapes
    /// - `fused`: `[batch, features, height, width]`
    /// - returns `[batch, 2·height, 2·width]`
    pub fn forward(&self, fused: &Tensor) -> Result<Tensor> {
        let hidden = doubled(&self.conv0.forward(fused)?)?;
        let hidden = self.conv2.forward(&hidden)?.f_relu()?;
        let depth = self.conv4.forward(&hidden)?.f_relu()?;
        Ok(depth.f_squeeze_dim(1)?)
    }
}
