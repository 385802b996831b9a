//! The UNet: predicts the noise (or velocity) in latents at a timestep, given text embeddings.
//!
//! Source: diffusers `models/unets/unet_2d_condition.py`.

use tch::{Kind, Tensor};

use super::blocks::{BlockCall, BlockConfig, DownBlock, MidBlock, UpBlock};
use super::config::{BlockType, UNet2DConfig};
use super::embeddings::{AddedEmbedding, TimestepEmbedding, Timesteps};
use crate::models::layers::{
    BatchSplit, ChunkSize, Conditioning, Conv2d, Embedding, GroupNorm, KeyValue, ResnetBlock2D, TimeShifts,
    Transformer2DModel, silu,
};
use crate::weights::{Frozen, LayerShapes, Weights};
use diffusion_core::{Error, Result};

/// diffusers' `UNet2DConditionModel`, as far as Stable Diffusion 1, 2 and XL use it.
pub struct UNet2DConditionModel {
    config: UNet2DConfig,
    kind: Kind,
    conv_in: Conv2d,
    time_proj: Timesteps,
    time_embedding: TimestepEmbedding,
    class_embedding: Option<Embedding>,
    add_embedding: Option<AddedEmbedding>,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    layers: LayerShapes,
}

/// What the time embedding of a call is computed from.
pub struct TimeInput<'a> {
    /// `[batch]`, integral or floating.
    pub timesteps: &'a Tensor,
    /// `[batch]` int64, for models with `num_class_embeds` (the upscaler's noise level).
    pub class_labels: Option<&'a Tensor>,
    /// `[batch, time_cond_proj_dim]` in the model's dtype, for models with `time_cond_proj_dim`: the
    /// [`guidance_scale_embedding`](super::guidance_scale_embedding) of each entry.
    pub timestep_cond: Option<&'a Tensor>,
    /// For models with `addition_embed_type` `text_time`.
    pub added: Option<&'a AddedCondition>,
}

/// What Stable Diffusion XL adds to the time embedding (diffusers' `added_cond_kwargs`).
#[derive(Debug)]
pub struct AddedCondition {
    /// The pooled text of each entry, `[batch, size]` in the model's dtype.
    pub text_embeds: Tensor,
    /// The numbers of each entry, `[batch, count]` in any dtype: sizes and a position in pixels, or a score.
    pub time_ids: Tensor,
}

impl AddedCondition {
    /// Returns a value with the same tensors.
    pub fn shallow_clone(&self) -> Self {
        Self {
            text_embeds: self.text_embeds.shallow_clone(),
            time_ids: self.time_ids.shallow_clone(),
        }
    }
}

/// The inputs of one call.
pub struct UNetInput<'a> {
    /// Latents and further channels, `[batch, in_channels, height, width]`.
    pub sample: &'a Tensor,
    /// The result of [`UNet2DConditionModel::time_shifts`] or [`UNet2DConditionModel::time_biases`].
    pub time_shifts: &'a TimeShifts,
    /// The result of [`UNet2DConditionModel::project_text`].
    pub text: &'a [KeyValue],
}

// SAFETY: the model holds tensors and numbers only. Its methods take `&self` and read the weights through functional
// operations of libtorch; none writes to a weight.
#[expect(unsafe_code, reason = "the promise is about this type and changes with it")]
unsafe impl Frozen for UNet2DConditionModel {}

impl UNet2DConditionModel {
    /// Builds the model from `weights`, all of which it must use.
    pub fn new(config: UNet2DConfig, weights: Weights) -> Result<Self> {
        let mut model = Self::read(config, &weights)?;
        model.layers = weights.layers();
        weights.finish()?;
        Ok(model)
    }

