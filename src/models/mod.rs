//! The networks, one folder each, and the layers that several of them share.
//!
//! | folder | class of diffusers or transformers | task |
//! |---|---|---|
//! | [`clip`] | `CLIPTextModel`, `CLIPVisionModel` | encodes prompts; the vision model feeds the safety checker |
//! | [`unet`] | `UNet2DConditionModel` | predicts the noise of latents |
//! | [`vae`] | `AutoencoderKL`, `AutoencoderTiny` | converts images to latents and back |
//! | [`dpt`] | `DPTForDepthEstimation` (BiT backbone) | estimates the depth of an image |
//! | [`safety_checker`] | `StableDiffusionSafetyChecker` | flags images that must not be shown |
//! | [`layers`] | | linear layers, convolutions, norms, attention, resnets |
//!
//! A model has one field for each name in a checkpoint. Models take and return tensors; requests, schedulers and files
//! are known to them only through [`crate::weights`]. No network imports another one, except the safety checker, which
//! contains CLIP's vision model.
//!
//! Files named under "Source" are those of [diffusers 0.36.0](https://github.com/huggingface/diffusers/tree/v0.36.0/src/diffusers)
//! and [transformers 4.57.6](https://github.com/huggingface/transformers/tree/v4.57.6/src/transformers). The results equal
//! theirs to the byte because the operations, their order and the layouts in memory do.
//!
//! Every function that creates tensors can fail with `OutOfMemory`, and with `Internal` for tensors of other shapes than
//! documented. Every function that reads weights can fail with `NotFound` for a missing tensor and with `InvalidArgument`
//! for a tensor of another shape or one that the model does not use. "Errors" sections list the others.

pub mod clip;
mod config;
pub mod dpt;
pub mod layers;
pub mod safety_checker;
pub mod unet;
pub mod vae;
