//! Activations of vectors.

use crate::simd::Simd;

/// What is applied to each value of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// x·σ(x)
    Silu,
    /// x·Φ(x), with the error function.
    Gelu,
    /// x·σ(1.702·x)
    QuickGelu,
}

impl Activation {
    /// Applies the activation.
    ///
    /// # Safety
    /// The machine has the instruction set.
    #[inline(always)]
    pub unsafe fn apply<S: Simd>(self, x: S::V) -> S::V {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::Identity => x,
                Self::Silu => S::mul(x, sigmoid::<S>(x)),
                Self::Gelu => gelu::<S>(x),
                Self::QuickGelu => S::mul(x, sigmoid::<S>(S::mul(x, S::splat(1.702)))),
            }
        }
    }
}

/// Returns eˣ with a relative error below 2·10⁻⁷ from -87.3 to 88.3, and NaN for NaN. Values up to -88 give 0, values from
/// 89 on infinity, and those between may give either that or the power.
///
/// Source: the polynomial of Cephes' `expf` (Moshier, 1987).
///
/// # Safety
/// The machine has the instruction set.
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    /// ln 2 in two parts, of which the first has few bits.
    const LN2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    // SAFETY: the caller's promise.
    unsafe {
        // Of two values of which one is NaN, the second is taken.
        let x = S::max(S::splat(-88.0), S::min(S::splat(89.0), x));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let r = S::mul_add(n, S::splat(-LN2.0), x);
        let r = S::mul_add(n, S::splat(-LN2.1), r);
        let mut p = S::splat(1.987_569_1e-4);
        for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = S::mul_add(p, r, S::splat(coefficient));
        }
        let p = S::mul_add(S::mul(r, r), p, S::add(r, S::splat(1.0)));
        S::scale_by_exp2(p, n)
    }
}

/// Returns 2ˣ with a relative error below 3·10⁻⁷ from -126 to 127, 0 up to -127, NaN for NaN, and any value from 128
/// on.
///
/// # Safety
/// The machine has the instruction set.
#[inline(always)]
pub unsafe fn exp2<S: Simd>(x: S::V) -> S::V {
    /// (ln 2)ᵏ/k!, of the Taylor series. The next term is below 1.2·10⁻⁷ for half a unit.
    const COEFFICIENTS: [f32; 6] = [
        1.333_355_8e-3,
        9.618_129e-3,
        5.550_411e-2,
        0.240_226_5,
        std::f32::consts::LN_2,
        1.0,
    ];
    // SAFETY: the caller's promise.
    unsafe {
        // Of two values of which one is NaN, the second is taken.
        let x = S::max(S::splat(-127.0), x);
        let n = S::round(x);
        let r = S::sub(x, n);
        let mut p = S::splat(1.540_353e-4);
        for coefficient in COEFFICIENTS {
            p = S::mul_add(p, r, S::splat(coefficient));
        }
        S::scale_by_exp2(p, n)
    }
}

/// Returns 1/(1 + e⁻ˣ).
#[inline(always)]
unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let e = exp::<S>(S::sub(S::splat(0.0), x));
        S::div(S::splat(1.0), S::add(S::splat(1.0), e))
    }
}

