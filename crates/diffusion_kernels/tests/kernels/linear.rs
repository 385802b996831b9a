//! Linear layers.

use diffusion_kernels::{Activation, Level, Linear, Matrix, Then};
use proptest::prelude::*;

use crate::support::{
    DTYPES, Dtype, Random, Weights, activate, assert_close, assert_same_bytes, cases, on_each_level, on_one_thread,
};

/// The largest error of a sum, relative to the largest result.
const TOLERANCE: f64 = 3e-6;

/// What follows the sums.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Activate(Activation),
    Add,
    Gate,
}

const KINDS: [Kind; 6] = [
    Kind::Activate(Activation::Identity),
    Kind::Activate(Activation::Silu),
    Kind::Activate(Activation::Gelu),
    Kind::Activate(Activation::QuickGelu),
    Kind::Add,
    Kind::Gate,
];

/// A layer and its values.
struct Case {
    rows: usize,
    depth: usize,
    columns: usize,
    kind: Kind,
    input: Vec<f32>,
    matrices: Vec<(Weights, Option<Vec<f32>>)>,
    add: Vec<f32>,
}

impl Case {
    /// Makes random values. Every other matrix has a bias if `bias` is set, the first included.
    fn new(seed: u64, (rows, depth, columns): (usize, usize, usize), kind: Kind) -> Self {
        Self::with(seed, (rows, depth, columns), kind, 1, Dtype::F32, true)
    }

    fn with(
        seed: u64,
        (rows, depth, columns): (usize, usize, usize),
        kind: Kind,
        matrices: usize,
        dtype: Dtype,
        bias: bool,
    ) -> Self {
        let mut random = Random::new(seed);
        let matrix = |number: usize| {
            let weights = Weights::random(&mut random, dtype, columns * depth);
            let bias = (bias && number.is_multiple_of(2)).then(|| random.values(columns));
            (weights, bias)
        };
        let matrices: Vec<_> = (0..matrices).map(matrix).collect();
        Self {
            rows,
            depth,
            columns,
            kind,
            input: random.values(rows * depth),
            add: random.values(rows * columns * matrices.len()),
            matrices,
        }
    }

    fn result_columns(&self) -> usize {
        match self.kind {
            Kind::Gate => self.columns / 2,
            _ => self.columns * self.matrices.len(),
        }
    }

    /// Computes some of the rows.
    fn compute(&self, level: Level, rows: std::ops::Range<usize>, out: &mut [f32]) {
        let matrices: Vec<_> = self
            .matrices
            .iter()
            .map(|(weights, bias)| Matrix {
                values: weights.values(),
                bias: bias.as_deref(),
            })
            .collect();
        let columns = self.result_columns();
        let linear = Linear {
            rows: rows.len(),
            depth: self.depth,
            input: &self.input[rows.start * self.depth..rows.end * self.depth],
            matrices: &matrices,
            columns: self.columns,
            then: match self.kind {
                Kind::Activate(activation) => Then::Activate(activation),
                Kind::Add => Then::Add(&self.add[rows.start * columns..rows.end * columns]),
                Kind::Gate => Then::Gate,
            },
        };
        assert_eq!(linear.result_columns(), columns);
        linear.compute_with(level, out);
    }

    fn all(&self, level: Level) -> Vec<f32> {
        let mut out = vec![f32::NAN; self.rows * self.result_columns()];
        self.compute(level, 0..self.rows, &mut out);
        out
    }

    /// The twin.
    fn expected(&self) -> Vec<f64> {
        let mut sums = Vec::new();
        for row in 0..self.rows {
            for (weights, bias) in &self.matrices {
                for column in 0..self.columns {
                    let mut sum = bias.as_ref().map_or(0.0, |bias| f64::from(bias[column]));
                    for i in 0..self.depth {
                        let (a, b) = (self.input[row * self.depth + i], weights.wide[column * self.depth + i]);
                        sum += f64::from(a) * f64::from(b);
                    }
                    sums.push(sum);
                }
            }
        }
        match self.kind {
            Kind::Activate(activation) => sums.into_iter().map(|sum| activate(activation, sum)).collect(),
            Kind::Add => sums
                .iter()
                .zip(&self.add)
                .map(|(sum, &add)| sum + f64::from(add))
                .collect(),
            Kind::Gate => sums
                .chunks(self.columns)
                .flat_map(|row| {
                    let (values, gates) = row.split_at(self.columns / 2);
                    let gated = |(value, &gate): (&f64, &f64)| value * activate(Activation::Gelu, gate);
                    values.iter().zip(gates).map(gated)
                })
                .collect(),
        }
    }

    /// Returns the usual magnitude of a sum of products of numbers from -1 to 1.
    fn usual(&self) -> f64 {
        (self.depth as f64).sqrt() / 3.0
    }

    #[track_caller]
    fn check(&self) {
        let expected = self.expected();
        for (level, out) in on_each_level(expected.len(), |level, out| self.compute(level, 0..self.rows, out)) {
            let (rows, depth, columns, kind) = (self.rows, self.depth, self.columns, self.kind);
            let what = format!("{} rows {rows} depth {depth} columns {columns} {kind:?}", level.name());
            assert_close(what, &out, &expected, self.usual(), TOLERANCE);
        }
    }
}

#[test]
fn small_linear_matches_the_twin() {
    for (seed, kind) in KINDS.into_iter().enumerate() {
        let matrices = if kind == Kind::Gate { 1 } else { 2 };
        Case::with(seed as u64, (7, 9, 10), kind, matrices, DTYPES[seed % 3], true).check();
    }
}

