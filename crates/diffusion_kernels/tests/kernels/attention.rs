//! Attention.

use diffusion_kernels::{Attention, Level, Vectors};
use proptest::prelude::*;

use crate::support::{Random, assert_close, assert_same_bytes, cases, on_each_level, on_one_thread};

/// The largest error, relative to the largest result.
const TOLERANCE: f64 = 4e-6;

/// The shape of an attention.
#[derive(Clone, Copy, Debug)]
struct Config {
    batch: usize,
    heads: usize,
    head_size: usize,
    queries: usize,
    keys: usize,
    causal: bool,
}

/// Vectors in one buffer, and where they are in it.
#[derive(Clone, Copy, Debug)]
struct Place {
    start: usize,
    entry_stride: usize,
    row_stride: usize,
}

/// An attention whose queries, keys and values are in one buffer.
struct Case {
    config: Config,
    scale: f32,
    buffer: Vec<f32>,
    places: [Place; 3],
}

impl Case {
    /// Puts queries, keys and values one after the other.
    fn apart(seed: u64, config: Config) -> Self {
        let size = config.heads * config.head_size;
        let (queries, keys) = (config.batch * config.queries * size, config.batch * config.keys * size);
        let place = |start: usize, rows: usize| Place {
            start,
            entry_stride: rows * size,
            row_stride: size,
        };
        Self {
            config,
            scale: 1.0 / (config.head_size as f32).sqrt(),
            buffer: Random::new(seed).values(queries + 2 * keys),
            places: [
                place(0, config.queries),
                place(queries, config.keys),
                place(queries + keys, config.keys),
            ],
        }
    }

    /// Puts query, key and value of a position side by side, as a fused projection does, with `gap` values behind.
    fn fused(seed: u64, config: Config, gap: usize) -> Self {
        assert_eq!(config.queries, config.keys);
        let size = config.heads * config.head_size;
        let place = |index: usize| Place {
            start: index * size,
            entry_stride: config.queries * (3 * size + gap),
            row_stride: 3 * size + gap,
        };
        let mut buffer = Random::new(seed).values(config.batch * config.queries * (3 * size + gap));
        buffer.truncate(buffer.len() - gap);
        buffer.shrink_to_fit();
        Self {
            config,
            scale: 1.0 / (config.head_size as f32).sqrt(),
            buffer,
            places: [place(0), place(1), place(2)],
        }
    }

    fn len(&self) -> usize {
        let Config {
            batch,
            heads,
            head_size,
            queries,
            ..
        } = self.config;
        batch * queries * heads * head_size
    }

    /// Computes some of the entries.
    fn compute(&self, level: Level, entries: std::ops::Range<usize>) -> Vec<f32> {
        let Config {
            batch,
            heads,
            head_size,
            queries,
            keys,
            causal,
        } = self.config;
        let [query, key, value] = self.places.map(|place| Vectors {
            values: &self.buffer[place.start + entries.start * place.entry_stride..],
            entry_stride: place.entry_stride,
            row_stride: place.row_stride,
        });
        let mut out = vec![f32::NAN; self.len() / batch * entries.len()];
        let attention = Attention {
            query,
            key,
            value,
            batch: entries.len(),
            heads,
            head_size,
            queries,
            keys,
            scale: self.scale,
            causal,
        };
        attention.compute_with(level, &mut out);
        out
    }

    fn all(&self, level: Level) -> Vec<f32> {
        self.compute(level, 0..self.config.batch)
    }

    /// The position of a value in the buffer: of the queries, the keys or the values.
    fn at(&self, which: usize, entry: usize, row: usize, head: usize, i: usize) -> usize {
        let place = self.places[which];
        place.start + entry * place.entry_stride + row * place.row_stride + head * self.config.head_size + i
    }

