//! The depth estimator of Stable Diffusion 2: from an image to how near everything in it is.
//!
//! Source: transformers `models/dpt/modeling_dpt.py` (`DPTForDepthEstimation` as a hybrid), after
//! Ranftl et al., "Vision Transformers for Dense Prediction" (2021). The order of views and products
//! is theirs: another order rounds differently.

use tch::Tensor;

use super::bit::BitBackbone;
use super::config::DptConfig;
use super::neck::{DptHead, DptNeck};
use crate::models::layers::attention::scaled_dot_product_attention;
use crate::models::layers::{Conv2d, LayerNorm, Linear, Rows};
use crate::weights::{Frozen, WeightPath, Weights};
use diffusion_core::{Error, Result};

/// `DPTViTHybridEmbeddings`: the backbone's last feature map as tokens.
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

    /// The feature maps of the backbone's first two stages, and tokens `[rows, 1 + grid², size]`.
    fn forward(&self, pixel_values: &Tensor) -> Result<([Tensor; 2], Tensor)> {
        let (rows, ..) = pixel_values.size4()?;
        let [first, second, third] = self.backbone.forward(pixel_values)?;
        let tokens = self
            .projection
            .forward(&third, Rows::WHOLE)?
            .f_flatten(2, -1)?
            .f_transpose(1, 2)?;
        let cls_tokens = self.cls_token.f_expand([rows, 1, self.hidden_size], false)?;
        let tokens = Tensor::f_cat(&[&cls_tokens, &tokens], 1)?;
        // transformers resizes the positions to the image's grid, which is theirs in any case.
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
            if config.qkv_bias {
                Linear::new(&path, size, size)
            } else {
                Linear::without_bias(&path, size, size)
            }
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
        let (rows, tokens, size) = input.size3()?;
        let head = size / self.heads;
        let split = |projection: &Linear| -> Result<Tensor> {
            Ok(projection
                .forward(input, Rows::WHOLE)?
                .f_view([rows, -1, self.heads, head])?
                .f_transpose(1, 2)?)
        };
        let (key, value, query) = (split(&self.key)?, split(&self.value)?, split(&self.query)?);
        let scale = (head as f64).powf(-0.5);
        let attended = scaled_dot_product_attention(&query, &key, &value, None, Some(scale))?
            .f_transpose(1, 2)?
            .f_contiguous()?
            .f_reshape([rows, tokens, size])?;
        self.output.forward(&attended, Rows::WHOLE)
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
            .forward(&self.layernorm_after.forward(&hidden)?, Rows::WHOLE)?
            .f_gelu("none")?;
        Ok(self.output.forward(&inner, Rows::WHOLE)?.f_add(&hidden)?)
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
    /// Builds the model that `config` describes from `weights`, all of which it must use.
    ///
    /// # Errors
    /// A tensor that is missing, left over or of another shape.
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

    /// The configuration that the model was built from.
    pub fn config(&self) -> &DptConfig {
        &self.config
    }

    /// Images `[rows, 3, image_size, image_size]` in the model's dtype, as
    /// [`crate::pipelines::DptImageProcessor`] makes them, to inverse depths `[rows, height, width]`: at least 0,
    /// nearer is more, in no unit. With an `image_size` that 32 divides, height and width are that.
    ///
    /// On a GPU in half precision diffusers runs the estimator under `torch.autocast`, which
    /// computes the norms in float32; here all is computed in the model's dtype.
    ///
    /// # Errors
    /// `InvalidArgument` for an image of another size; out of memory.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let (_, channels, height, width) = pixel_values.size4()?;
        let side = self.config.image_size;
        if (channels, height, width) != (self.config.num_channels, side, side) {
            return Err(Error::invalid_argument(format!(
                "the depth estimator takes images of {side}x{side} pixels, and the feature extractor made one of {width}x{height}"
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

/// Tensors of `DPTForDepthEstimation` that no depth depends on.
fn is_unneeded(name: &str) -> bool {
    // The norm behind the last layer: the neck takes what lies before it.
    name.starts_with("dpt.layernorm.")
        // The first fusion has nothing to fuse with; some checkpoints leave these out.
        || name.starts_with("neck.fusion_stage.layers.0.residual_layer1.")
}