#[test]
fn linear_sizes_around_the_blocks_match_the_twin() {
    let mut seed = 0;
    for rows in [1, 2, 5, 6, 7, 11, 12, 13, 24, 25, 96, 97, 193] {
        for depth in [1, 7, 8, 9, 40, 256, 257] {
            for columns in [1, 4, 8, 9, 16, 17, 24, 32, 33] {
                seed += 1;
                Case::new(seed, (rows, depth, columns), Kind::Activate(Activation::Identity)).check();
            }
        }
    }
}

#[test]
fn linear_more_groups_and_depth_than_a_block_match_the_twin() {
    for (seed, rows) in [1, 3, 96, 97].into_iter().enumerate() {
        for kind in KINDS {
            Case::new(seed as u64, (rows, 520, 406), kind).check();
        }
    }
}

#[test]
fn linear_without_depth_gives_the_bias() {
    Case::new(1, (3, 0, 20), Kind::Activate(Activation::Identity)).check();
    Case::new(1, (100, 0, 20), Kind::Add).check();
}

#[test]
fn linear_without_rows_or_matrices_does_nothing() {
    assert!(Case::new(1, (0, 5, 20), Kind::Gate).all(Level::best()).is_empty());
    let none = Case::with(1, (4, 5, 20), Kind::Add, 0, Dtype::F32, false);
    assert!(none.all(Level::best()).is_empty());
}

#[test]
fn linear_half_precision_extremes_are_exact() {
    // The smallest subnormal and the largest numbers of float16, and 0.
    let values = [5.960_464_5e-8, -6.0e-8, 6.1e-5, 65504.0, -65504.0, 0.0, 1.0, -2.0];
    for dtype in DTYPES {
        let mut case = Case::with(1, (8, 8, 24), Kind::Activate(Activation::Identity), 1, dtype, false);
        let weights = (0..24 * 8).map(|i| values[i / 8 % 8]).collect();
        case.matrices[0].0 = Weights::new(dtype, weights);
        case.input = (0..64).map(|i| if i / 8 == i % 8 { 1.0 } else { 0.0 }).collect();
        let expected: Vec<_> = (0..8 * 24).map(|i| case.matrices[0].0.wide[i % 24 * 8]).collect();
        for &level in Level::all() {
            assert_same_bytes(level.name(), &case.all(level), &expected);
        }
    }
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn linear_random_shapes_match_the_twin(
        seed in any::<u64>(),
        shape in (1..130_usize, 1..300_usize, 1..60_usize),
        kind in 0..KINDS.len(),
        matrices in 1..4_usize,
        dtype in 0..3_usize,
        bias in any::<bool>(),
    ) {
        let kind = KINDS[kind];
        let (matrices, columns) = if kind == Kind::Gate { (1, 2 * shape.2) } else { (matrices, shape.2) };
        Case::with(seed, (shape.0, shape.1, columns), kind, matrices, DTYPES[dtype], bias).check();
    }

    #[test]
    fn linear_row_alone_has_the_bytes_that_it_has_among_others(
        seed in any::<u64>(),
        shape in (2..220_usize, 1..300_usize, 1..60_usize),
        kind in 0..KINDS.len(),
        dtype in 0..3_usize,
    ) {
        let case = Case::with(seed, (shape.0, shape.1, 2 * shape.2), KINDS[kind], 1, DTYPES[dtype], true);
        let columns = case.result_columns();
        for &level in Level::all() {
            let all = case.all(level);
            for row in [0, 1, case.rows / 2, case.rows - 1] {
                let mut alone = vec![f32::NAN; columns];
                case.compute(level, row..row + 1, &mut alone);
                assert_same_bytes(level.name(), &alone, &all[row * columns..][..columns]);
            }
            let mut rest = vec![f32::NAN; (case.rows - 1) * columns];
            case.compute(level, 1..case.rows, &mut rest);
            assert_same_bytes(level.name(), &rest, &all[columns..]);
        }
    }
}

#[test]
fn linear_one_thread_gives_the_bytes_of_all_threads() {
    for kind in KINDS {
        for (rows, depth, columns) in [(1, 300, 500), (130, 70, 500), (300, 300, 10), (7, 9, 4)] {
            let case = Case::new(1, (rows, depth, columns), kind);
            for &level in Level::all() {
                let alone = on_one_thread(|| case.all(level));
                assert_same_bytes(format!("{} {kind:?}", level.name()), &case.all(level), &alone);
            }
        }
    }
}

#[test]
fn linear_row_that_is_not_finite_leaves_the_others_as_they_are() {
    for kind in KINDS {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            for rows in [3, 13, 100] {
                let mut case = Case::new(1, (rows, 20, 22), kind);
                let columns = case.result_columns();
                for &level in Level::all() {
                    let clean = case.all(level);
                    for at in 0..20 {
                        case.input[20 + at] = bad;
                    }
                    let out = case.all(level);
                    let what = format!("{} {kind:?} {bad}", level.name());
                    assert_same_bytes(&what, &out[..columns], &clean[..columns]);
                    assert_same_bytes(&what, &out[2 * columns..], &clean[2 * columns..]);
                    if bad.is_nan() {
                        assert!(out[columns..2 * columns].iter().all(|value| value.is_nan()), "{what}");
                    }
                    case.input = Case::new(1, (rows, 20, 22), kind).input;
                }
            }
        }
    }
}
