//! The memory of activations, from shapes alone.
//!
//! A network's configuration says which feature maps it holds at once. The numbers here follow the layers of this crate
//! statement by statement; `tests/memory_estimate` compares them with the memory that the networks really take.

/// Counts the values that a network holds at once while its layers run one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    /// Whether the CPU kernels of this crate compute the layers.
    fast: bool,
    held: u64,
    peak: u64,
}

impl Footprint {
    /// Starts with nothing held. `fast` says whether the CPU kernels of this crate compute the layers.
    pub fn new(fast: bool) -> Self {
        Self { fast, held: 0, peak: 0 }
    }

    /// Returns the largest number of values that were held at once.
    pub fn peak(&self) -> u64 {
        self.peak
    }

    /// Adds a map that stays.
    pub fn hold(&mut self, values: u64) {
        self.moment(values);
        self.held = self.held.saturating_add(values);
    }

    /// Removes a map.
    pub fn release(&mut self, values: u64) {
        self.held = self.held.saturating_sub(values);
    }

    /// Counts values that are freed again, next to those that are held.
    pub fn moment(&mut self, values: u64) {
        self.peak = self.peak.max(self.held.saturating_add(values));
    }

    /// Counts a [`super::ResnetBlock2D`] over maps of `area` positions. The caller holds its input, and then its output.
    pub fn resnet(&mut self, inputs: u64, outputs: u64, area: u64) {
        let shortcut = if inputs == outputs { 0 } else { outputs };
        let channels = if self.fast {
            // The norm and the first convolution; the second norm; the shortcut and the result.
            (inputs + outputs).max(2 * outputs + shortcut)
        } else {
            // The norm before and after its activation, and a copy in oneDNN's layout; the same of the second, and the sum.
            (2 * inputs + outputs).max(3 * outputs + shortcut)
        };
        self.moment(channels.saturating_mul(area));
    }

    /// Counts a 3x3 convolution; `area` is that of its output.
    pub fn conv(&mut self, inputs: u64, outputs: u64, area: u64) {
        let channels = if self.fast { outputs } else { inputs + outputs };
        self.moment(channels.saturating_mul(area));
    }

    /// Counts an [`super::Upsample2D`]; `area` is that of its output.
    pub fn upsample(&mut self, channels: u64, area: u64) {
        // The result. Without the CPU kernels also the enlarged input, and oneDNN's copy of it.
        let maps = if self.fast { 1 } else { 3 };
        self.moment(maps * channels.saturating_mul(area));
    }

    /// Counts a [`super::Transformer2DModel`] over maps of `area` positions. The caller holds its input, and then its output.
    pub fn transformer(&mut self, channels: u64, area: u64) {
        // Without the input: the hidden state and its norm. With the CPU kernels, the feed-forward network adds 4 maps of
        // gated values and the result; the attention's queries, keys, values and result are fewer. With libtorch, the
        // feed-forward network adds 8 maps of values and gates, and 4 of their products.
        let maps = if self.fast { 2 + 5 } else { 2 + 12 };
        self.moment((maps * channels).saturating_mul(area));
    }

    /// Counts the attention of a VAE's middle block over maps of `area` positions.
    pub fn vae_attention(&mut self, channels: u64, area: u64) {
        // The norm, queries, keys, values and the result.
        let maps = if self.fast { 5 } else { 6 };
        self.moment((maps * channels).saturating_mul(area));
    }
}

/// Returns a size as an unsigned number; 0 for one that is negative, which no checked configuration has.
pub fn unsigned(size: i64) -> u64 {
    u64::try_from(size).unwrap_or(0)
}
