//! The beta distribution whose two parameters are 0.6, by which "Beta Sampling is All You Need" (Lee
//! et al., 2024) spaces sigmas.

/// Both parameters.
const A: f64 = 0.6;
/// Newton's iterations stop long before.
const MAX_ITERATIONS: usize = 60;

/// The quantile of `probability`, 0 to 1: `scipy.stats.beta.ppf(probability, 0.6, 0.6)`, from which it
/// differs by some units in the last place of a float64.
pub fn quantile(probability: f64) -> f64 {
    if probability > 0.5 {
        return 1.0 - quantile(1.0 - probability);
    }
    if probability <= 0.0 {
        return 0.0;
    }
    // The distribution is its own mirror image, so half of its mass lies below one half.
    let target = probability * 2.0 * mass(0.5_f64.powf(A));
    // The mass below x is convex in u = x^A and at least u / A: Newton's method comes down to the
    // root from the right and cannot pass it.
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

/// ∫ t^(A−1) (1−t)^(A−1) dt from 0 to x = u^(1/A), at most one half: the power series of the second
/// factor, term by term (DLMF 8.17.8). All terms are positive, so nothing cancels.
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
    fn quantiles_are_scipys() {
        for (probability, theirs) in QUANTILES {
            let ours = quantile(probability);
            assert!(
                (ours - theirs).abs() <= 8.0 * f64::EPSILON * theirs,
                "{probability}: {ours} is not {theirs}"
            );
        }
        assert_eq!((quantile(0.0), quantile(1.0)), (0.0, 1.0));
    }
}
