//! What several schedulers share: configuration keys, noise schedules, timestep spacing and update rules.

pub mod config;
pub mod dpm_solver_config;
pub mod dpm_solver_update;
pub mod lcm_common;
pub mod noise_schedule;
pub mod prediction;
pub mod sigma_run;
pub mod sigma_space;
pub mod sigmas;
pub mod solver_config;
pub mod solver_run;
pub mod spacing;
pub mod steps;
pub mod threshold;
