//! CLIP: the text encoder with its tokenizer, and the vision model.

mod added_tokens;
mod encoder;
mod text_model;
mod tokenizer;
mod vision_model;

pub use added_tokens::AddedTokens;
pub use encoder::Activation;
pub use text_model::{AddedVectors, ClipTextConfig, ClipTextModel, PenultimateStates};
pub use tokenizer::{ClipTokenizer, Tokens};
pub use vision_model::{ClipVisionConfig, ClipVisionModel};
