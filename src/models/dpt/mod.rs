//! `DPTForDepthEstimation` with its BiT backbone, the network that estimates depth.

mod bit;
mod bit_config;
mod config;
mod model;
mod neck;

pub use bit_config::BitConfig;
pub use config::DptConfig;
pub use model::DptForDepthEstimation;
