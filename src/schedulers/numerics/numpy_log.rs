//! numpy's logarithm of float32 numbers.
//!
//! numpy computes a quotient of two polynomials. Its last bits differ from those of the C library and of libtorch, and
//! the timestep that is looked up by the logarithm of a sigma depends on them.
//!
//! Source: `simd_log_FLOAT` in numpy `numpy/core/src/umath/loops_exponent_log.dispatch.c.src`, for
//! processors with AVX2.

/// The coefficients of the numerator, from the fifth power down to the zeroth.
const P: [f32; 6] = [0.025_899_792, 0.380_883_78, 1.480_000_6, 2.112_677_6, 1.0, 0.0];
/// The coefficients of the denominator.
const Q: [f32; 6] = [0.005_875_095_3, 0.154_647_63, 0.986_494_3, 2.453_006, 2.612_677_6, 1.0];

/// Computes `np.log(np.float32(value))`, which is within 4 units in the last place of the logarithm. Returns −∞ for 0
/// and NaN for a negative number.
pub fn log(value: f32) -> f32 {
    if value.is_nan() || value < 0.0 {
        return f32::NAN;
    }
    if value == 0.0 {
        return f32::NEG_INFINITY;
    }
    if value == f32::INFINITY {
        return value;
    }
    let (mut mantissa, mut exponent) = split(value);
    if mantissa <= std::f32::consts::FRAC_1_SQRT_2 {
        mantissa += mantissa;
        exponent -= 1.0;
    }
    let x = mantissa - 1.0;
    exponent.mul_add(std::f32::consts::LN_2, polynomial(&P, x) / polynomial(&Q, x))
}

/// Splits a positive finite number into a mantissa in [0.5, 1) and the exponent of a power of two.
fn split(value: f32) -> (f32, f32) {
    // Subnormal numbers become normal first.
    let (value, scale) = if value < f32::MIN_POSITIVE {
        (value * 2f32.powi(32), 32.0)
    } else {
        (value, 0.0)
    };
    let bits = value.to_bits();
    let exponent = (bits >> 23) as f32 - 126.0 - scale;
    (f32::from_bits(bits & 0x007f_ffff | 0x3f00_0000), exponent)
}

/// Evaluates a polynomial by Horner's scheme, with one rounding a step.
fn polynomial(coefficients: &[f32; 6], x: f32) -> f32 {
    let mut sum = 0.0f32;
    for (i, &coefficient) in coefficients.iter().enumerate() {
        sum = if i == 0 {
            coefficient
        } else {
            sum.mul_add(x, coefficient)
        };
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_equals_numpy_bit_by_bit() {
        for (value, bits) in [
            (0x438f_f548, 0x40b5_3497),
            (0x4395_d561, 0x40b6_7c4a),
            (0x40b2_6b40, 0x3fdb_f47c),
            (0x3e7a_cc6c, 0xbfb4_12bd),
            (0x3c2a_ba37, 0xc092_0c3a),
            (0x3f6c_b62f, 0xbda0_6df0),
            (0x3fa6_964b, 0x3e86_e7e4),
            (0x3c17_bf35, 0xc095_d1b0),
            (0x3c1f_1da5, 0xc094_4d3d),
            (0x457d_24eb, 0x4104_e79f),
            (0x4210_204f, 0x4065_66ba),
            (0x3df9_7d03, 0xc006_bbb6),
            (0x3fee_e358, 0x3f1f_bc28),
            (0x4534_2201, 0x40fe_ebcb),
            (0x447e_3b06, 0x40dd_95cc),
            (0x43f5_968e, 0x40c6_4c36),
            (0x3f85_d9de, 0x3d37_1486),
            (0x4083_b0fe, 0x3fb5_15b7),
            (0x4248_b475, 0x407a_983b),
            (0x3c3b_793d, 0xc08f_0db4),
            (0x3f80_0000, 0x0000_0000),
            (0x3f35_04f3, 0xbeb1_7218),
            (0x3f35_04f4, 0xbeb1_7215),
            (0x3f00_0000, 0xbf31_7218),
            (0x4000_0000, 0x3f31_7218),
            (0x2edb_e6ff, 0xc1b8_34f1),
            (0x0001_16c2, 0xc2b8_34f2),
            (0x7f61_b1e6, 0x42b1_3196),
            (0x4169_d598, 0x402b_a649),
        ] {
            assert_eq!(log(f32::from_bits(value)).to_bits(), bits, "{value:#x}");
        }
        assert_eq!(log(0.0), f32::NEG_INFINITY);
        assert_eq!(log(f32::INFINITY), f32::INFINITY);
        assert!(log(-1.0).is_nan() && log(f32::NAN).is_nan());
    }

    #[test]
    fn log_is_near_the_exact_logarithm() {
        for i in 1..4000 {
            let value = i as f32 * 0.00731;
            assert!((log(value) - value.ln()).abs() <= 3e-7 * value.ln().abs().max(1.0));
        }
    }
}
