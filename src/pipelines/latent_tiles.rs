//! Overlapping UNet tiles for images that are too large for the memory of one UNet call.
//!
//! Each step predicts one tile after the other, blends the predictions where tiles overlap, and makes a scheduler step with
//! the whole (Bar-Tal et al., "MultiDiffusion", 2023). All tiles of an image have one size and can share a UNet call with
//! those of other requests. The result differs from that of one large call: the UNet's norms and its attention see one tile
//! only.

use tch::{Kind, Tensor};

use crate::torch::Stream;
use diffusion_core::{Error, Result};

/// The number of tiles and chunks of an enlarged image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileCounts {
    /// Overlapping tiles of the UNet.
    pub unet: usize,
    /// Chunks of the VAE decoder's last layers.
    pub vae: usize,
}

/// Shortest side of a tile, in latents.
const MIN_SIDE: i64 = 32;
/// Neighboring tiles share the side of a tile divided by this.
const OVERLAP: i64 = 4;
/// Sides are multiples of this: the UNet halves them three times.
const MULTIPLE: i64 = 8;

/// The tiles along one side.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TileAxis {
    starts: Vec<i64>,
    length: i64,
    whole: i64,
}

impl TileAxis {
    /// Spreads tiles of at most `length` evenly over `whole`.
    fn new(whole: i64, length: i64) -> Self {
        if length >= whole {
            return Self {
                starts: vec![0],
                length: whole,
                whole,
            };
        }
        let overlap = length / OVERLAP;
        let count = (whole - overlap + (length - overlap) - 1) / (length - overlap);
        let starts = (0..count)
            .map(|index| (whole - length) * index / (count - 1).max(1))
            .collect();
        Self { starts, length, whole }
    }

    /// Returns the weight of each latent of the tile at `start`: nearly 0 at an inner edge, where the prediction lacks its
    /// surroundings, then rising to 1.
    fn window(&self, start: i64) -> Vec<f32> {
        let length = self.length;
        let ramp = (length / OVERLAP).max(1);
        let margin = ramp / OVERLAP;
        let rise = |distance: i64| {
            let share = (distance - margin + 1) as f32 / (ramp - 2 * margin + 1) as f32;
            // Not 0: every latent has some weight, wherever the tiles are.
            share.clamp(1e-6, 1.0)
        };
        (0..length)
            .map(|index| {
                let left = if start == 0 { 1.0 } else { rise(index) };
                let at_end = start + self.length >= self.whole;
                let right = if at_end { 1.0 } else { rise(length - 1 - index) };
                left.min(right)
            })
            .collect()
    }
}

/// The tiles of one job's latents and the blended prediction so far.
#[derive(Debug)]
pub struct LatentTiles {
    vertical: TileAxis,
    horizontal: TileAxis,
    next: usize,
    prediction: Option<Blend>,
}

impl LatentTiles {
    /// Splits `height` times `width` latents into tiles of at most `max_latents`; `None` if one tile is enough.
    pub fn new(height: i64, width: i64, max_latents: i64) -> Option<Self> {
        let max_area = max_latents.max(MIN_SIDE * MIN_SIDE);
        if height * width <= max_area {
            return None;
        }
        let down = |side: i64| (side - side % MULTIPLE).max(MIN_SIDE);
        // A short side stays whole, which allows a longer other side.
        let square = down(max_area.isqrt());
        let (tile_height, tile_width) = if height <= square {
            (height, down(max_area / height))
        } else if width <= square {
            (down(max_area / width), width)
        } else {
            (square, square)
        };
        Some(Self {
            vertical: TileAxis::new(height, tile_height),
            horizontal: TileAxis::new(width, tile_width),
            next: 0,
            prediction: None,
        })
    }

    /// Returns the number of tiles.
    pub fn count(&self) -> usize {
        self.vertical.starts.len() * self.horizontal.starts.len()
    }

    /// Returns the height and width of a tile, in latents.
    pub fn tile_size(&self) -> (i64, i64) {
        (self.vertical.length, self.horizontal.length)
    }

    /// Returns the top and left edge of tile `index`, in latents.
    fn position(&self, index: usize) -> Result<(i64, i64)> {
        let columns = self.horizontal.starts.len();
        let at = |axis: &TileAxis, index: usize| axis.starts.get(index).copied();
        at(&self.vertical, index / columns)
            .zip(at(&self.horizontal, index % columns))
            .ok_or_else(|| Error::internal("a tile beyond the last"))
    }

    /// Returns the next tile of the UNet's input `[.., height, width]`.
    ///
    /// # Errors
    /// Internal for an input of another size.
    pub fn next_tile(&self, whole: &Tensor) -> Result<Tensor> {
        let (y, x) = self.position(self.next)?;
        Ok(whole
            .f_narrow(-2, y, self.vertical.length)?
            .f_narrow(-1, x, self.horizontal.length)?)
    }

