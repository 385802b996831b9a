//! Overlapping pieces for the UNet, for images that it does not fit into memory with.
//!
//! It sees one piece after the other at each step; what it predicts is blended where pieces overlap, and the sampler
//! steps on with the whole (Bar-Tal et al., "MultiDiffusion", 2023). All pieces of an image are of one size, so that they
//! can share a UNet call with those of other requests. A piece is not what the whole would be: the UNet's norms and its
//! attention see no further than the piece.

use tch::{Kind, Tensor};

use diffusion_core::{Error, Result};

/// Latents along each side that a piece has at least, however little memory is asked for.
const MIN_SIDE: i64 = 32;
/// Latents that neighbouring pieces share, as a part of a piece's side.
const OVERLAP: i64 = 4;
/// Sides are multiples of this, which the UNet can halve three times.
const MULTIPLE: i64 = 8;

/// Where the pieces of one side begin, and how long they are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cuts {
    starts: Vec<i64>,
    length: i64,
    whole: i64,
}

impl Cuts {
    /// `whole` in pieces of at most `length`, spread evenly.
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

    /// The weight of each latent of the piece that begins at `start`: nothing next to an edge
    /// where the piece was cut (what the network makes there lacks its surroundings), then rising to 1.
    fn window(&self, start: i64) -> Vec<f32> {
        let length = self.length;
        let ramp = (length / OVERLAP).max(1);
        let margin = ramp / OVERLAP;
        let rise = |distance: i64| {
            let share = (distance - margin + 1) as f32 / (ramp - 2 * margin + 1) as f32;
            // Not 0: every value has some weight, whatever the pieces' places.
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

/// The pieces of one job's latents, and which is next.
#[derive(Debug)]
pub struct Tiles {
    rows: Cuts,
    columns: Cuts,
    next: usize,
    prediction: Option<Blend>,
}

impl Tiles {
    /// The pieces of at most `max_latents` for `height` times `width` latents, or `None` if the whole is not more.
    pub fn needed(height: i64, width: i64, max_latents: i64) -> Option<Self> {
        let max_area = max_latents.max(MIN_SIDE * MIN_SIDE);
        if height * width <= max_area {
            return None;
        }
        let down = |side: i64| (side - side % MULTIPLE).max(MIN_SIDE);
        // A short side stays whole, which leaves the other one longer pieces.
        let square = down(max_area.isqrt());
        let (piece_height, piece_width) = if height <= square {
            (height, down(max_area / height))
        } else if width <= square {
            (down(max_area / width), width)
        } else {
            (square, square)
        };
        Some(Self {
            rows: Cuts::new(height, piece_height),
            columns: Cuts::new(width, piece_width),
            next: 0,
            prediction: None,
        })
    }

    /// How many pieces there are.
    pub fn count(&self) -> usize {
        self.rows.starts.len() * self.columns.starts.len()
    }

    /// Height and width of a piece, in latents.
    pub fn piece(&self) -> (i64, i64) {
        (self.rows.length, self.columns.length)
    }

    /// Where piece `index` begins, in latents.
    fn place(&self, index: usize) -> Result<(i64, i64)> {
        let columns = self.columns.starts.len();
        let at = |cuts: &Cuts, index: usize| cuts.starts.get(index).copied();
        at(&self.rows, index / columns)
            .zip(at(&self.columns, index % columns))
            .ok_or_else(|| Error::internal("a piece beyond the last"))
    }

    /// The part of the UNet's input `[.., height, width]` that is next.
    ///
    /// # Errors
    /// Latents of another size.
    pub fn next_of(&self, whole: &Tensor) -> Result<Tensor> {
        let (y, x) = self.place(self.next)?;
        Ok(whole
            .f_narrow(-2, y, self.rows.length)?
            .f_narrow(-1, x, self.columns.length)?)
    }

    /// Takes the UNet's prediction for the piece that was next, `[rows, channels, height, width]`. After the last
    /// piece gives the prediction for the whole, and starts over.
    ///
    /// # Errors
    /// Out of memory.
    pub fn take(&mut self, prediction: &Tensor) -> Result<Option<Tensor>> {
        let mut blend = match self.prediction.take() {
            Some(blend) => blend,
            None => Blend::new(prediction, self.rows.whole, self.columns.whole)?,
        };
        self.add(&mut blend, self.next, prediction)?;
        self.next += 1;
        if self.next < self.count() {
            self.prediction = Some(blend);
            return Ok(None);
        }
        self.next = 0;
        blend.finish().map(Some)
    }

    fn add(&self, blend: &mut Blend, index: usize, piece: &Tensor) -> Result<()> {
        let (y, x) = self.place(index)?;
        let column = Tensor::f_from_slice(&self.rows.window(y))?.f_view([-1, 1])?;
        let row = Tensor::f_from_slice(&self.columns.window(x))?.f_view([1, -1])?;
        let window = column
            .f_mul(&row)?
            .f_to_device(piece.device())?
            .f_to_kind(piece.kind())?;
        blend.add(piece, &window, y, x)
    }
}

/// A weighted mean of overlapping pieces.
#[derive(Debug)]
struct Blend {
    sum: Tensor,
    weight: Tensor,
}

impl Blend {
    /// An empty whole of `height` times `width`, for pieces like `piece`.
    fn new(piece: &Tensor, height: i64, width: i64) -> Result<Self> {
        let (rows, channels, _, _) = piece.size4()?;
        let options = (Kind::Float, piece.device());
        Ok(Self {
            sum: Tensor::f_zeros([rows, channels, height, width], options)?.f_to_kind(piece.kind())?,
            weight: Tensor::f_zeros([height, width], options)?.f_to_kind(piece.kind())?,
        })
    }

    fn add(&mut self, piece: &Tensor, window: &Tensor, y: i64, x: i64) -> Result<()> {
        let (_, _, height, width) = piece.size4()?;
        let part = |whole: &Tensor| whole.f_narrow(-2, y, height)?.f_narrow(-1, x, width);
        let _ = part(&self.sum)?.f_add_(&piece.f_mul(window)?)?;
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

        /// Pieces lie inside, are within the limit, overlap their neighbours and leave nothing out.
        #[test]
        fn pieces_cover_the_whole(height in 4i64..600, width in 4i64..600, max in 1i64..300_000) {
            let max_area = max.max(MIN_SIDE * MIN_SIDE);
            let Some(tiles) = Tiles::needed(height, width, max) else {
                prop_assert!(height * width <= max_area);
                return Ok(());
            };
            prop_assert!(height * width > max_area);
            let (piece_height, piece_width) = tiles.piece();
            prop_assert!(piece_height * piece_width <= max_area);
            for cuts in [&tiles.rows, &tiles.columns] {
                prop_assert_eq!(cuts.starts[0], 0);
                prop_assert_eq!(cuts.starts[cuts.starts.len() - 1] + cuts.length, cuts.whole);
                for pair in cuts.starts.windows(2) {
                    prop_assert!(pair[0] < pair[1]);
                    prop_assert!(pair[1] + cuts.length / OVERLAP <= pair[0] + cuts.length);
                }
            }
        }
    }

    /// What does not depend on its surroundings is the same in pieces.
    #[test]
    fn a_local_network_sees_no_seams() {
        let options = (Kind::Float, Device::Cpu);
        let latents = Tensor::randn([2, 4, 100, 72], options);
        let mut tiles = Tiles::needed(100, 72, 40 * 40).unwrap();
        assert_eq!(tiles.count(), 9);
        // Twice, as in two steps.
        for _ in 0..2 {
            for index in 0..tiles.count() {
                let predicted = tiles.next_of(&latents).unwrap() * 3.0;
                let whole = tiles.take(&predicted).unwrap();
                assert_eq!(whole.is_some(), index + 1 == tiles.count());
                if let Some(whole) = whole {
                    let difference = (whole - &latents * 3.0).abs().max();
                    assert!(f64::try_from(difference).unwrap() < 1e-5);
                }
            }
        }
    }

    /// The network's edge effects are kept out of the image.
    #[test]
    fn an_edge_that_was_cut_has_no_weight() {
        let cuts = Cuts::new(100, 40);
        let inner = cuts.window(cuts.starts[1]);
        assert!(inner[0] < 1e-3 && inner[1] < 1e-3 && inner[39] < 1e-3);
        assert_eq!(inner[20], 1.0);
        let first = cuts.window(0);
        assert_eq!(first[0], 1.0);
        assert!(first[39] < 1e-3);
    }
}
