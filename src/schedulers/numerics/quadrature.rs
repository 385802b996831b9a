//! The integral that `scipy.integrate.quad` computes of a polynomial.

/// Abscissae of the 21-point Kronrod rule on the upper half of (−1, 1), largest first, without 0.
/// The abscissae of the 10-point Gauss rule have odd indices.
const ABSCISSAE: [f64; 10] = [
    0.995_657_163_025_808_1,
    0.973_906_528_517_171_7,
    0.930_157_491_355_708_2,
    0.865_063_366_688_984_5,
    0.780_817_726_586_416_9,
    0.679_409_568_299_024_4,
    0.562_757_134_668_604_7,
    0.433_395_394_129_247_2,
    0.294_392_862_701_460_2,
    0.148_874_338_981_631_22,
];
/// The weights of the abscissae, and last that of 0.
const WEIGHTS: [f64; 11] = [
    0.011_694_638_867_371_874,
    0.032_558_162_307_964_725,
    0.054_755_896_574_351_995,
    0.075_039_674_810_919_96,
    0.093_125_454_583_697_6,
    0.109_387_158_802_297_64,
    0.123_491_976_262_065_84,
    0.134_709_217_311_473_34,
    0.142_775_938_577_060_09,
    0.147_739_104_901_338_49,
    0.149_445_554_002_916_9,
];

/// Integrates a polynomial of degree below 32 from `a` to `b`. The 21-point Gauss-Kronrod rule is exact for it up to
/// rounding, and scipy does not subdivide. The order of operations is that of QUADPACK's `qk21` (Piessens et al.,
/// "QUADPACK", 1983) on a rising interval, as scipy calls it.
pub fn integrate(function: impl Fn(f64) -> f64, a: f64, b: f64) -> f64 {
    let (low, high) = (a.min(b), a.max(b));
    let center = 0.5 * (low + high);
    let half = 0.5 * (high - low);
    let mut sum = WEIGHTS[10] * function(center);
    // The abscissae of the Gauss rule come first.
    for i in [1, 3, 5, 7, 9, 0, 2, 4, 6, 8] {
        let distance = half * ABSCISSAE[i];
        sum += WEIGHTS[i] * (function(center - distance) + function(center + distance));
    }
    let integral = sum * half;
    if b < a { -integral } else { integral }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integrate_polynomial_is_exact() {
        let power = |n: i32| integrate(|x| x.powi(n), 2.0, -1.0);
        for n in 0..32 {
            let exact = ((-1f64).powi(n + 1) - 2f64.powi(n + 1)) / f64::from(n + 1);
            let error = (power(n) - exact) / exact;
            assert!(error.abs() < 1e-14, "{n}: {error}");
        }
        assert_eq!(integrate(|x| x, 3.0, 3.0), 0.0);
    }
}
