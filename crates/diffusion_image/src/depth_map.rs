//! Depth maps of requests.

use diffusion_core::{Error, Result};

/// A depth map: one channel of 8 or 16 bits in any unit, lines from top to bottom without padding. Only the order of the
/// values and the ratios of their differences matter.
#[derive(Clone, PartialEq)]
pub struct DepthMap {
    width: u32,
    height: u32,
    bits: u8,
    values: Vec<f32>,
}

/// Prints the size only; pixels are private.
impl std::fmt::Debug for DepthMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DepthMap({}x{})", self.width, self.height)
    }
}

impl DepthMap {
    /// Creates a map of `width` times `height` pixels from `values`, one a pixel, stored with `bits` bits (8 or 16).
    ///
    /// # Errors
    /// Internal if a side is 0, `values` has another length, or `bits` is another number.
    pub fn new(width: u32, height: u32, bits: u8, values: Vec<f32>) -> Result<Self> {
        let expected = u64::from(width) * u64::from(height);
        let complete = expected > 0 && Some(expected) == u64::try_from(values.len()).ok();
        if !complete || !matches!(bits, 8 | 16) {
            return Err(Error::internal(format!(
                "{} values of {bits} bits are not a depth map of {width}x{height} pixels",
                values.len()
            )));
        }
        Ok(Self {
            width,
            height,
            bits,
            values,
        })
    }

    /// Returns the width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Returns the height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Returns the bits of a value in the file: 8 or 16.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Returns the values, `[height, width]`: the whole numbers of the file, 0 to 255 or 0 to 65535. A resized map has
    /// fractions, and values slightly beyond the range because bicubic filters overshoot.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn depth_map_of_wrong_length_is_an_error() {
        for (width, height, bits, values) in [(0, 3, 8, 0), (3, 0, 8, 0), (2, 2, 8, 3), (2, 2, 12, 4)] {
            let error = DepthMap::new(width, height, bits, vec![0.0; values]).unwrap_err();
            assert!(matches!(error, Error::Internal(_)), "{error:?}");
        }
        let map = DepthMap::new(2, 1, 16, vec![65_535.0, 3.0]).unwrap();
        assert_eq!((map.width(), map.height(), map.bits()), (2, 1, 16));
        assert_eq!(map.values(), [65_535.0, 3.0]);
    }
}
