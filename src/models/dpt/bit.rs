//! The convolutional backbone of a DPT-Hybrid: a ResNet with standardized weights ("Big Transfer").
//!
//! Source: transformers `models/bit/modeling_bit.py` (`BitBackbone` of bottleneck layers), after Kolesnikov
//! et al., "Big Transfer (BiT): General Visual Representation Learning" (2020), and Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization" (2019).

use tch::Tensor;

use super::bit_config::BitConfig;
use crate::models::layers::GroupNorm;
use crate::weights::WeightPath;
use diffusion_core::Result;

/// Epsilon of the weights' standardization.
const WEIGHT_EPS: f64 = 1e-8;
/// Epsilon of the norms.
const NORM_EPS: f64 = 1e-5;

/// Pads height and width as TensorFlow's `SAME` does: to the size that windows of `kernel` at every `stride` cover, with
/// an odd line or column at the end.
fn pad_same(input: &Tensor, kernel: i64, stride: i64) -> Result<Tensor> {
    let (_, _, height, width) = input.size4()?;
    let missing = |side: i64| {
        let windows = (side + stride - 1) / stride;
        ((windows - 1) * stride + kernel - side).max(0)
    };
    let (lines, columns) = (missing(height), missing(width));
    if lines == 0 && columns == 0 {
        return Ok(input.shallow_clone());
    }
    Ok(input.f_constant_pad_nd([columns / 2, columns - columns / 2, lines / 2, lines - lines / 2])?)
}

/// A convolution without bias and with `SAME` padding whose weights have mean 0 and variance 1 in each output channel.
struct StandardizedConv2d {
    /// Standardized.
    weight: Tensor,
    kernel: i64,
    stride: i64,
}

impl StandardizedConv2d {
    fn new(path: &WeightPath<'_>, inputs: i64, outputs: i64, kernel: i64, stride: i64) -> Result<Self> {
        let shape = [outputs, inputs, kernel, kernel];
        let weight = path.tensor("weight", &shape)?;
        // transformers standardizes in every call, with the same result.
        let none = || None::<&Tensor>;
        let weight = weight
            .f_reshape([1, outputs, -1])?
            .f_batch_norm(none(), none(), none(), none(), true, 0.0, WEIGHT_EPS, true)?
            .f_reshape(shape)?;
        Ok(Self { weight, kernel, stride })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        // Where both sides get the same padding the convolution itself pads, as in `get_padding_value`.
        let (padded, padding) = if self.stride == 1 && self.kernel % 2 == 1 {
            (input.shallow_clone(), self.kernel / 2)
        } else {
            (pad_same(input, self.kernel, self.stride)?, 0)
        };
        Ok(padded.f_conv2d(
            &self.weight,
            None::<&Tensor>,
            [self.stride, self.stride],
            [padding, padding],
            [1, 1],
            1,
        )?)
    }
}

/// A convolution and the norm behind it.
struct NormedConv {
    conv: StandardizedConv2d,
    norm: GroupNorm,
}

