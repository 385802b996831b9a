//! Activations, reached through a linear layer with a factor of 1.

use diffusion_kernels::{Activation, Level, Linear, Matrix, Then, Values};

use crate::support::activate;

const ALL: [Activation; 4] = [
    Activation::Identity,
    Activation::Silu,
    Activation::Gelu,
    Activation::QuickGelu,
];

fn apply(level: Level, activation: Activation, input: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; input.len()];
    let matrix = Matrix {
        values: Values::F32(&[1.0]),
        bias: None,
    };
    let linear = Linear {
        rows: input.len(),
        depth: 1,
        input,
        matrices: &[matrix],
        columns: 1,
        then: Then::Activate(activation),
    };
    linear.compute_with(level, &mut out);
    out
}

/// Values of all magnitudes, of both signs.
fn finite_values() -> Vec<f32> {
    let grid = (-100_000..=100_000).map(|i| i as f32 * 1e-3);
    let powers = (-149..128).flat_map(|power| [2.0_f32.powi(power), -(2.0_f32.powi(power))]);
    let ends = [
        0.0,
        -0.0,
        f32::MAX,
        f32::MIN,
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        88.0,
        -88.0,
        87.3,
        -87.3,
    ];
    grid.chain(powers).chain(ends).collect()
}

#[test]
fn activation_finite_values_match_the_twin() {
    let input = finite_values();
    for &level in Level::all() {
        for activation in ALL {
            let out = apply(level, activation, &input);
            for (&x, &ours) in input.iter().zip(&out) {
                let expected = activate(activation, f64::from(x));
                let size = f64::from(x.abs());
                // A sigmoid below the smallest normal number counts as 0, and the formula for the error function has an
                // error of 1.5·10⁻⁷. The smallest number has no half.
                let absolute = match activation {
                    Activation::Identity => 0.0,
                    Activation::Gelu => 1e-7 * size.min(4.0) + 1.5e-45,
                    _ => 1e-36,
                };
                // The argument of the sigmoid is rounded.
                let relative = match activation {
                    Activation::QuickGelu if x < 0.0 => 5e-7 + 2e-7 * size,
                    _ => 5e-7,
                };
                let near = relative * expected.abs() + absolute;
                let what = format!(
                    "{} {activation:?} of {x:e}: {ours:e} instead of {expected:e}",
                    level.name()
                );
                assert!((f64::from(ours) - expected).abs() <= near, "{what}");
            }
        }
    }
}

#[test]
fn activation_of_a_large_positive_value_is_the_value_and_of_a_large_negative_one_zero() {
    for &level in Level::all() {
        for activation in &ALL[1..] {
            for x in [1e3, 1e20, 1e38, f32::MAX] {
                assert_eq!(
                    apply(level, *activation, &[x, -x]),
                    [x, 0.0],
                    "{} {activation:?}",
                    level.name()
                );
            }
        }
    }
}

#[test]
fn activation_of_nan_is_nan() {
    for &level in Level::all() {
        for activation in ALL {
            let out = apply(level, activation, &[1.0, f32::NAN, -f32::NAN, 2.0]);
            assert!(out[1].is_nan() && out[2].is_nan(), "{} {activation:?}", level.name());
            assert!(out[0].is_finite() && out[3].is_finite());
        }
    }
}
