//! The beta distribution with both parameters 0.6, which spaces sigmas in "Beta Sampling is All You Need" (Lee et al.,
//! 2024).

/// Both parameters of the distribution.
const A: f64 = 0.6;
/// Bound of Newton's iterations, which converge much earlier.
const MAX_ITERATIONS: usize = 60;

/// Computes the quantile of `probability`, 0 to 1: `scipy.stats.beta.ppf(probability, 0.6, 0.6)` up to a few units in
/// the last place of a float64.
pub fn quantile(probability: f64) -> f64 {
    if probability > 0.5 {
        return 1.0 - quantile(1.0 - probability);
    }
    if probability <= 0.0 {
        return 0.0;
    }
    // The distribution is symmetric, so half of its mass lies below one half.
    let target = probability * 2.0 * mass(0.5_f64.powf(A));
    // The mass below x is convex in u = x^A and at least u / A: Newton's method approaches
    // the root from the right and cannot pass it.
    let mut u = A * target;
    for _ in 0..MAX_ITERATIONS {
        let slope = (1.0 - u.powf(1.0 / A)).powf(A - 1.0) / A;
        let next = u - (mass(u) - target) / slope;
        if next == u || (next - u).abs() < f64::EPSILON * 0.25 * u {
            break;
        }
        u = next;
    }
    u.powf(1.0 / A)
}

/// Computes ∫ t^(A−1) (1−t)^(A−1) dt from 0 to x = u^(1/A), at most one half: the power series of the second factor,
/// integrated term by term (DLMF 8.17.8). All terms are positive, so nothing cancels.
fn mass(u: f64) -> f64 {
    let x = u.powf(1.0 / A);
    let (mut coefficient, mut sum, mut n) = (1.0, 0.0, 0.0);
    loop {
        let term = coefficient / (A + n);
        sum += term;
        if term < f64::EPSILON * 0.01 * sum {
            return u * sum;
        }
        n += 1.0;
        coefficient *= (n - A) / n * x;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From scipy 1.17.1.
    const QUANTILES: [(f64, f64); 13] = [
        (1e-06, 1.8558824624053043e-10),
        (0.001, 1.855873851745199e-05),
        (0.02040816326530612, 0.002826505325987209),
        (0.1, 0.03958440558878085),
        (0.25, 0.17568037865269498),
        (0.3333333333333333, 0.2754132907776234),
        (0.49, 0.4861289142781599),
        (0.5, 0.5000000000000001),
        (0.625, 0.6706185042786161),
        (0.75, 0.824319621347305),
        (0.9, 0.9604155944112192),
        (0.9795918367346939, 0.9971734946740128),
        (0.999, 0.9999814412614826),
    ];

    #[test]
    fn quantile_equals_scipy() {
        for (probability, expected) in QUANTILES {
            let quantile = quantile(probability);
            assert!(
                (quantile - expected).abs() <= 8.0 * f64::EPSILON * expected,
                "{probability}: expected {expected}, got {quantile}"
            );
        }
        assert_eq!((quantile(0.0), quantile(1.0)), (0.0, 1.0));
    }
}
