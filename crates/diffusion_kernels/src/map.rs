//! Feature maps.

/// The shape of a map `[batch, height, width, channels]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Batch entries.
    pub batch: usize,
    /// Lines.
    pub height: usize,
    /// Positions of a line.
    pub width: usize,
    /// Values of a position.
    pub channels: usize,
}

impl Shape {
    /// Returns the number of values.
    pub fn len(&self) -> usize {
        self.positions() * self.channels
    }

    /// Returns whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of positions of all entries.
    pub fn positions(&self) -> usize {
        self.batch * self.height * self.width
    }
}

/// The positions of a map that is enlarged by repetition, or not.
#[derive(Clone, Copy)]
pub struct Nearest {
    from: usize,
    to: usize,
}

impl Nearest {
    /// From a side of `from` positions to one of `to`.
    pub fn new(from: usize, to: usize) -> Self {
        Self { from, to }
    }

    /// Returns the position that is repeated at `index`.
    ///
    /// Source: `nearest_neighbor_compute_source_index` in libtorch's `aten/src/ATen/native/UpSample.h`.
    pub fn source(self, index: usize) -> usize {
        if self.from == self.to {
            return index;
        }
        let scale = self.from as f32 / self.to as f32;
        ((index as f32 * scale) as usize).min(self.from - 1)
    }
}