/// Returns x·Φ(x) = x/2·(1 + erf(x/√2)).
///
/// Source: formula 7.1.26 of Abramowitz and Stegun (1964) for the error function, with an error below 1.5·10⁻⁷.
#[inline(always)]
unsafe fn gelu<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = S::splat(0.0);
        let magnitude = S::mul(S::max(x, S::sub(zero, x)), S::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = S::div(
            S::splat(1.0),
            S::mul_add(magnitude, S::splat(0.327_591_1), S::splat(1.0)),
        );
        let mut p = S::splat(1.061_405_4);
        for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
            p = S::mul_add(p, t, S::splat(coefficient));
        }
        // 1 - erf of the magnitude.
        let tail = S::mul(S::mul(p, t), exp::<S>(S::sub(zero, S::mul(magnitude, magnitude))));
        // x·Φ(x) is -tail·|x|/2 for a negative x and x - tail·|x|/2 for others.
        let half_tail = S::mul(S::mul(tail, S::max(x, S::sub(zero, x))), S::splat(0.5));
        S::sub(S::max(x, zero), half_tail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Level};

    struct Power<'a> {
        of_2: bool,
        exponents: &'a mut [f32],
    }

    impl Kernel for Power<'_> {
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            for values in self.exponents.chunks_exact_mut(S::LANES) {
                // SAFETY: `values` is a vector.
                unsafe {
                    let x = S::load(values.as_ptr());
                    let power = if self.of_2 { exp2::<S>(x) } else { exp::<S>(x) };
                    S::store(values.as_mut_ptr(), power);
                }
            }
        }
    }

    fn powers(level: Level, of_2: bool, mut values: Vec<f32>) -> Vec<f32> {
        values.resize(values.len().next_multiple_of(16), 0.0);
        let exponents = &mut values;
        // SAFETY: the kernel has no conditions.
        unsafe { level.run(Power { of_2, exponents }) }
        values
    }

    fn exp_of(level: Level, values: Vec<f32>) -> Vec<f32> {
        powers(level, false, values)
    }

    fn exp2_of(level: Level, values: Vec<f32>) -> Vec<f32> {
        powers(level, true, values)
    }

    #[test]
    fn exp2_of_the_range_has_a_small_relative_error() {
        let values: Vec<_> = (-126_000..=127_000).map(|i| i as f32 * 1e-3).collect();
        for &level in Level::all() {
            for (&x, ours) in values.iter().zip(exp2_of(level, values.clone())) {
                let error = (f64::from(ours) / f64::from(x).exp2() - 1.0).abs();
                assert!(
                    error < 3e-7,
                    "{} 2^{x} is {ours:e}, an error of {error:e}",
                    level.name()
                );
            }
        }
    }

    #[test]
    fn exp2_below_the_range_is_0_and_of_nan_is_nan() {
        for &level in Level::all() {
            for x in [-127.0, -128.0, -150.0, -1e3, -1e38, f32::MIN, f32::NEG_INFINITY] {
                assert_eq!(exp2_of(level, vec![x])[0], 0.0, "{} {x}", level.name());
            }
            let of_nan = exp2_of(level, vec![f32::NAN, 0.0, -f32::NAN]);
            assert!(
                of_nan[0].is_nan() && of_nan[1] == 1.0 && of_nan[2].is_nan(),
                "{}",
                level.name()
            );
        }
    }

    #[test]
    fn exp_of_the_range_has_a_small_relative_error() {
        let values: Vec<_> = (-87_300..=88_300).map(|i| i as f32 * 1e-3).collect();
        for &level in Level::all() {
            for (&x, ours) in values.iter().zip(exp_of(level, values.clone())) {
                let expected = f64::from(x).exp();
                let error = (f64::from(ours) / expected - 1.0).abs();
                assert!(
                    error < 2e-7,
                    "{} e^{x} is {ours:e}, an error of {error:e}",
                    level.name()
                );
            }
        }
    }

    #[test]
    fn exp_beyond_the_range_is_0_or_infinite_and_of_nan_is_nan() {
        for &level in Level::all() {
            for x in [-88.0, -1e3, -1e38, f32::MIN, f32::NEG_INFINITY] {
                assert_eq!(exp_of(level, vec![x])[0], 0.0, "{} {x}", level.name());
            }
            for x in [89.0, 1e3, 1e38, f32::MAX, f32::INFINITY] {
                assert_eq!(exp_of(level, vec![x])[0], f32::INFINITY, "{} {x}", level.name());
            }
            for i in 0..1500 {
                let (low, high) = (-87.3 - i as f32 * 1e-3, 88.3 + i as f32 * 1e-3);
                let ends = exp_of(level, vec![low, high]);
                assert!(
                    (0.0..=1.3e-38).contains(&ends[0]),
                    "{} e^{low} is {:e}",
                    level.name(),
                    ends[0]
                );
                assert!(ends[1] > 2.2e38, "{} e^{high} is {:e}", level.name(), ends[1]);
            }
            let of_nan = exp_of(level, vec![f32::NAN, 0.0, -f32::NAN]);
            assert!(
                of_nan[0].is_nan() && of_nan[1] == 1.0 && of_nan[2].is_nan(),
                "{}",
                level.name()
            );
        }
    }
}
