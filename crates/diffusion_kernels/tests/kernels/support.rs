//! Random values, comparisons, and what several twins need.

use std::fmt::Display;

use diffusion_kernels::{Activation, Level, Values, pool};
use proptest::test_runner::Config;

/// The settings of a property that is tried on `cases` random shapes.
pub fn cases(cases: u32) -> Config {
    Config {
        cases,
        // No file next to the source.
        failure_persistence: None,
        ..Config::default()
    }
}

/// Random numbers from a seed.
///
/// Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (2014), for SplitMix64.
pub struct Random(u64);

impl Random {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Returns a number from -1 to 1.
    pub fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Returns `count` numbers from -1 to 1.
    pub fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }
}

/// The dtype of weights.
#[derive(Clone, Copy, Debug)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
}

pub const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

/// Weights of a dtype, and the same values in float32.
pub struct Weights {
    dtype: Dtype,
    bits: Vec<u16>,
    pub wide: Vec<f32>,
}

impl Weights {
    /// Makes random weights.
    pub fn random(random: &mut Random, dtype: Dtype, count: usize) -> Self {
        Self::new(dtype, random.values(count))
    }

    /// Rounds values to a dtype.
    pub fn new(dtype: Dtype, values: Vec<f32>) -> Self {
        let bits: Vec<u16> = match dtype {
            Dtype::F32 => Vec::new(),
            Dtype::F16 => values.iter().map(|&v| half::f16::from_f32(v).to_bits()).collect(),
            Dtype::Bf16 => values.iter().map(|&v| half::bf16::from_f32(v).to_bits()).collect(),
        };
        let wide = match dtype {
            Dtype::F32 => values,
            Dtype::F16 => bits.iter().map(|&b| half::f16::from_bits(b).to_f32()).collect(),
            Dtype::Bf16 => bits.iter().map(|&b| half::bf16::from_bits(b).to_f32()).collect(),
        };
        Self { dtype, bits, wide }
    }

    /// Returns the weights as a kernel reads them.
    pub fn values(&self) -> Values<'_> {
        match self.dtype {
            Dtype::F32 => Values::F32(&self.wide),
            Dtype::F16 => Values::F16(&self.bits),
            Dtype::Bf16 => Values::Bf16(&self.bits),
        }
    }
}

/// Returns the result of `kernel` for each instruction set: of a buffer of `len` values that are NaN at first.
pub fn on_each_level(len: usize, kernel: impl Fn(Level, &mut [f32])) -> Vec<(Level, Vec<f32>)> {
    let run = |&level: &Level| {
        let mut out = vec![f32::NAN; len];
        kernel(level, &mut out);
        (level, out)
    };
    Level::all().iter().map(run).collect()
}

/// Calls `work` so that its kernels are computed by the calling thread alone.
pub fn on_one_thread<T>(work: impl FnOnce() -> T) -> T {
    pool::set_thread_limit(1);
    let result = work();
    pool::set_thread_limit(0);
    result
}

/// Requires that all values differ by at most `tolerance` times the largest expected magnitude, or times `usual`, the
/// magnitude that such results usually have, if that is larger.
#[track_caller]
pub fn assert_close(what: impl Display, ours: &[f32], expected: &[f64], usual: f64, tolerance: f64) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(usual, |most, value| most.max(value.abs()));
    let mut worst = (0, 0.0);
    for (at, (&ours, &expected)) in ours.iter().zip(expected).enumerate() {
        let error = (f64::from(ours) - expected).abs() / largest;
        if error > worst.1 {
            worst = (at, error);
        }
        // A NaN is an error of any size.
        if error.is_nan() {
            worst = (at, f64::INFINITY);
            break;
        }
    }
    let (at, error) = worst;
    assert!(
        error <= tolerance,
        "{what}: value {at} is {} instead of {}, an error of {error:e} where {tolerance:e} is allowed",
        ours[at],
        expected[at],
    );
}

/// Requires equal bytes.
#[track_caller]
pub fn assert_same_bytes(what: impl Display, ours: &[f32], expected: &[f32]) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    for (at, (ours, expected)) in ours.iter().zip(expected).enumerate() {
        let same = ours.to_bits() == expected.to_bits();
        assert!(same, "{what}: value {at} is {ours:e} instead of {expected:e}");
    }
}

/// The twin of [`Activation`].
pub fn activate(activation: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        Activation::Identity => x,
        Activation::Silu => x * sigmoid(x),
        Activation::Gelu => x * 0.5 * erfc(-x / std::f64::consts::SQRT_2),
        Activation::QuickGelu => x * sigmoid(1.702 * x),
    }
}

/// Returns the complementary error function: 1 minus the series of the error function near 0, and a continued fraction
/// elsewhere.
///
/// Source: formulas 7.1.5 and 7.1.14 of Abramowitz and Stegun (1964).
fn erfc(x: f64) -> f64 {
    let root_pi = std::f64::consts::PI.sqrt();
    if x < 0.0 {
        2.0 - erfc(-x)
    } else if x < 2.5 {
        let (mut term, mut sum) = (x, x);
        for n in 1..100 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        1.0 - 2.0 / root_pi * sum
    } else {
        let fraction = (1..100).rev().fold(x, |below, n| x + f64::from(n) / 2.0 / below);
        (-x * x).exp() / root_pi / fraction
    }
}

#[test]
fn twin_of_erfc_known_values_agree() {
    // Source: table 7.1 of Abramowitz and Stegun (1964), and mpmath.
    let known = [
        (0.0, 1.0),
        (0.5, 0.479_500_122_186_953_5),
        (1.0, 0.157_299_207_050_285_13),
        (2.5, 4.069_520_174_449_589e-4),
        (5.0, 1.537_459_794_428_035e-12),
        (-1.0, 1.842_700_792_949_715),
    ];
    for (x, expected) in known {
        assert!((erfc(x) - expected).abs() <= 1e-12 * expected.max(1e-3), "{x}");
    }
    for x in [2.4, 2.499, 2.6] {
        let step = erfc(x) / erfc(x + 1e-6);
        assert!(step > 1.0 && step < 1.0 + 1e-5, "{x}");
    }
}
