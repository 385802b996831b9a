//! A depth map that a user sends: one channel of 8 or 16 bits.

use diffusion_core::{Error, Result};

/// How far away each pixel is, in units and with a sign that the one who made it chose: only the order and the ratios of
/// the differences mean something. Rows from top to bottom without padding.
#[derive(Clone, PartialEq)]
pub struct DepthMap {
    width: u32,
    height: u32,
    bits: u8,
    values: Vec<f32>,
}

/// The size alone: pixels are no reading matter, and a user's own.
impl std::fmt::Debug for DepthMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DepthMap({}x{})", self.width, self.height)
    }
}

impl DepthMap {
    /// A map of `width` times `height` pixels from `values`, one a pixel, that were stored with `bits` bits (8 or 16).
    ///
    /// # Errors
    /// Internal if a side is 0, `values` does not hold exactly that many pixels, or `bits` is another number.
    pub fn new(width: u32, height: u32, bits: u8, values: Vec<f32>) -> Result<Self> {
        let expected = u64::from(width) * u64::from(height);
        let complete = expected > 0 && Some(expected) == u64::try_from(values.len()).ok();
        if !complete || !matches!(bits, 8 | 16) {
            return Err(Error::internal(format!(
                "{} values of {bits} bits do not make a depth map of {width}x{height} pixels",
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

    /// Width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Bits of a value in the file: 8 or 16.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// The values, `[height, width]`, as they stand in the file: whole numbers of 0 to 255 or 0 to 65535. A resized map
    /// has fractions, and values a little beyond that range, since a bicubic filter overshoots.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_depth_map_has_all_its_values() {
        for (width, height, bits, values) in [(0, 3, 8, 0), (3, 0, 8, 0), (2, 2, 8, 3), (2, 2, 12, 4)] {
            let error = DepthMap::new(width, height, bits, vec![0.0; values]).unwrap_err();
            assert!(matches!(error, Error::Internal(_)), "{error:?}");
        }
        let map = DepthMap::new(2, 1, 16, vec![65_535.0, 3.0]).unwrap();
        assert_eq!((map.width(), map.height(), map.bits()), (2, 1, 16));
        assert_eq!(map.values(), [65_535.0, 3.0]);
    }
}