    fn read(config: UNet2DConfig, weights: &Weights) -> Result<Self> {
        let path = weights.root();
        let channels = &config.block_out_channels;
        let (first, last) = config.ends();
        let temb = first * 4;
        let blocks = channels.len();
        let block = |index: usize, inputs: i64| BlockConfig {
            inputs,
            outputs: channels[index],
            temb,
            layers: config.layers_per_block,
            transformer_layers: config.transformer_layers_per_block.at(index),
            cross_attention: match config.down_block_types[index] {
                BlockType::CrossAttnDownBlock2D => true,
                BlockType::DownBlock2D | BlockType::CrossAttnUpBlock2D | BlockType::UpBlock2D => false,
            },
            heads: config.attention_head_dim.at(index),
            only_cross_attention: config.only_cross_attention.at(index),
            resample: index + 1 < blocks,
            unet: &config,
        };

        let mut down_blocks = Vec::with_capacity(blocks);
        let mut inputs = first;
        for (index, &outputs) in channels.iter().enumerate() {
            let config = block(index, inputs);
            down_blocks.push(DownBlock::new(&path.sub("down_blocks").sub(index), &config)?);
            inputs = outputs;
        }

        let mid = BlockConfig {
            cross_attention: true,
            only_cross_attention: config.mid_block_only_cross_attention(),
            layers: 1,
            resample: false,
            ..block(blocks - 1, last)
        };
        let mid_block = MidBlock::new(&path.sub("mid_block"), &mid)?;

        // Up block i mirrors down block n-1-i. Its skip connections have the channels of that block; the last one has
        // the channels of the next block further up.
        let mut up_blocks = Vec::with_capacity(blocks);
        let mut previous = last;
        for index in 0..blocks {
            let mirrored = blocks - 1 - index;
            let skip = channels[mirrored.saturating_sub(1)];
            let config = BlockConfig {
                cross_attention: config.up_block_types[index] == BlockType::CrossAttnUpBlock2D,
                layers: config.layers_per_block + 1,
                resample: index + 1 < blocks,
                ..block(mirrored, skip)
            };
            up_blocks.push(UpBlock::new(&path.sub("up_blocks").sub(index), &config, previous)?);
            previous = channels[mirrored];
        }

        Ok(Self {
            kind: weights.kind(),
            conv_in: Conv2d::same(&path.sub("conv_in"), config.in_channels, first)?,
            time_proj: Timesteps {
                channels: first,
                flip_sin_to_cos: config.flip_sin_to_cos,
                freq_shift: config.freq_shift,
            },
            time_embedding: TimestepEmbedding::new(
                &path.sub("time_embedding"),
                first,
                temb,
                config.time_cond_proj_dim,
            )?,
            class_embedding: config
                .num_class_embeds
                .map(|classes| Embedding::new(&path.sub("class_embedding"), classes, temb))
                .transpose()?,
            add_embedding: config
                .added_sizes()
                .map(|sizes| AddedEmbedding::new(&path.sub("add_embedding"), sizes, temb, &config))
                .transpose()?,
            down_blocks,
            mid_block,
            up_blocks,
            conv_norm_out: GroupNorm::new(
                &path.sub("conv_norm_out"),
                config.norm_num_groups,
                first,
                config.norm_eps,
            )?,
            conv_out: Conv2d::same(&path.sub("conv_out"), first, config.out_channels)?,
            layers: LayerShapes::new(),
            config,
        })
    }

    /// Returns the configuration.
    pub fn config(&self) -> &UNet2DConfig {
        &self.config
    }

    /// Returns the layers that adapters can change.
    pub fn layers(&self) -> &LayerShapes {
        &self.layers
    }

    /// Returns the dtype of the inputs and the outputs.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Predicts the noise, or what else the model was trained to predict.
    ///
    /// With `chunk_size` the 3x3 convolutions are computed in chunks, which needs less memory.
    ///
    /// # Shapes
    /// - `input`: see [`UNetInput`]
    /// - returns `[batch, out_channels, height, width]`
    ///
    /// # Errors
    /// `Internal` for too few time shifts or text projections.
    pub fn forward(
        &self,
        input: &UNetInput<'_>,
        split: BatchSplit<'_>,
        chunk_size: Option<ChunkSize>,
    ) -> Result<Tensor> {
        Ok(self.forward_keeping(input, split, chunk_size, false)?.0)
    }

