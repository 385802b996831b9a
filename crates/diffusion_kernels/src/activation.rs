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

/// Returns eˣ with a relative error below 2·10⁻⁷; at the ends of the range 0 or the largest power.
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
        let x = S::max(S::min(x, S::splat(88.0)), S::splat(-87.3));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let r = S::mul_add(n, S::splat(-LN2.0), x);
        let r = S::mul_add(n, S::splat(-LN2.1), r);
        let mut p = S::splat(1.987_569_1e-4);
        for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = S::mul_add(p, r, S::splat(coefficient));
        }
        let p = S::mul_add(S::mul(r, r), p, S::add(r, S::splat(1.0)));
        S::mul(p, S::exp2_of_whole(n))
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
