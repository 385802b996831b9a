//! The region of an image around its mask.

use crate::Mask;
use diffusion_core::{Error, Result};

/// A rectangle in whole pixels; `right` and `bottom` are exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First column.
    pub left: u32,
    /// First line.
    pub top: u32,
    /// The column after the last one.
    pub right: u32,
    /// The line after the last one.
    pub bottom: u32,
}

impl Region {
    /// Returns the width in pixels; 0 if the columns are in the wrong order.
    pub fn width(&self) -> u32 {
        self.right.saturating_sub(self.left)
    }

    /// Returns the height in pixels; 0 if the lines are in the wrong order.
    pub fn height(&self) -> u32 {
        self.bottom.saturating_sub(self.top)
    }
}

/// Returns the smallest region with all pixels of `mask` above 0, with `pad` more pixels on each side, extended to the ratio
/// of `width` to `height` as far as the mask reaches.
///
/// Source: diffusers, `image_processor.py` (`get_crop_region`), with its arithmetic: 64-bit floats truncated towards 0, and
/// halves rounded down.
///
/// # Errors
/// InvalidArgument for a black mask, where diffusers finds no region either; Internal if `width` or `height` is 0.
pub fn crop_region(mask: &Mask, width: u32, height: u32, pad: u32) -> Result<Region> {
    if width == 0 || height == 0 {
        return Err(Error::internal(format!(
            "a region cannot have the ratio of {width}x{height} pixels"
        )));
    }
    let no_region = || Error::invalid_argument("the mask is empty: no white pixels to repaint");
    let margins = margins(mask);
    let (w, h, pad) = (i64::from(mask.width()), i64::from(mask.height()), i64::from(pad));
    let mut x = Extent {
        start: (margins.left - pad).max(0),
        end: (w - margins.right + pad).min(w),
    };
    let mut y = Extent {
        start: (margins.top - pad).max(0),
        end: (h - margins.bottom + pad).min(h),
    };
    if y.length() == 0 {
        return Err(no_region());
    }
    let ratio = f64::from(width) / f64::from(height);
    if x.length() as f64 / y.length() as f64 > ratio {
        let desired = x.length() as f64 / ratio;
        y.grow((desired - y.length() as f64) as i64, h);
    } else {
        let desired = y.length() as f64 * ratio;
        x.grow((desired - x.length() as f64) as i64, w);
    }
    let side = |n: i64| u32::try_from(n).map_err(|_| no_region());
    let region = Region {
        left: side(x.start)?,
        top: side(y.start)?,
        right: side(x.end)?,
        bottom: side(y.end)?,
    };
    if region.width() == 0 || region.height() == 0 {
        return Err(no_region());
    }
    Ok(region)
}

/// One axis of a region. For a black mask the end is before the start.
#[derive(Debug, Clone, Copy)]
struct Extent {
    start: i64,
    end: i64,
}

impl Extent {
    fn length(self) -> i64 {
        self.end - self.start
    }

    /// Extends the axis by `more` pixels, half on each side, and moves it to within `limit`.
    fn grow(&mut self, more: i64, limit: i64) {
        let half = more.div_euclid(2);
        self.start -= half;
        self.end += more - half;
        if self.end >= limit {
            self.start -= self.end - limit;
            self.end = limit;
        }
        if self.start < 0 {
            self.end -= self.start;
            self.start = 0;
        }
        self.end = self.end.min(limit);
    }
}

/// Lines and columns of zeros at each edge; for a black mask, all of them at both edges.
struct Margins {
    left: i64,
    right: i64,
    top: i64,
    bottom: i64,
}

fn margins(mask: &Mask) -> Margins {
    let width = mask.width() as usize;
    let lines = || mask.values().chunks_exact(width);
    let is_black = |line: &[u8]| line.iter().all(|value| *value == 0);
    // The first and the last non-zero pixel of each line.
    let left = lines().filter_map(|line| line.iter().position(|value| *value != 0));
    let right = lines().filter_map(|line| line.iter().rev().position(|value| *value != 0));
    let count = |n: usize| n as i64;
    Margins {
        left: count(left.min().unwrap_or(width)),
        right: count(right.min().unwrap_or(width)),
        top: count(lines().take_while(|line| is_black(line)).count()),
        bottom: count(lines().rev().take_while(|line| is_black(line)).count()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use proptest::prelude::*;

    /// A mask with a white rectangle.
    fn mask(width: u32, height: u32, white: Region) -> Mask {
        let inside = |x, y| (white.left..white.right).contains(&x) && (white.top..white.bottom).contains(&y);
        let values = (0..height)
            .flat_map(|y| (0..width).map(move |x| u8::from(inside(x, y)) * 255))
            .collect();
        Mask::new(width, height, values).unwrap()
    }

    fn region(left: u32, top: u32, right: u32, bottom: u32) -> Region {
        Region {
            left,
            top,
            right,
            bottom,
        }
    }

    #[test]
    fn flat_region_is_extended_to_a_square() {
        let mask = mask(512, 512, region(100, 200, 228, 232));
        let found = crop_region(&mask, 512, 512, 0).unwrap();
        assert_eq!(found, region(100, 152, 228, 280));
        let padded = crop_region(&mask, 512, 512, 8).unwrap();
        assert_eq!(padded, region(92, 144, 236, 288));
    }

    #[test]
    fn region_at_the_edge_is_moved_into_the_mask() {
        let mask = mask(100, 100, region(0, 90, 60, 100));
        assert_eq!(crop_region(&mask, 64, 64, 0).unwrap(), region(0, 40, 60, 100));
    }

    #[test]
    fn region_larger_than_the_mask_is_clipped() {
        let mask = mask(100, 20, region(0, 0, 90, 20));
        assert_eq!(crop_region(&mask, 64, 64, 0).unwrap(), region(0, 0, 90, 20));
    }

    #[test]
    fn black_mask_is_refused() {
        let mask = mask(64, 64, region(0, 0, 0, 0));
        for pad in [0, 1, 32] {
            let error = crop_region(&mask, 64, 64, pad).unwrap_err();
            assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
        }
        // As in diffusers, a padding of more than half the mask gives the middle.
        assert_eq!(crop_region(&mask, 64, 64, 40).unwrap(), region(24, 24, 40, 40));
    }

    proptest! {
        #[test]
        fn region_has_all_white_pixels_and_is_within_the_mask(
            (w, h) in (1u32..60, 1u32..60),
            (a, b, c, d) in (0u32..60, 0u32..60, 0u32..60, 0u32..60),
            (width, height) in (1u32..200, 1u32..200),
            pad in 0u32..70,
        ) {
            let (left, right) = (a.min(c) % w, (a.max(c) % w).max(a.min(c) % w) + 1);
            let (top, bottom) = (b.min(d) % h, (b.max(d) % h).max(b.min(d) % h) + 1);
            let found = crop_region(&mask(w, h, region(left, top, right, bottom)), width, height, pad).unwrap();
            prop_assert!(found.left <= left.saturating_sub(pad) && found.top <= top.saturating_sub(pad));
            prop_assert!(found.right >= (right + pad).min(w) && found.bottom >= (bottom + pad).min(h));
            prop_assert!(found.right <= w && found.bottom <= h);
        }
    }
}
