//! The layers that several networks share, one file each.

mod activations;
mod attention;
mod batch_split;
mod chunked;
mod conditioning;
mod conv;
mod embedding;
mod footprint;
mod group_norm;
mod layer_norm;
mod linear;
mod low_rank;
mod operands;
mod resnet;
mod transformer_2d;
mod weight;

pub use activations::silu;
pub use attention::{Attention, KeyValue, Mask, scaled_dot_product, self_attention};
pub use batch_split::BatchSplit;
pub use chunked::{ChunkSize, FeatureMap, convolve, convolve_lines};
pub use conditioning::{Conditioning, TimeShift, TimeShifts};
pub use conv::Conv2d;
pub use embedding::Embedding;
pub use footprint::{Footprint, unsigned};
pub use group_norm::{GroupNorm, GroupNormStats};
pub use layer_norm::LayerNorm;
pub use linear::Linear;
pub use low_rank::{AdaptedJobs, Delta, LayerDeltas, LowRank};
pub use resnet::{Downsample2D, ResnetBlock2D, ResnetConfig, Upsample2D};
pub use transformer_2d::{Transformer2DConfig, Transformer2DModel};
pub use weight::{Weight, free_upcast_buffers};
