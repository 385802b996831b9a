//! The adapters of one request.

use std::sync::Arc;

use super::embeddings::Embeddings;
use super::keys::AdaptedComponent;
use super::lora::Lora;
use crate::models::layers::LayerDeltas;

/// The adapters of one request: the LoRAs with their scales, as the layers of the UNet and of the text encoder take them, and
/// the words of the textual inversions.
#[derive(Debug, Default)]
pub struct JobAdapters {
    unet: LayerDeltas,
    text_encoder: LayerDeltas,
    /// How many LoRAs they are.
    count: usize,
    /// The same for equal adapters and scales of the text encoder.
    text_encoder_key: Vec<(u64, u64)>,
    embeddings: Arc<Embeddings>,
}

/// An adapter, its scale, and its scale in the text encoder.
pub type ScaledLora = (Arc<Lora>, f64, f64);

impl JobAdapters {
    /// Combines LoRAs: their products are added in this order.
    pub fn new(loras: &[ScaledLora]) -> Self {
        let mut adapters = Self {
            count: loras.len(),
            ..Self::default()
        };
        for (lora, scale, text_encoder_scale) in loras {
            lora.add_to(&mut adapters.unet, AdaptedComponent::Unet, *scale);
            lora.add_to(
                &mut adapters.text_encoder,
                AdaptedComponent::TextEncoder,
                *text_encoder_scale,
            );
            if lora.adapts(AdaptedComponent::TextEncoder) {
                adapters
                    .text_encoder_key
                    .push((lora.id(), text_encoder_scale.to_bits()));
            }
        }
        adapters
    }

    /// Lets the prompts have words of textual inversions.
    #[must_use]
    pub fn with_embeddings(mut self, embeddings: Arc<Embeddings>) -> Self {
        self.embeddings = embeddings;
        self
    }

    /// Returns the words of the textual inversions.
    pub fn embeddings(&self) -> &Embeddings {
        &self.embeddings
    }

    /// Returns how many LoRAs they are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns the deltas of the UNet's layers.
    pub fn unet(&self) -> Option<&LayerDeltas> {
        Some(&self.unet).filter(|deltas| !deltas.is_empty())
    }

    /// Returns the deltas of the text encoder's layers.
    pub fn text_encoder(&self) -> Option<&LayerDeltas> {
        Some(&self.text_encoder).filter(|deltas| !deltas.is_empty())
    }

    /// Returns what tells texts that these LoRAs encode from other texts. Textual inversions are told by the ids of a text.
    pub fn text_encoder_key(&self) -> &[(u64, u64)] {
        &self.text_encoder_key
    }
}
