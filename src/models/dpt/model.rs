//! The depth estimator of Stable Diffusion 2.
//!
//! Source: transformers `models/dpt/modeling_dpt.py` (`DPTForDepthEstimation` as a hybrid), after Ranftl et al., "Vision
//! Transformers for Dense Prediction" (2021). The order of views and products is that of the source: another order rounds
//! differently.

use tch::Tensor;

use super::bit::BitBackbone;
use super::config::DptConfig;
use super::neck::{DptHead, DptNeck};
use crate::models::layers::{BatchSplit, Conv2d, LayerNorm, Linear, Mask, scaled_dot_product};
use crate::weights::{Frozen, WeightPath, Weights};
use diffusion_core::{Error, Result};

/// `DPTViTHybridEmbeddings`: tokens from the backbone's last feature map.
struct Embeddings {
    backbone: BitBackbone,
    projection: Conv2d,
    cls_token: Tensor,
    position_embeddings: Tensor,
    hidden_size: i64,
}

impl Embeddings {
    fn new(path: &WeightPath<'_>, config: &DptConfig) -> Result<Self> {
        let size = config.hidden_size;
        let backbone = config.backbone();
        let [_, _, (_, channels)] = backbone.stages();
        let tokens = config.grid() * config.grid() + 1;
        Ok(Self {
            backbone: BitBackbone::new(&path.sub("backbone"), &backbone)?,
            projection: Conv2d::pointwise(&path.sub("projection"), channels, size)?,
            cls_token: path.tensor("cls_token", &[1, 1, size])?,
            position_embeddings: path.tensor("position_embeddings", &[1, tokens, size])?,
            hidden_size: size,
        })
    }

    /// Returns the feature maps of the backbone's first two stages, and tokens `[batch, 1 + grid², size]`.
    fn forward(&self, pixel_values: &Tensor) -> Result<([Tensor; 2], Tensor)> {
        let (batch, ..) = pixel_values.size4()?;
        let [first, second, third] = self.backbone.forward(pixel_values)?;
        let tokens = self.projection.forward(&third)?.f_flatten(2, -1)?.f_transpose(1, 2)?;
        let cls_tokens = self.cls_token.f_expand([batch, 1, self.hidden_size], false)?;
        let tokens = Tensor::f_cat(&[&cls_tokens, &tokens], 1)?;
        // transformers resizes the positions to the image's grid, which always has their size here.
        let tokens = tokens.f_add(&self.position_embeddings)?;
        Ok(([first, second], tokens))
    }
}

/// `DPTViTAttention`.
struct SelfAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    heads: i64,
}

