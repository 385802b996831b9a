//! Group norms.

use diffusion_kernels::{Activation, GroupNorm, Level, Shape};
use proptest::prelude::*;

use crate::support::{Random, activate, assert_close, assert_same_bytes, cases, on_one_thread};

/// The largest error, relative to the largest result or shift.
const TOLERANCE: f64 = 4e-6;
const EPS: f64 = 1e-5;

const ACTIVATIONS: [Activation; 4] = [
    Activation::Identity,
    Activation::Silu,
    Activation::Gelu,
    Activation::QuickGelu,
];

/// A norm and its values.
struct Case {
    shape: Shape,
    groups: usize,
    activation: Activation,
    input: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Case {
    fn new(seed: u64, [batch, height, width, channels]: [usize; 4], groups: usize, activation: Activation) -> Self {
        let mut random = Random::new(seed);
        let shape = Shape {
            batch,
            height,
            width,
            channels,
        };
        Self {
            shape,
            groups,
            activation,
            input: random.values(shape.len()),
            weight: random.values(channels),
            bias: random.values(channels),
        }
    }

    /// Computes some of the entries.
    fn compute(&self, level: Level, entries: std::ops::Range<usize>) -> Vec<f32> {
        let len = self.shape.len() / self.shape.batch;
        let mut out = vec![f32::NAN; entries.len() * len];
        let norm = GroupNorm {
            input: &self.input[entries.start * len..entries.end * len],
            shape: Shape {
                batch: entries.len(),
                ..self.shape
            },
            groups: self.groups,
            weight: &self.weight,
            bias: &self.bias,
            eps: EPS,
            activation: self.activation,
        };
        norm.compute_with(level, &mut out);
        out
    }

    fn all(&self, level: Level) -> Vec<f32> {
        self.compute(level, 0..self.shape.batch)
    }

    /// The twin. Also returns the largest of mean · factor and bias: a kernel rounds their difference to float32.
    fn expected(&self) -> (Vec<f64>, f64) {
        let Shape { batch, channels, .. } = self.shape;
        let area = self.shape.height * self.shape.width;
        let in_group = channels / self.groups;
        let mut expected = vec![0.0; self.shape.len()];
        let mut largest = 1.0_f64;
        for entry in 0..batch {
            for group in 0..self.groups {
                let mut members = Vec::new();
                for position in 0..area {
                    for channel in group * in_group..(group + 1) * in_group {
                        members.push((entry * area + position) * channels + channel);
                    }
                }
                let count = members.len() as f64;
                let mean = members.iter().map(|&at| f64::from(self.input[at])).sum::<f64>() / count;
                let squares = members.iter().map(|&at| (f64::from(self.input[at]) - mean).powi(2));
                let variance = squares.sum::<f64>() / count;
                for at in members {
                    let (weight, bias) = (
                        f64::from(self.weight[at % channels]),
                        f64::from(self.bias[at % channels]),
                    );
                    let factor = weight / (variance + EPS).sqrt();
                    let value = (f64::from(self.input[at]) - mean) * factor + bias;
                    expected[at] = activate(self.activation, value);
                    largest = largest.max((mean * factor).abs());
                }
            }
        }
        (expected, largest)
    }

    #[track_caller]
    fn check(&self) {
        let (expected, largest) = self.expected();
        for &level in Level::all() {
            let what = format!(
                "{} {:?} {} {:?}",
                level.name(),
                self.shape,
                self.groups,
                self.activation
            );
            assert_close(what, &self.all(level), &expected, largest, TOLERANCE);
        }
    }
}

#[test]
fn small_group_norm_matches_the_twin() {
    for (channels, groups) in [(20, 5), (16, 2)] {
        Case::new(1, [2, 3, 5, channels], groups, Activation::Silu).check();
    }
}

#[test]
fn group_norm_sizes_around_the_blocks_match_the_twin() {
    let mut seed = 0;
    for (height, width) in [(1, 1), (1, 2), (3, 5), (5, 51), (16, 16), (1, 257), (23, 29)] {
        for (channels, groups) in [
            (1, 1),
            (4, 2),
            (8, 8),
            (24, 3),
            (32, 32),
            (40, 5),
            (64, 1),
            (100, 10),
            (192, 32),
        ] {
            for activation in ACTIVATIONS {
                seed += 1;
                Case::new(seed, [2, height, width, channels], groups, activation).check();
            }
        }
    }
}

/// The mean of each channel is far from 0: the variance must not be lost.
#[test]
fn group_norm_large_mean_matches_the_twin() {
    for (mean, same) in [(100.0, true), (3000.0, true), (100.0, false)] {
        let mut case = Case::new(1, [2, 20, 20, 24], 3, Activation::Identity);
        for (at, value) in case.input.iter_mut().enumerate() {
            *value += if same { mean } else { mean * (at % 24 / 4) as f32 };
        }
        case.check();
    }
}

#[test]
fn group_norm_of_equal_values_matches_the_twin() {
    for value in [0.0, 1.0, -1000.5] {
        let mut case = Case::new(1, [1, 17, 17, 24], 3, Activation::Identity);
        case.input.fill(value);
        case.check();
    }
}

#[test]
fn group_norm_of_values_of_other_magnitudes_matches_the_twin() {
    for magnitude in [1e-15, 1e-3, 1e4, 1e15] {
        let mut case = Case::new(1, [1, 9, 9, 24], 3, Activation::Silu);
        case.input.iter_mut().for_each(|value| *value *= magnitude);
        case.check();
    }
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn group_norm_random_shapes_match_the_twin(
        seed in any::<u64>(),
        shape in (1..4_usize, 1..25_usize, 1..25_usize),
        groups in 1..12_usize,
        in_group in 1..12_usize,
        activation in 0..4_usize,
    ) {
        let shape = [shape.0, shape.1, shape.2, groups * in_group];
        Case::new(seed, shape, groups, ACTIVATIONS[activation]).check();
    }

    #[test]
    fn group_norm_entry_alone_has_the_bytes_that_it_has_among_others(
        seed in any::<u64>(),
        shape in (1..25_usize, 1..25_usize),
        groups in 1..12_usize,
        in_group in 1..12_usize,
    ) {
        let shape = [3, shape.0, shape.1, groups * in_group];
        let mut case = Case::new(seed, shape, groups, Activation::Silu);
        let len = case.input.len() / 3;
        // What the first entry holds must not matter, either.
        case.input[..len].fill(f32::NAN);
        for &level in Level::all() {
            let all = case.all(level);
            for entry in 1..3 {
                let alone = case.compute(level, entry..entry + 1);
                assert_same_bytes(format!("{} {shape:?}", level.name()), &alone, &all[entry * len..][..len]);
            }
        }
    }
}

#[test]
fn group_norm_one_thread_gives_the_bytes_of_all_threads() {
    for shape in [[1, 40, 41, 24], [3, 7, 7, 40], [1, 1, 1, 8]] {
        let case = Case::new(1, shape, 4, Activation::Gelu);
        for &level in Level::all() {
            let alone = on_one_thread(|| case.all(level));
            assert_same_bytes(format!("{} {shape:?}", level.name()), &case.all(level), &alone);
        }
    }
}

#[test]
fn group_norm_value_that_is_not_finite_stays_in_its_group() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut case = Case::new(1, [2, 9, 9, 24], 3, Activation::Silu);
        for &level in Level::all() {
            let clean = case.all(level);
            let at = (81 + 40) * 24 + 10;
            let old = std::mem::replace(&mut case.input[at], bad);
            let out = case.all(level);
            case.input[at] = old;
            for (at, (ours, clean)) in out.iter().zip(&clean).enumerate() {
                if at >= 81 * 24 && (8..16).contains(&(at % 24)) {
                    assert!(ours.is_nan(), "{} {bad} {at}", level.name());
                } else {
                    assert_eq!(ours.to_bits(), clean.to_bits(), "{} {bad} {at}", level.name());
                }
            }
        }
    }
}