    /// Adds the prediction for [`LatentTiles::next_tile`], `[batch size, channels, height, width]`. After the last tile
    /// returns the prediction for the whole and starts over.
    pub fn add(&mut self, prediction: &Tensor, stream: &Stream) -> Result<Option<Tensor>> {
        let mut blend = match self.prediction.take() {
            Some(blend) => blend,
            None => Blend::new(prediction, self.vertical.whole, self.horizontal.whole)?,
        };
        self.add_to(&mut blend, self.next, prediction, stream)?;
        self.next += 1;
        if self.next < self.count() {
            self.prediction = Some(blend);
            return Ok(None);
        }
        self.next = 0;
        blend.finish().map(Some)
    }

    fn add_to(&self, blend: &mut Blend, index: usize, tile: &Tensor, stream: &Stream) -> Result<()> {
        let (y, x) = self.position(index)?;
        let column = Tensor::f_from_slice(&self.vertical.window(y))?.f_view([-1, 1])?;
        let row = Tensor::f_from_slice(&self.horizontal.window(x))?.f_view([1, -1])?;
        let window = stream.to_device(&column.f_mul(&row)?)?.f_to_kind(tile.kind())?;
        blend.add(tile, &window, y, x)
    }
}

/// A weighted mean of overlapping tiles.
#[derive(Debug)]
struct Blend {
    sum: Tensor,
    weight: Tensor,
}

impl Blend {
    /// Creates an empty whole of `height` times `width` for tiles like `tile`.
    fn new(tile: &Tensor, height: i64, width: i64) -> Result<Self> {
        let (batch_size, channels, _, _) = tile.size4()?;
        let options = (Kind::Float, tile.device());
        Ok(Self {
            sum: Tensor::f_zeros([batch_size, channels, height, width], options)?.f_to_kind(tile.kind())?,
            weight: Tensor::f_zeros([height, width], options)?.f_to_kind(tile.kind())?,
        })
    }

    fn add(&mut self, tile: &Tensor, window: &Tensor, y: i64, x: i64) -> Result<()> {
        let (_, _, height, width) = tile.size4()?;
        let part = |whole: &Tensor| whole.f_narrow(-2, y, height)?.f_narrow(-1, x, width);
        let _ = part(&self.sum)?.f_add_(&tile.f_mul(window)?)?;
        let _ = part(&self.weight)?.f_add_(window)?;
        Ok(())
    }

    fn finish(mut self) -> Result<Tensor> {
        let _ = self.sum.f_div_(&self.weight)?;
        Ok(self.sum)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use proptest::prelude::*;
    use tch::Device;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Tiles are inside, within the limit, overlap their neighbors and cover everything.
        #[test]
        fn tiles_cover_the_whole(height in 4i64..600, width in 4i64..600, max in 1i64..300_000) {
            let max_area = max.max(MIN_SIDE * MIN_SIDE);
            let Some(tiles) = LatentTiles::new(height, width, max) else {
                prop_assert!(height * width <= max_area);
                return Ok(());
            };
            prop_assert!(height * width > max_area);
            let (tile_height, tile_width) = tiles.tile_size();
            prop_assert!(tile_height * tile_width <= max_area);
            for axis in [&tiles.vertical, &tiles.horizontal] {
                prop_assert_eq!(axis.starts[0], 0);
                prop_assert_eq!(axis.starts[axis.starts.len() - 1] + axis.length, axis.whole);
                for pair in axis.starts.windows(2) {
                    prop_assert!(pair[0] < pair[1]);
                    prop_assert!(pair[1] + axis.length / OVERLAP <= pair[0] + axis.length);
                }
            }
        }
    }

    /// A network that looks at single latents has the same result in tiles.
    #[test]
    fn local_prediction_has_no_seams() {
        let options = (Kind::Float, Device::Cpu);
        let latents = Tensor::randn([2, 4, 100, 72], options);
        let mut tiles = LatentTiles::new(100, 72, 40 * 40).unwrap();
        assert_eq!(tiles.count(), 9);
        // Twice, as in two steps.
        for _ in 0..2 {
            for index in 0..tiles.count() {
                let predicted = tiles.next_tile(&latents).unwrap() * 3.0;
                let whole = tiles.add(&predicted, &Stream::cpu()).unwrap();
                assert_eq!(whole.is_some(), index + 1 == tiles.count());
                if let Some(whole) = whole {
                    let difference = (whole - &latents * 3.0).abs().max();
                    assert!(f64::try_from(difference).unwrap() < 1e-5);
                }
            }
        }
    }

    /// Edge effects of the network stay out of the image.
    #[test]
    fn inner_edge_has_no_weight() {
        let axis = TileAxis::new(100, 40);
        let inner = axis.window(axis.starts[1]);
        assert!(inner[0] < 1e-3 && inner[1] < 1e-3 && inner[39] < 1e-3);
        assert_eq!(inner[20], 1.0);
        let first = axis.window(0);
        assert_eq!(first[0], 1.0);
        assert!(first[39] < 1e-3);
    }
}
