//! The networks, one folder each; layers that several networks share are in [`layers`].
//!
//! | folder | class of diffusers or transformers | what it does |
//! |---|---|---|
//! | [`clip`] | `CLIPTextModel`, `CLIPVisionModel` | encodes prompts; the vision model feeds the safety checker |
//! | [`unet`] | `UNet2DConditionModel` | predicts the noise of latents |
//! | [`vae`] | `AutoencoderKL` | converts images to latents and back |
//! | [`dpt`] | `DPTForDepthEstimation` (BiT backbone) | estimates the depth of an image |
//! | [`safety_checker`] | `StableDiffusionSafetyChecker` | finds images that must not be shown |
//!
//! A model has one field for each name in a checkpoint. Models take and return tensors. They know nothing of requests,
//! schedulers or files other than through [`crate::weights`]. Sources are those of diffusers 0.36.0 and transformers 4.57.6.

pub mod clip;
pub mod dpt;
pub mod layers;
pub mod safety_checker;
pub mod unet;
pub mod vae;
