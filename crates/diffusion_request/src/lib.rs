//! Validation of image requests: the texts and images of one batch element become a [`GenerateRequest`] of plain values.
//! No Triton, no tensors.

mod decoder;
pub mod gen_args;
mod generate_request;
mod inputs;
mod loras;
mod metadata;
mod preview;
mod prompt_syntax;
mod validate;
mod xl_inputs;

pub use decoder::Decoder;
pub use gen_args::GenArgs;
pub use generate_request::GenerateRequest;
pub use inputs::{Depth2Img, Img2Img, Inpaint, PipelineInputs, Text2Img, Upscale};
pub use loras::{LoraRequest, MAX_LORAS};
pub use metadata::Metadata;
pub use preview::Preview;
pub use prompt_syntax::{PromptSyntax, Prompts};
pub use validate::{ElementInputs, ModelInfo, RequestValidator};
pub use xl_inputs::{TimeIds, XlInputs};
