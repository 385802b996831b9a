//! Layer norms.

use diffusion_kernels::{LayerNorm, Level};
use proptest::prelude::*;

use crate::support::{Random, assert_close, assert_same_bytes, cases, on_one_thread};

/// The largest error, relative to the largest result.
const TOLERANCE: f64 = 1e-6;
const EPS: f32 = 1e-5;

/// A norm and its values.
struct Case {
    size: usize,
    input: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Case {
    fn new(seed: u64, rows: usize, size: usize) -> Self {
        let mut random = Random::new(seed);
        Self {
            size,
            input: random.values(rows * size),
            weight: random.values(size),
            bias: random.values(size),
        }
    }

    fn compute(&self, level: Level, input: &[f32]) -> Vec<f32> {
        let mut out = vec![f32::NAN; input.len()];
        let norm = LayerNorm {
            input,
            weight: &self.weight,
            bias: &self.bias,
            eps: EPS,
        };
        norm.compute_with(level, &mut out);
        out
    }

    /// The twin.
    fn expected(&self) -> Vec<f64> {
        let mut expected = Vec::new();
        for row in self.input.chunks(self.size) {
            let mean = row.iter().map(|&value| f64::from(value)).sum::<f64>() / self.size as f64;
            let squares = row.iter().map(|&value| (f64::from(value) - mean).powi(2));
            let variance = squares.sum::<f64>() / self.size as f64;
            for (i, &value) in row.iter().enumerate() {
                let normal = (f64::from(value) - mean) / (variance + f64::from(EPS)).sqrt();
                expected.push(normal * f64::from(self.weight[i]) + f64::from(self.bias[i]));
            }
        }
        expected
    }

    #[track_caller]
    fn check(&self, tolerance: f64) {
        let expected = self.expected();
        for &level in Level::all() {
            let what = format!("{} size {} of {}", level.name(), self.size, self.input.len());
            assert_close(what, &self.compute(level, &self.input), &expected, 1.0, tolerance);
        }
    }
}

#[test]
fn small_layer_norm_matches_the_twin() {
    Case::new(1, 5, 19).check(TOLERANCE);
}

#[test]
fn layer_norm_sizes_around_the_blocks_match_the_twin() {
    for size in [1, 2, 7, 8, 9, 15, 16, 17, 24, 33, 320, 768, 1283] {
        for rows in [1, 2, 31, 32, 33, 100] {
            Case::new(1, rows, size).check(TOLERANCE);
        }
    }
}

#[test]
fn layer_norm_large_mean_matches_the_twin() {
    for mean in [10.0, 1000.0] {
        let mut case = Case::new(1, 5, 321);
        case.input.iter_mut().for_each(|value| *value += mean);
        // The mean is rounded to float32.
        case.check(TOLERANCE + f64::from(mean) * 1e-7);
    }
}

#[test]
fn layer_norm_of_values_of_other_magnitudes_matches_the_twin() {
    for magnitude in [1e-15, 1e-3, 1e4, 1e15] {
        let mut case = Case::new(1, 3, 77);
        case.input.iter_mut().for_each(|value| *value *= magnitude);
        case.check(TOLERANCE);
    }
}

#[test]
fn layer_norm_without_rows_does_nothing() {
    assert!(Case::new(1, 0, 8).compute(Level::best(), &[]).is_empty());
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn layer_norm_row_alone_has_the_bytes_that_it_has_among_others(
        seed in any::<u64>(),
        rows in 2..80_usize,
        size in 1..200_usize,
    ) {
        let mut case = Case::new(seed, rows, size);
        case.check(TOLERANCE);
        // What the first row holds must not matter, either.
        case.input[..size].fill(f32::NAN);
        for &level in Level::all() {
            let all = case.compute(level, &case.input);
            assert!(all[..size].iter().all(|value| value.is_nan()));
            for row in [1, rows / 2, rows - 1] {
                let range = row * size..(row + 1) * size;
                let alone = case.compute(level, &case.input[range.clone()]);
                assert_same_bytes(format!("{} {row} {size}", level.name()), &alone, &all[range]);
            }
        }
    }
}

#[test]
fn layer_norm_one_thread_gives_the_bytes_of_all_threads() {
    for (rows, size) in [(1, 9), (33, 77), (500, 40)] {
        let case = Case::new(1, rows, size);
        for &level in Level::all() {
            let alone = on_one_thread(|| case.compute(level, &case.input));
            assert_same_bytes(level.name(), &case.compute(level, &case.input), &alone);
        }
    }
}