    /// The twin.
    fn expected(&self) -> Vec<f64> {
        let Config {
            batch,
            heads,
            head_size,
            queries,
            keys,
            causal,
        } = self.config;
        let value = |which: usize, entry: usize, row: usize, head: usize, i: usize| {
            f64::from(self.buffer[self.at(which, entry, row, head, i)])
        };
        let mut expected = Vec::new();
        for entry in 0..batch {
            for query in 0..queries {
                for head in 0..heads {
                    let visible = if causal { keys.min(query + 1) } else { keys };
                    let score = |key: usize| {
                        let products =
                            (0..head_size).map(|i| value(0, entry, query, head, i) * value(1, entry, key, head, i));
                        products.sum::<f64>() * f64::from(self.scale)
                    };
                    let scores: Vec<_> = (0..visible).map(score).collect();
                    let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                    let weights: Vec<_> = scores.iter().map(|score| (score - largest).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    for i in 0..head_size {
                        let sum: f64 = (0..visible)
                            .map(|key| weights[key] * value(2, entry, key, head, i))
                            .sum();
                        expected.push(sum / total);
                    }
                }
            }
        }
        expected
    }

    #[track_caller]
    fn check(&self) {
        let expected = self.expected();
        for (level, out) in on_each_level(self.len(), |level, out| out.copy_from_slice(&self.all(level))) {
            assert_close(
                format!("{} {:?}", level.name(), self.config),
                &out,
                &expected,
                0.0,
                TOLERANCE,
            );
        }
    }
}

/// Small enough for Miri, as are all tests that begin with `small`.
#[test]
fn small_attention_matches_the_twin() {
    let mut config = Config {
        batch: 2,
        heads: 2,
        head_size: 9,
        queries: 7,
        keys: 9,
        causal: false,
    };
    Case::apart(1, config).check();
    config.keys = 7;
    config.causal = true;
    Case::fused(2, config, 3).check();
}

#[test]
fn attention_sizes_around_the_blocks_match_the_twin() {
    let mut seed = 0;
    for head_size in [1, 5, 8, 33, 40, 64, 80] {
        for queries in [1, 7, 24, 25, 60] {
            for keys in [1, 8, 17, 77, 256, 257, 300] {
                for causal in [false, true] {
                    seed += 1;
                    let config = Config {
                        batch: 1,
                        heads: 2,
                        head_size,
                        queries,
                        keys,
                        causal,
                    };
                    Case::apart(seed, config).check();
                }
            }
        }
    }
}

#[test]
fn attention_more_queries_than_a_task_match_the_twin() {
    for causal in [false, true] {
        let config = Config {
            batch: 1,
            heads: 1,
            head_size: 8,
            queries: 2100,
            keys: 530,
            causal,
        };
        Case::apart(1, config).check();
    }
}

#[test]
fn attention_of_a_fused_buffer_matches_the_twin() {
    for (head_size, rows) in [(8, 1), (40, 77), (64, 300), (80, 20)] {
        for causal in [false, true] {
            for gap in [0, 5] {
                let config = Config {
                    batch: 3,
                    heads: 3,
                    head_size,
                    queries: rows,
                    keys: rows,
                    causal,
                };
                Case::fused(1, config, gap).check();
            }
        }
    }
}

/// Every block of keys has larger scores than the one before, or smaller ones.
#[test]
fn attention_scores_that_grow_or_fall_match_the_twin() {
    for growth in [1.0, -1.0] {
        for magnitude in [1.0, 20.0, 300.0] {
            let config = Config {
                batch: 1,
                heads: 1,
                head_size: 8,
                queries: 30,
                keys: 800,
                causal: false,
            };
            let mut case = Case::apart(1, config);
            case.scale = 1.0;
            // The first value of a query times that of a key is the largest part of the score.
            for query in 0..config.queries {
                let at = case.at(0, 0, query, 0, 0);
                case.buffer[at] = growth;
            }
            for key in 0..config.keys {
                let at = case.at(1, 0, key, 0, 0);
                case.buffer[at] = magnitude * key as f32 / config.keys as f32;
            }
            let expected = case.expected();
            for &level in Level::all() {
                // The scores themselves are rounded to 2⁻²⁴ of their magnitude.
                let tolerance = TOLERANCE + f64::from(magnitude) * 1.2e-7;
                let what = format!("{} {growth} {magnitude}", level.name());
                assert_close(what, &case.all(level), &expected, 0.0, tolerance);
            }
        }
    }
}

#[test]
fn attention_of_equal_keys_is_the_mean_of_the_values() {
    let config = Config {
        batch: 1,
        heads: 1,
        head_size: 8,
        queries: 3,
        keys: 300,
        causal: false,
    };
    for score in [0.0, 1e4, -1e4] {
        let mut case = Case::apart(1, config);
        case.scale = 1.0;
        let (query, key) = (case.places[0].start, case.places[1].start);
        case.buffer[query..query + 3 * 8].fill(0.0);
        case.buffer[key..key + 300 * 8].fill(0.0);
        for row in 0..300 {
            case.buffer[key + row * 8] = 1.0;
        }
        for row in 0..3 {
            case.buffer[query + row * 8] = score;
        }
        case.check();
    }
}

/// A weight of a key that a query must not see is 0, however large its value is.
#[test]
fn attention_causal_later_keys_do_not_matter() {
    for (queries, keys) in [(30, 30), (300, 300), (300, 40)] {
        let config = Config {
            batch: 1,
            heads: 1,
            head_size: 8,
            queries,
            keys,
            causal: true,
        };
        let case = Case::apart(1, config);
        for &level in Level::all() {
            let clean = case.all(level);
            for last in [0, 10, 25, keys - 2] {
                let mut changed = Case::apart(1, config);
                for key in last + 1..keys {
                    for i in 0..8 {
                        let (at, value_at) = (changed.at(1, 0, key, 0, i), changed.at(2, 0, key, 0, i));
                        changed.buffer[at] = 100.0;
                        changed.buffer[value_at] = 1e36;
                    }
                }
                let what = format!("{} {queries} {keys} {last}", level.name());
                assert_same_bytes(what, &changed.all(level)[..(last + 1) * 8], &clean[..(last + 1) * 8]);
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn attention_random_shapes_match_the_twin(
        seed in any::<u64>(),
        batch in 1..4_usize,
        heads in 1..4_usize,
        head_size in 1..90_usize,
        queries in 1..70_usize,
        keys in 1..320_usize,
        causal in any::<bool>(),
    ) {
        Case::apart(seed, Config { batch, heads, head_size, queries, keys, causal }).check();
    }

    #[test]
    fn attention_entry_alone_has_the_bytes_that_it_has_among_others(
        seed in any::<u64>(),
        heads in 1..4_usize,
        head_size in 1..90_usize,
        rows in 1..320_usize,
        causal in any::<bool>(),
    ) {
        let config = Config { batch: 3, heads, head_size, queries: rows, keys: rows, causal };
        let mut case = Case::fused(seed, config, 3);
        // What the first entry holds must not matter, either.
        case.buffer[..case.places[0].entry_stride].fill(f32::NAN);
        for &level in Level::all() {
            let all = case.all(level);
            let len = all.len() / 3;
            for entry in 1..3 {
                let alone = case.compute(level, entry..entry + 1);
                assert_same_bytes(format!("{} {config:?}", level.name()), &alone, &all[entry * len..][..len]);
            }
        }
    }
}

#[test]
fn attention_one_thread_gives_the_bytes_of_all_threads() {
    for causal in [false, true] {
        for (queries, keys) in [(1, 300), (77, 77), (500, 520), (1100, 30)] {
            let config = Config {
                batch: 1,
                heads: 1,
                head_size: 20,
                queries,
                keys,
                causal,
            };
            let mut case = Case::apart(1, config);
            // The first block of keys has no values: what counts of a later key that is not visible, however little, is
            // seen.
            let first_value = case.places[2].start;
            case.buffer[first_value..first_value + 20 * keys.min(256)].fill(0.0);
            for &level in Level::all() {
                let alone = on_one_thread(|| case.all(level));
                assert_same_bytes(format!("{} {config:?}", level.name()), &case.all(level), &alone);
            }
        }
    }
}

#[test]
fn attention_query_key_or_value_that_is_nan_gives_nan() {
    let config = Config {
        batch: 1,
        heads: 1,
        head_size: 8,
        queries: 30,
        keys: 300,
        causal: false,
    };
    for &level in Level::all() {
        let clean = Case::apart(1, config).all(level);
        for row in [0, 7, 13, 29] {
            let mut case = Case::apart(1, config);
            let at = case.at(0, 0, row, 0, 3);
            case.buffer[at] = f32::NAN;
            let out = case.all(level);
            assert!(
                out[row * 8..][..8].iter().all(|value| value.is_nan()),
                "{} query {row}",
                level.name()
            );
            assert_same_bytes(level.name(), &out[..row * 8], &clean[..row * 8]);
            assert_same_bytes(level.name(), &out[(row + 1) * 8..], &clean[(row + 1) * 8..]);
        }
        for key in [0, 7, 15, 250, 255, 256, 299] {
            let mut case = Case::apart(1, config);
            let at = case.at(1, 0, key, 0, 3);
            case.buffer[at] = f32::NAN;
            assert!(
                case.all(level).iter().all(|value| value.is_nan()),
                "{} key {key}",
                level.name()
            );
            let mut case = Case::apart(1, config);
            let at = case.at(2, 0, key, 0, 3);
            case.buffer[at] = f32::NAN;
            for (at, value) in case.all(level).iter().enumerate() {
                assert_eq!(value.is_nan(), at % 8 == 3, "{} value {key}", level.name());
            }
        }
    }
}

/// A thread uses its buffers again from call to call.
#[test]
fn attention_after_a_call_with_nan_gives_the_bytes_of_before() {
    on_one_thread(|| {
        for (head_size, rows) in [(5, 3), (40, 77), (33, 300)] {
            let config = Config {
                batch: 1,
                heads: 1,
                head_size,
                queries: rows,
                keys: rows,
                causal: true,
            };
            let case = Case::apart(1, config);
            let mut bad = Case::apart(1, config);
            bad.buffer.fill(f32::NAN);
            for &level in Level::all() {
                let before = case.all(level);
                assert!(bad.all(level).iter().all(|value| value.is_nan()), "{}", level.name());
                assert_same_bytes(level.name(), &case.all(level), &before);
            }
        }
    });
}
