//! `tokenizer/` and `text_encoder/`.

use std::sync::Arc;

use super::model_folder::ModelFolder;
use crate::models::clip::{ClipTextConfig, ClipTextModel, ClipTokenizer};
use crate::weights::{ComponentId, LoadedWeights, SharedModel};
use diffusion_core::Result;

pub(super) struct TextEncoder {
    pub config: ClipTextConfig,
    tokenizer: ClipTokenizer,
    weights: ComponentId,
}

pub(super) fn open(folder: &mut ModelFolder<'_>) -> Result<TextEncoder> {
    folder
        .index
        .require("tokenizer", &["CLIPTokenizer", "CLIPTokenizerFast"])?;
    folder.index.require("text_encoder", &["CLIPTextModel"])?;
    let config: ClipTextConfig = folder.config("text_encoder")?;
    config.check()?;
    let positions = usize::try_from(config.max_position_embeddings).unwrap_or(usize::MAX);
    let tokenizer = ClipTokenizer::open(&folder.component("tokenizer"), positions, config.vocab_size)?;
    Ok(TextEncoder {
        config,
        tokenizer,
        weights: folder.transformers_weights("text_encoder")?,
    })
}

impl TextEncoder {
    pub fn build(
        self,
        weights: &mut LoadedWeights,
        fast: bool,
    ) -> Result<(Arc<ClipTokenizer>, SharedModel<ClipTextModel>)> {
        let model = ClipTextModel::new(self.config, weights.take(self.weights)?.fast(fast))?;
        Ok((Arc::new(self.tokenizer), SharedModel::new(model)))
    }
}
