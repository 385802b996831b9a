//! Code that several scheduler classes share. Nothing here knows a class.
//!
//! A run of a sampler is a [`scheduler::Run`] of three parts: its position (`step_cursor`), how its family of classes
//! measures noise (`alpha_schedule`, `sigma_schedule` or `lambda_schedule`), and the update rule of its class.

pub mod alpha_schedule;
pub mod betas;
pub mod config;
pub mod dpm_solver_config;
pub mod dpm_solver_update;
pub mod lambda_schedule;
pub mod lambda_schedule_config;
pub mod lcm_common;
pub mod model_outputs;
pub mod noise_schedule;
pub mod prediction;
pub mod scheduler;
pub mod sigma_schedule;
pub mod sigma_schedule_config;
pub mod sigmas;
pub mod spacing;
pub mod step_cursor;
pub mod thresholding;
