//! A Triton Inference Server backend that serves Stable Diffusion from libtorch.

pub mod config;
pub mod engine;
pub mod error;
pub mod fault;
pub mod libtorch;
pub mod models;
pub mod picture;
pub mod pipeline;
pub mod request;
pub mod schedulers;
pub mod weights;
