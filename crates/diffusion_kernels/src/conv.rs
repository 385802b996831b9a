//! Convolutions of 3x3.

use crate::direct;
use crate::map::Shape;
use crate::simd::Level;
use crate::values::Values;
use crate::winograd;

/// The number of values of a 3x3 kernel.
pub const TAPS: usize = 9;

/// A convolution of 3x3 and padding 1.
#[derive(Clone, Copy, Debug)]
pub struct Conv3x3<'a> {
    /// The input.
    pub input: &'a [f32],
    /// The shape of the input.
    pub shape: Shape,
    /// Height and width to which the input is enlarged by repetition first; its own without enlargement.
    pub size: (usize, usize),
    /// 1 keeps the size, 2 halves it and rounds up.
    pub stride: usize,
    /// Whether the padding of 1 lies at the bottom and at the right only, as in a VAE's encoder.
    pub pad_end: bool,
    /// The weights, `[outputs, channels, 3, 3]`.
    pub weight: Values<'a>,
    /// The channels of the result.
    pub outputs: usize,
    /// Added to each position, `[outputs]` or `[batch, outputs]`.
    pub bias: Option<&'a [f32]>,
    /// Added to the result, of its shape.
    pub add: Option<&'a [f32]>,
}

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// As a product with the neighborhood of each position.
    Direct,
    /// Winograd's F(2x2, 3x3): 2.25 times fewer products.
    Winograd2,
    /// Winograd's F(4x4, 3x3): 4 times fewer products, and larger rounding errors.
    Winograd4,
}

impl Conv3x3<'_> {
    /// Returns the shape of the result.
    pub fn result_shape(&self) -> Shape {
        // With the padding at one end, the last line of an odd size is left out.
        let halved = |side: usize| if self.pad_end { side / 2 } else { side.div_ceil(2) };
        let side = |side: usize| if self.stride == 1 { side } else { halved(side) };
        Shape {
            batch: self.shape.batch,
            height: side(self.size.0),
            width: side(self.size.1),
            channels: self.outputs,
        }
    }

    /// Returns how the convolution is computed. Depends on the size and the channels, never on the batch.
    pub fn method(&self, level: Level) -> Method {
        let (height, width) = self.size;
        let whole = self.shape.channels.is_multiple_of(level.lanes()) && self.shape.channels > 0;
        if self.stride != 1 || self.pad_end || !whole || self.outputs < level.lanes() {
            Method::Direct
        } else {
            let products = |side: usize, of_tile: usize| height.div_ceil(side) * width.div_ceil(side) * of_tile;
            // The kernels of the larger tiles cost more to transform.
            let larger_pays = 4 * products(4, 36) <= 3 * products(2, 16);
            if larger_pays {
                Method::Winograd4
            } else {
                Method::Winograd2
            }
        }
    }

    /// Computes the convolution into `out`, of the shape of the result.
    ///
    /// # Panics
    /// If a slice has another length than its shape, or the stride is not 1 or 2.
    pub fn compute(&self, out: &mut [f32]) {
        let level = Level::best();
        self.compute_with(level, self.method(level), out);
    }

    /// Does what [`Conv3x3::compute`] does with an instruction set and a method.
    ///
    /// # Panics
    /// As [`Conv3x3::compute`], and for a method that cannot compute it.
    pub fn compute_with(&self, level: Level, method: Method, out: &mut [f32]) {
        let result = self.result_shape();
        assert!(matches!(self.stride, 1 | 2));
        assert_eq!(self.input.len(), self.shape.len());
        assert_eq!(self.weight.len(), self.outputs * self.shape.channels * TAPS);
        assert_eq!(out.len(), result.len());
        assert!(
            self.bias
                .is_none_or(|bias| bias.len() == self.outputs || bias.len() == self.outputs * result.batch)
        );
        assert!(self.add.is_none_or(|add| add.len() == out.len()));
        if out.is_empty() {
            return;
        }
        assert!(!self.input.is_empty());
        match method {
            Method::Direct => direct::compute(self, level, out),
            Method::Winograd2 => winograd::compute::<2, 4>(self, level, out),
            Method::Winograd4 => winograd::compute::<4, 6>(self, level, out),
        }
    }

    /// Returns the bias of a batch entry.
    pub(crate) fn bias_of(&self, entry: usize) -> Option<&[f32]> {
        let bias = self.bias?;
        let start = if bias.len() == self.outputs {
            0
        } else {
            entry * self.outputs
        };
        Some(&bias[start..start + self.outputs])
    }
}
