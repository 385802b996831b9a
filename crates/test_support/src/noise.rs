//! Standard normal noise with the values of `numpy.random.Generator(numpy.random.PCG64(seed)).standard_normal`.
//!
//! `SeedSequence` follows `numpy/random/bit_generator.pyx`, the sampling `random_standard_normal` in
//! `numpy/random/src/distributions/distributions.c`.

use std::sync::OnceLock;

use rand_core::Rng as _;
use rand_pcg::Pcg64;

const LAYERS: usize = 256;
const TWO_52: f64 = (1_u64 << 52) as f64;
/// Where the tail begins.
const R: f64 = 3.654_152_885_361_009;
/// Area of each layer under exp(-x^2 / 2); the lowest layer includes the tail.
const AREA: f64 = 0.004_928_673_233_974_655;

/// Noise of one seed.
pub struct Noise(Pcg64);

impl Noise {
    /// Seeds the generator.
    pub fn new(seed: u64) -> Self {
        let [a, b, c, d] = seed_sequence(seed).map(u128::from);
        Self(Pcg64::new(a << 64 | b, c << 64 | d))
    }

    /// Draws a number in [0, 1).
    fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Draws a standard normal number.
    ///
    /// numpy's tables differ from these by less than 1e-13 of their values, and so may the numbers.
    pub fn normal(&mut self) -> f64 {
        let tables = Tables::get();
        loop {
            let bits = self.0.next_u64();
            let layer = bits as usize % LAYERS;
            let negative = bits >> 8 & 1 == 1;
            let place = bits >> 9 & ((1 << 52) - 1);
            let sign = if negative { -1.0 } else { 1.0 };
            let x = sign * place as f64 * tables.width[layer];
            if place < tables.inside[layer] {
                return x;
            }
            if layer == 0 {
                // numpy takes the sign of the tail from another bit.
                let sign = if place >> 8 & 1 == 1 { -1.0 } else { 1.0 };
                loop {
                    let beyond = -(-self.uniform()).ln_1p() / R;
                    let y = -(-self.uniform()).ln_1p();
                    if y + y > beyond * beyond {
                        return sign * (R + beyond);
                    }
                }
            }
            let [above, below] = [tables.density[layer - 1], tables.density[layer]];
            if (above - below) * self.uniform() + below < (-0.5 * x * x).exp() {
                return x;
            }
        }
    }
}

/// The first four 64-bit words of numpy's `SeedSequence(seed).generate_state`.
fn seed_sequence(seed: u64) -> [u64; 4] {
    const WORDS: usize = 4;
    let hash = |value: u32, constant: &mut u32, multiplier: u32| {
        let value = value ^ *constant;
        *constant = constant.wrapping_mul(multiplier);
        let value = value.wrapping_mul(*constant);
        value ^ value >> 16
    };
    let mut constant = 0x43b0_d7e5;
    let mut pool = [seed as u32, (seed >> 32) as u32, 0, 0];
    for word in &mut pool {
        *word = hash(*word, &mut constant, 0x931e_8875);
    }
    for source in 0..WORDS {
        for target in (0..WORDS).filter(|&target| target != source) {
            let hashed = hash(pool[source], &mut constant, 0x931e_8875);
            let mixed = pool[target]
                .wrapping_mul(0xca01_f9dd)
                .wrapping_sub(hashed.wrapping_mul(0x4973_f715));
            pool[target] = mixed ^ mixed >> 16;
        }
    }
    let mut constant = 0x8b51_f9dd;
    let mut state = [0; 2 * WORDS];
    for (index, word) in state.iter_mut().enumerate() {
        *word = u64::from(hash(pool[index % WORDS], &mut constant, 0x58f3_8ded));
    }
    std::array::from_fn(|index| state[2 * index] | state[2 * index + 1] << 32)
}

/// The ziggurat of Marsaglia and Tsang (2000), "The Ziggurat Method for Generating Random Variables".
struct Tables {
    /// Where the part of each layer that is completely under the curve ends; times 2^52.
    inside: [u64; LAYERS],
    /// The width of each layer, divided by 2^52.
    width: [f64; LAYERS],
    /// exp(-x^2 / 2) at the end of each layer.
    density: [f64; LAYERS],
}

impl Tables {
    fn get() -> &'static Self {
        static TABLES: OnceLock<Tables> = OnceLock::new();
        TABLES.get_or_init(Self::new)
    }

    fn new() -> Self {
        let last = LAYERS - 1;
        let mut tables = Self {
            inside: [0; LAYERS],
            width: [0.0; LAYERS],
            density: [1.0; LAYERS],
        };
        let density = (-0.5 * R * R).exp();
        tables.density[last] = density;
        tables.width[last] = R / TWO_52;
        tables.width[0] = AREA / density / TWO_52;
        tables.inside[0] = (R * density / AREA * TWO_52) as u64;
        let mut outer = R;
        for layer in (1..last).rev() {
            let x = (-2.0 * (AREA / outer + tables.density[layer + 1]).ln()).sqrt();
            tables.inside[layer + 1] = (x / outer * TWO_52) as u64;
            tables.width[layer] = x / TWO_52;
            tables.density[layer] = (-0.5 * x * x).exp();
            outer = x;
        }
        tables
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_sequence_matches_numpy() {
        // numpy.random.SeedSequence(seed).generate_state(4, numpy.uint64)
        assert_eq!(seed_sequence(0), SEED_0);
        assert_eq!(seed_sequence(0x0123_4567_89ab_cdef), SEED_1);
    }

    #[test]
    fn normal_matches_numpy() {
        // Sums of chunks of a million numbers; tails and rejections are among them.
        let mut noise = Noise::new(7);
        for expected in FIRST {
            let difference = noise.normal() - expected;
            assert!(difference.abs() < 1e-13, "{difference:e}");
        }
        let (mut sum, mut largest) = (0.0, 0.0_f64);
        for _ in 0..1_000_000 {
            let value = noise.normal();
            sum += value;
            largest = largest.max(value.abs());
        }
        assert!((sum - SUM).abs() < 1e-8, "{sum}");
        assert!((largest - LARGEST).abs() < 1e-13, "{largest}");
    }

    const SEED_0: [u64; 4] = [
        0xdb2c_d7e7_b0f4_78be,
        0xabf4_641a_2c71_ba49,
        0x20c6_ed6d_9d7b_8d41,
        0x2c40_99de_223c_39d4,
    ];
    const SEED_1: [u64; 4] = [
        0xdb81_0720_c001_220a,
        0x0863_d28d_cdd7_fe5b,
        0x118b_9caa_dbd1_1bfa,
        0xa891_620f_04c1_6c5d,
    ];
    const FIRST: [f64; 4] = [
        0.0012301533574825742,
        0.2987455375084699,
        -0.2741378553622176,
        -0.8905918387572742,
    ];
    const SUM: f64 = -114.38427010334804;
    const LARGEST: f64 = 4.947871460149176;
}
