//! Embedding tables.

use tch::{Kind, Tensor};

use crate::weights::WeightPath;
use diffusion_core::Result;

/// A table of vectors.
pub struct Embedding {
    /// Perhaps in half precision; see [`WeightPath::stored`].
    weight: Tensor,
    kind: Kind,
}

impl Embedding {
    /// Reads `weight` of shape `[entries, size]`.
    pub fn new(path: &WeightPath<'_>, entries: i64, size: i64) -> Result<Self> {
        Ok(Self {
            weight: path.stored("weight", &[entries, size])?,
            kind: path.kind(),
        })
    }

    /// Looks up the vector of each index.
    ///
    /// # Shapes
    /// - `indices`: any shape, int64
    /// - returns `[.., size]`
    ///
    /// # Errors
    /// An index outside of the table.
    pub fn forward(&self, indices: &Tensor) -> Result<Tensor> {
        let vectors = Tensor::f_embedding(&self.weight, indices, -1, false, false)?;
        Ok(vectors.f_to_kind(self.kind)?)
    }
}
