//! The Stable Diffusion pipelines of diffusers, one file each.

pub mod depth2img;
pub mod img2img;
pub mod inpaint;
pub mod text2img;
pub mod upscale;
