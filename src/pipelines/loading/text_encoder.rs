//! `tokenizer/` and `text_encoder/`, and those of the second text encoder.

use std::sync::Arc;

use super::model_folder::ModelFolder;
use crate::models::clip::{ClipTextConfig, ClipTextModel, ClipTokenizer};
use crate::pipelines::prompt_encoder_xl::TextEncoder;
use crate::weights::{ComponentId, LoadedWeights, SharedModel};
use diffusion_core::Result;

/// A text encoder of a folder that is being opened.
pub(super) struct OpenedTextEncoder {
    pub config: ClipTextConfig,
    tokenizer: ClipTokenizer,
    weights: ComponentId,
    /// Whether the pooled state is projected.
    projects: bool,
}

/// Opens the text encoder.
pub(super) fn open(folder: &mut ModelFolder<'_>) -> Result<OpenedTextEncoder> {
    open_as(folder, "tokenizer", "text_encoder", false)
}

/// Opens the second text encoder of Stable Diffusion XL; `None` for another family.
pub(super) fn open_second(folder: &mut ModelFolder<'_>) -> Result<Option<OpenedTextEncoder>> {
    let is_xl = folder.class.is_xl();
    is_xl
        .then(|| open_as(folder, "tokenizer_2", "text_encoder_2", true))
        .transpose()
}

fn open_as(
    folder: &mut ModelFolder<'_>,
    tokenizer: &str,
    component: &'static str,
    projects: bool,
) -> Result<OpenedTextEncoder> {
    folder
        .index
        .require(tokenizer, &["CLIPTokenizer", "CLIPTokenizerFast"])?;
    let class = if projects {
        "CLIPTextModelWithProjection"
    } else {
        "CLIPTextModel"
    };
    folder.index.require(component, &[class])?;
    let config: ClipTextConfig = folder.config(component)?;
    config.check(&format!("{component}/config.json"))?;
    let positions = usize::try_from(config.max_position_embeddings).unwrap_or(usize::MAX);
    let tokenizer = ClipTokenizer::open(&folder.component(tokenizer), positions, config.vocab_size)?;
    Ok(OpenedTextEncoder {
        config,
        tokenizer,
        weights: folder.transformers_weights(component)?,
        projects,
    })
}

impl OpenedTextEncoder {
    pub fn build(self, weights: &mut LoadedWeights, fast: bool) -> Result<TextEncoder> {
        let weights = weights.take(self.weights)?.fast(fast);
        let model = if self.projects {
            ClipTextModel::with_projection(self.config, weights)?
        } else {
            ClipTextModel::new(self.config, weights)?
        };
        Ok(TextEncoder {
            tokenizer: Arc::new(self.tokenizer),
            model: SharedModel::new(model),
        })
    }
}
