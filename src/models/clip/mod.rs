//! CLIP: the text encoder with its tokenizer, and the vision model.

mod encoder;
mod text_model;
mod tokenizer;
mod vision_model;

pub use encoder::Activation;
pub use text_model::{ClipTextConfig, ClipTextModel};
pub use tokenizer::{ClipTokenizer, Tokens};
pub use vision_model::{ClipVisionConfig, ClipVisionModel};