impl NormedConv {
    /// Reads a convolution of `[inputs, outputs]` channels and a norm of `groups`, which have the names `[conv, norm]`.
    fn new(
        path: &WeightPath<'_>,
        [conv, norm]: [&str; 2],
        [inputs, outputs]: [i64; 2],
        kernel: i64,
        stride: i64,
        groups: i64,
    ) -> Result<Self> {
        Ok(Self {
            conv: StandardizedConv2d::new(&path.sub(conv), inputs, outputs, kernel, stride)?,
            norm: GroupNorm::new(&path.sub(norm), groups, outputs, NORM_EPS)?,
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        self.norm.forward(&self.conv.forward(input)?)
    }
}

/// `BitBottleneckLayer`: three convolutions and a residual.
struct BottleneckLayer {
    /// For a residual whose size or channels change.
    downsample: Option<NormedConv>,
    /// `conv1` and `norm1` to `conv3` and `norm3`.
    convs: [NormedConv; 3],
}

impl BottleneckLayer {
    /// Reads the weights below `path`. Only the `first` layer of a stage changes channels and size.
    fn new(path: &WeightPath<'_>, [inputs, outputs]: [i64; 2], stride: i64, first: bool, groups: i64) -> Result<Self> {
        let inner = BitConfig::bottleneck(outputs);
        let normed = |names, channels, kernel, stride| NormedConv::new(path, names, channels, kernel, stride, groups);
        Ok(Self {
            downsample: first
                .then(|| {
                    let names = ["downsample.conv", "downsample.norm"];
                    normed(names, [inputs, outputs], 1, stride)
                })
                .transpose()?,
            convs: [
                normed(["conv1", "norm1"], [inputs, inner], 1, 1)?,
                normed(["conv2", "norm2"], [inner, inner], 3, stride)?,
                normed(["conv3", "norm3"], [inner, outputs], 1, 1)?,
            ],
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let shortcut = match &self.downsample {
            Some(downsample) => downsample.forward(input)?,
            None => input.shallow_clone(),
        };
        let [first, second, third] = &self.convs;
        let hidden = first.forward(input)?.f_relu()?;
        let hidden = second.forward(&hidden)?.f_relu()?;
        let hidden = third.forward(&hidden)?;
        Ok(hidden.f_add(&shortcut)?.f_relu()?)
    }
}

/// transformers' `BitBackbone` with three stages.
pub struct BitBackbone {
    embedder: NormedConv,
    stages: [Vec<BottleneckLayer>; 3],
}

impl BitBackbone {
    /// Reads the weights below `path`.
    pub fn new(path: &WeightPath<'_>, config: &BitConfig) -> Result<Self> {
        let path = path.sub("bit");
        let groups = config.num_groups;
        let mut inputs = config.embedding_size;
        let mut stage = |index: usize, (depth, outputs): (usize, i64)| -> Result<_> {
            let path = path.sub("encoder").sub("stages").sub(index).sub("layers");
            (0..depth)
                .map(|layer| {
                    let first = layer == 0;
                    // All but the first stage halve height and width.
                    let stride = if first && index > 0 { 2 } else { 1 };
                    let channels = [inputs, outputs];
                    inputs = outputs;
                    BottleneckLayer::new(&path.sub(layer), channels, stride, first, groups)
                })
                .collect::<Result<Vec<_>>>()
        };
        let [first, second, third] = config.stages();
        Ok(Self {
            embedder: NormedConv::new(
                &path.sub("embedder"),
                ["convolution", "norm"],
                [config.num_channels, config.embedding_size],
                7,
                2,
                groups,
            )?,
            stages: [stage(0, first)?, stage(1, second)?, stage(2, third)?],
        })
    }

    /// Computes the feature map of each stage; f is 4, 8 and 16.
    ///
    /// # Shapes
    /// - `images`: `[batch, 3, height, width]`
    /// - returns `[batch, hidden_sizes[i], height/f, width/f]`
    pub fn forward(&self, images: &Tensor) -> Result<[Tensor; 3]> {
        let hidden = self.embedder.forward(images)?.f_relu()?;
        // Padding with zeros does not change a maximum: after the activation all values are at least 0.
        let hidden = pad_same(&hidden, 3, 2)?.f_max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], false)?;
        let run = |layers: &[BottleneckLayer], input: Tensor| {
            layers.iter().try_fold(input, |hidden, layer| layer.forward(&hidden))
        };
        let [first, second, third] = &self.stages;
        let first = run(first, hidden)?;
        let second = run(second, first.shallow_clone())?;
        let third = run(third, second.shallow_clone())?;
        Ok([first, second, third])
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn pad_same_odd_line_is_at_the_end() {
        let ones = |height: i64, width: i64| Tensor::ones([1, 1, height, width], tch::kind::FLOAT_CPU);
        // Windows of 3 at every second position: 2 windows over 4 columns reach 5, 3 windows over 6 lines reach 7.
        let padded = pad_same(&ones(6, 4), 3, 2).unwrap();
        assert_eq!(padded.size(), [1, 1, 7, 5]);
        let line: Vec<f32> = padded.get(0).get(0).get(3).try_into().unwrap();
        assert_eq!(line, [1.0, 1.0, 1.0, 1.0, 0.0]);
        let column: Vec<f32> = padded.get(0).get(0).select(1, 2).try_into().unwrap();
        assert_eq!(column, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
        // 3 windows over 5 columns: one of the two missing columns is on each side.
        let padded = pad_same(&ones(1, 5), 3, 2).unwrap();
        let line: Vec<f32> = padded.get(0).get(0).get(1).try_into().unwrap();
        assert_eq!(line, [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
        assert_eq!(pad_same(&ones(6, 7), 1, 2).unwrap().size(), [1, 1, 6, 7]);
    }
}