impl SelfAttention {
    fn new(path: &WeightPath<'_>, config: &DptConfig) -> Result<Self> {
        let size = config.hidden_size;
        let projection = |name: &str| {
            let path = path.sub("attention").sub(name);
            Linear::with_bias(&path, size, size, config.qkv_bias)
        };
        Ok(Self {
            query: projection("query")?,
            key: projection("key")?,
            value: projection("value")?,
            output: Linear::new(&path.sub("output").sub("dense"), size, size)?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let (_, _, size) = input.size3()?;
        let query = self.query.forward(input)?;
        let key = self.key.forward(input)?;
        let value = self.value.forward(input)?;
        let scale = ((size / self.heads) as f64).powf(-0.5);
        let attended = scaled_dot_product(
            [&query, &key, &value],
            self.heads,
            Mask::None,
            Some(scale),
            BatchSplit::Joint,
        )?;
        self.output.forward(&attended)
    }
}

/// `DPTViTLayer`.
struct Layer {
    layernorm_before: LayerNorm,
    attention: SelfAttention,
    layernorm_after: LayerNorm,
    intermediate: Linear,
    output: Linear,
}

impl Layer {
    fn new(path: &WeightPath<'_>, config: &DptConfig) -> Result<Self> {
        let (size, inner) = (config.hidden_size, config.intermediate_size);
        let norm = |name: &str| LayerNorm::new(&path.sub(name), size, config.layer_norm_eps);
        Ok(Self {
            layernorm_before: norm("layernorm_before")?,
            attention: SelfAttention::new(&path.sub("attention"), config)?,
            layernorm_after: norm("layernorm_after")?,
            intermediate: Linear::new(&path.sub("intermediate").sub("dense"), size, inner)?,
            output: Linear::new(&path.sub("output").sub("dense"), inner, size)?,
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let attended = self.attention.forward(&self.layernorm_before.forward(input)?)?;
        let hidden = attended.f_add(input)?;
        let inner = self
            .intermediate
            .forward(&self.layernorm_after.forward(&hidden)?)?
            .f_gelu("none")?;
        Ok(self.output.forward(&inner)?.f_add(&hidden)?)
    }
}

/// transformers' `DPTForDepthEstimation`, as a hybrid.
pub struct DptForDepthEstimation {
    config: DptConfig,
    embeddings: Embeddings,
    layers: Vec<Layer>,
    neck: DptNeck,
    head: DptHead,
}

// SAFETY: the model holds tensors and numbers only. Its methods take `&self` and read the weights through functional
// operations of libtorch; none writes to a weight.
#[expect(unsafe_code, reason = "the promise is about this type and changes with it")]
unsafe impl Frozen for DptForDepthEstimation {}

impl DptForDepthEstimation {
    /// Builds the model from `weights`, all of which it must use.
    pub fn new(config: DptConfig, weights: Weights) -> Result<Self> {
        let weights = weights.ignoring(is_unneeded);
        let model = Self::read(config, &weights)?;
        weights.finish()?;
        Ok(model)
    }

    fn read(config: DptConfig, weights: &Weights) -> Result<Self> {
        let path = weights.root();
        let dpt = path.sub("dpt");
        let layers = dpt.sub("encoder").sub("layer");
        Ok(Self {
            embeddings: Embeddings::new(&dpt.sub("embeddings"), &config)?,
            layers: (0..config.num_hidden_layers)
                .map(|index| Layer::new(&layers.sub(index), &config))
                .collect::<Result<_>>()?,
            neck: DptNeck::new(&path.sub("neck"), &config)?,
            head: DptHead::new(&path.sub("head").sub("head"), config.fusion_hidden_size)?,
            config,
        })
    }

    /// Returns the configuration.
    pub fn config(&self) -> &DptConfig {
        &self.config
    }

    /// Estimates inverse depths of at least 0; nearer is larger, and there is no unit.
    ///
    /// On a GPU in half precision diffusers runs the estimator under `torch.autocast`, which computes the norms in
    /// float32. This model computes everything in its dtype.
    ///
    /// # Shapes
    /// - `pixel_values`: `[batch, 3, image_size, image_size]` from
    ///   [`DptImageProcessor`](crate::processors::DptImageProcessor), model dtype
    /// - returns `[batch, height, width]`, which are `image_size` if 32 divides it
    ///
    /// # Errors
    /// `InvalidArgument` for images of another size.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let (_, channels, height, width) = pixel_values.size4()?;
        let side = self.config.image_size;
        if (channels, height, width) != (self.config.num_channels, side, side) {
            return Err(Error::invalid_argument(format!(
                "expected an image of {side}x{side} pixels for the depth estimator, got {width}x{height}"
            )));
        }
        let ([first, second], mut hidden) = self.embeddings.forward(pixel_values)?;
        let mut features = vec![first, second];
        let wanted = self.config.backbone_out_indices.get(2..).unwrap_or(&[]);
        for (index, layer) in self.layers.iter().enumerate() {
            hidden = layer.forward(&hidden)?;
            if wanted.contains(&index) {
                features.push(hidden.shallow_clone());
            }
        }
        let fused = self.neck.forward(&features)?;
        self.head.forward(&fused)
    }
}

/// Whether no depth depends on the tensor of this name.
fn is_unneeded(name: &str) -> bool {
    // The norm behind the last layer: the neck uses the layer's output.
    name.starts_with("dpt.layernorm.")
        // The first fusion layer starts with its feature map; some checkpoints lack these.
        || name.starts_with("neck.fusion_stage.layers.0.residual_layer1.")
}