    /// Does what [`UNet2DConditionModel::forward`] does, and with `keep` also returns the deep feature: the input of the
    /// last layer of the last up block, without the skip connection.
    ///
    /// Source: Ma et al., "DeepCache: Accelerating Diffusion Models for Free" (2023), and `DeepCacheSDHelper` of
    /// [DeepCache](https://github.com/horseee/DeepCache) with `cache_branch_id=0`.
    ///
    /// # Shapes
    /// - the deep feature: `[batch, channels, height, width]`, with the channels of the last layer and the sides of the
    ///   sample
    ///
    /// # Errors
    /// Those of [`UNet2DConditionModel::forward`].
    pub fn forward_keeping(
        &self,
        input: &UNetInput<'_>,
        split: BatchSplit<'_>,
        chunk_size: Option<ChunkSize>,
        keep: bool,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let call = BlockCall { split, chunk_size };
        let mut conditioning = Conditioning::new(input.time_shifts, input.text);
        let conditioning = &mut conditioning;
        let mut sample = self.conv_in.forward_split(input.sample, split, chunk_size)?;
        let mut skips = vec![sample.shallow_clone()];
        for block in &self.down_blocks {
            sample = block.forward(&sample, call, conditioning, &mut skips)?;
        }
        sample = self.mid_block.forward(&sample, call, conditioning)?;
        let (last, earlier) = self.split_up_blocks()?;
        for block in earlier {
            sample = block.forward(sample, call, conditioning, &mut skips)?;
        }
        sample = last.forward_before_last(sample, call, conditioning, &mut skips)?;
        let deep_feature = keep.then(|| sample.shallow_clone());
        sample = last.forward_last(sample, call, conditioning, &mut skips)?;
        Ok((self.output(&sample, call)?, deep_feature))
    }

    /// Computes the first convolution, the last layer of the last up block and the output alone, with the deep feature that
    /// an earlier call has kept ([`UNet2DConditionModel::forward_keeping`]).
    ///
    /// # Shapes
    /// - `input`: see [`UNetInput`], but with the result of [`TimeShifts::into_last`] or
    ///   [`UNet2DConditionModel::last_time_shift`], and of [`UNet2DConditionModel::last_text`]
    /// - `deep_feature`: `[batch, channels, height, width]`
    /// - returns `[batch, out_channels, height, width]`
    ///
    /// # Errors
    /// Those of [`UNet2DConditionModel::forward`].
    pub fn forward_cached(
        &self,
        input: &UNetInput<'_>,
        deep_feature: Tensor,
        split: BatchSplit<'_>,
        chunk_size: Option<ChunkSize>,
    ) -> Result<Tensor> {
        let call = BlockCall { split, chunk_size };
        let mut conditioning = Conditioning::new(input.time_shifts, input.text);
        let mut skips = vec![self.conv_in.forward_split(input.sample, split, chunk_size)?];
        let (last, _) = self.split_up_blocks()?;
        let sample = last.forward_last(deep_feature, call, &mut conditioning, &mut skips)?;
        self.output(&sample, call)
    }

    /// Returns the projected text of the last layer: the end of the result of [`UNet2DConditionModel::project_text`].
    pub fn last_text<'a>(&self, text: &'a [KeyValue]) -> &'a [KeyValue] {
        let attention = self.up_blocks.last().and_then(|block| block.layers().1.last());
        let count = attention.map_or(0, Transformer2DModel::num_text_attentions);
        text.get(text.len().saturating_sub(count)..).unwrap_or_default()
    }

    fn split_up_blocks(&self) -> Result<(&UpBlock, &[UpBlock])> {
        let blocks = self.up_blocks.split_last();
        blocks.ok_or_else(|| Error::internal("a UNet without up blocks"))
    }

    /// Computes the prediction from the result of the last up block.
    fn output(&self, sample: &Tensor, call: BlockCall<'_>) -> Result<Tensor> {
        let sample = self.conv_norm_out.forward_silu(sample, call.split)?;
        // Schedulers draw and compute in the order of the channels.
        Ok(self
            .conv_out
            .forward_split(&sample, call.split, call.chunk_size)?
            .f_contiguous()?)
    }

    /// Projects the text for each attention to it. The result is the same at every step.
    ///
    /// # Shapes
    /// - `encoder_hidden_states`: text embeddings, `[batch, tokens, cross_attention_dim]`
    /// - returns as many as there are attentions to the text, `[batch, tokens, channels]` each
    pub fn project_text(&self, encoder_hidden_states: &Tensor, split: BatchSplit<'_>) -> Result<Vec<KeyValue>> {
        let down = self.down_blocks.iter().flat_map(|block| block.layers().1);
        let up = self.up_blocks.iter().flat_map(|block| block.layers().1);
        let mut projected = Vec::new();
        for transformer in down.chain(self.mid_block.attentions()).chain(up) {
            projected.extend(transformer.project_text(encoder_hidden_states, split)?);
        }
        Ok(projected)
    }

    /// Projects the time embedding for each resnet: [`TimeShifts::Added`].
    ///
    /// # Errors
    /// `Internal` for class labels or a timestep condition that are missing or unexpected.
    pub fn time_shifts(&self, input: &TimeInput<'_>, split: BatchSplit<'_>) -> Result<TimeShifts> {
        let activated = silu(&self.time_embedding(input, split)?, split)?;
        let shifts = self.resnets().map(|resnet| resnet.time_shift(&activated, split));
        shifts.collect::<Result<_>>().map(TimeShifts::Added)
    }

    /// Projects the time embedding for the last resnet alone: [`TimeShifts::Added`].
    ///
    /// # Errors
    /// Those of [`UNet2DConditionModel::time_shifts`].
    pub fn last_time_shift(&self, input: &TimeInput<'_>, split: BatchSplit<'_>) -> Result<TimeShifts> {
        let activated = silu(&self.time_embedding(input, split)?, split)?;
        let last = self.up_blocks.last().and_then(|block| block.layers().0.last());
        let shift = last.map(|resnet| resnet.time_shift(&activated, split));
        Ok(TimeShifts::Added(shift.transpose()?.into_iter().collect()))
    }

    /// Projects the time embedding for each resnet and adds the bias of its first convolution. As many as there are
    /// resnets, `[batch, channels]` each, for [`TimeShifts::Biases`].
    ///
    /// # Errors
    /// Those of [`UNet2DConditionModel::time_shifts`].
    pub fn time_biases(&self, input: &TimeInput<'_>, split: BatchSplit<'_>) -> Result<Vec<Tensor>> {
        let activated = silu(&self.time_embedding(input, split)?, split)?;
        self.resnets()
            .map(|resnet| resnet.time_bias(&activated, split))
            .collect()
    }

    /// The resnets in the order of [`UNet2DConditionModel::forward`].
    fn resnets(&self) -> impl Iterator<Item = &ResnetBlock2D> {
        let down = self.down_blocks.iter().flat_map(|block| block.layers().0);
        let up = self.up_blocks.iter().flat_map(|block| block.layers().0);
        down.chain(self.mid_block.resnets()).chain(up)
    }

    fn time_embedding(&self, input: &TimeInput<'_>, split: BatchSplit<'_>) -> Result<Tensor> {
        let sinusoids = self.time_proj.forward(input.timesteps, split)?.f_to_kind(self.kind)?;
        let temb = self.time_embedding.forward(&sinusoids, input.timestep_cond, split)?;
        let temb = match (&self.class_embedding, input.class_labels) {
            (Some(classes), Some(labels)) => temb.f_add(&classes.forward(labels)?)?,
            (None, None) => temb,
            (Some(_), None) => return Err(Error::internal("missing class labels of a UNet call")),
            (None, Some(_)) => return Err(Error::internal("unexpected class labels of a UNet call")),
        };
        match (&self.add_embedding, input.added) {
            (Some(embedding), Some(added)) => {
                Ok(temb.f_add(&embedding.forward(&added.text_embeds, &added.time_ids, split)?)?)
            }
            (None, None) => Ok(temb),
            (Some(_), None) => Err(Error::internal("missing added condition of a UNet call")),
            (None, Some(_)) => Err(Error::internal("unexpected added condition of a UNet call")),
        }
    }
}
