//! Convolutions of 3x3.

use diffusion_kernels::{Conv3x3, Level, Method, Shape};
use proptest::prelude::*;

use crate::support::{
    DTYPES, Dtype, Random, Weights, assert_close, assert_same_bytes, cases, on_each_level, on_one_thread,
};

const METHODS: [Method; 3] = [Method::Direct, Method::Winograd2, Method::Winograd4];

/// The largest error of a method, relative to the largest result.
fn tolerance(method: Method) -> f64 {
    match method {
        Method::Direct => 4e-6,
        Method::Winograd2 => 2e-6,
        Method::Winograd4 => 3e-5,
    }
}

/// What is added to the sums.
#[derive(Clone, Copy, Debug)]
enum Bias {
    None,
    OfChannels,
    OfEntries,
}

const BIASES: [Bias; 3] = [Bias::None, Bias::OfChannels, Bias::OfEntries];

/// The shape of a convolution.
#[derive(Clone, Copy, Debug)]
struct Config {
    /// Batch, height, width and channels of the input.
    input: [usize; 4],
    size: (usize, usize),
    stride: usize,
    pad_end: bool,
    outputs: usize,
    dtype: Dtype,
    bias: Bias,
    add: bool,
}

impl Config {
    fn new(input: [usize; 4], outputs: usize) -> Self {
        Self {
            input,
            size: (input[1], input[2]),
            stride: 1,
            pad_end: false,
            outputs,
            dtype: Dtype::F32,
            bias: Bias::OfChannels,
            add: false,
        }
    }
}

/// A convolution and its values.
struct Case {
    config: Config,
    /// Height and width of the result.
    result: (usize, usize),
    input: Vec<f32>,
    weights: Weights,
    bias: Option<Vec<f32>>,
    add: Option<Vec<f32>>,
}

impl Case {
    fn new(seed: u64, config: Config) -> Self {
        let mut random = Random::new(seed);
        let Config {
            input, size, outputs, ..
        } = config;
        let [batch, height, width, channels] = input;
        // With a padding of 1 on both sides, or on one.
        let padding = if config.pad_end { 1 } else { 2 };
        let side = |side: usize| {
            (side + padding)
                .checked_sub(3)
                .map_or(0, |rest| rest / config.stride + 1)
        };
        let result = (side(size.0), side(size.1));
        Self {
            config,
            result,
            input: random.values(batch * height * width * channels),
            weights: Weights::random(&mut random, config.dtype, outputs * channels * 9),
            bias: match config.bias {
                Bias::None => None,
                Bias::OfChannels => Some(random.values(outputs)),
                Bias::OfEntries => Some(random.values(batch * outputs)),
            },
            add: config.add.then(|| random.values(batch * result.0 * result.1 * outputs)),
        }
    }

    /// The values of an entry of the result.
    fn entry_len(&self) -> usize {
        self.result.0 * self.result.1 * self.config.outputs
    }

    /// Returns the convolution of some entries.
    fn conv(&self, entries: std::ops::Range<usize>) -> Conv3x3<'_> {
        let Config { size, outputs, .. } = self.config;
        let [_, height, width, channels] = self.config.input;
        let part = |len: usize| entries.start * len..entries.end * len;
        Conv3x3 {
            input: &self.input[part(height * width * channels)],
            shape: Shape {
                batch: entries.len(),
                height,
                width,
                channels,
            },
            size,
            stride: self.config.stride,
            pad_end: self.config.pad_end,
            weight: self.weights.values(),
            outputs,
            bias: self.bias.as_deref().map(|bias| match self.config.bias {
                Bias::OfEntries => &bias[part(outputs)],
                _ => bias,
            }),
            add: self.add.as_deref().map(|add| &add[part(self.entry_len())]),
        }
    }

    /// Computes some of the entries.
    fn compute(&self, level: Level, method: Method, entries: std::ops::Range<usize>) -> Vec<f32> {
        let mut out = vec![f32::NAN; entries.len() * self.entry_len()];
        self.conv(entries).compute_with(level, method, &mut out);
        out
    }

    fn all(&self, level: Level, method: Method) -> Vec<f32> {
        self.compute(level, method, 0..self.config.input[0])
    }

    /// Returns the methods that can compute the convolution.
    fn methods(&self, level: Level) -> &'static [Method] {
        let Config {
            input, stride, pad_end, ..
        } = self.config;
        let only_direct = stride != 1 || pad_end || !input[3].is_multiple_of(level.lanes());
        &METHODS[..if only_direct { 1 } else { 3 }]
    }

    /// The twin.
    fn expected(&self) -> Vec<f64> {
        let Config {
            size,
            stride,
            pad_end,
            outputs,
            ..
        } = self.config;
        let [batch, height, width, channels] = self.config.input;
        let before = if pad_end { 0 } else { 1 };
        let mut expected = Vec::new();
        for entry in 0..batch {
            for line in 0..self.result.0 {
                for column in 0..self.result.1 {
                    for output in 0..outputs {
                        let mut sum = match (&self.bias, self.config.bias) {
                            (Some(bias), Bias::OfEntries) => f64::from(bias[entry * outputs + output]),
                            (Some(bias), _) => f64::from(bias[output]),
                            (None, _) => 0.0,
                        };
                        for tap in 0..9 {
                            let (i, j) = (line * stride + tap / 3, column * stride + tap % 3);
                            if i < before || j < before || i - before >= size.0 || j - before >= size.1 {
                                continue;
                            }
                            let i = enlarged_from(i - before, height, size.0);
                            let j = enlarged_from(j - before, width, size.1);
                            for channel in 0..channels {
                                let value = self.input[((entry * height + i) * width + j) * channels + channel];
                                let weight = self.weights.wide[(output * channels + channel) * 9 + tap];
                                sum += f64::from(value) * f64::from(weight);
                            }
                        }
                        sum += self.add.as_ref().map_or(0.0, |add| f64::from(add[expected.len()]));
                        expected.push(sum);
                    }
                }
            }
        }
        expected
    }

    /// Returns the usual magnitude of a sum of products of numbers from -1 to 1.
    fn usual(&self) -> f64 {
        (self.config.input[3] as f64 * 9.0).sqrt() / 3.0
    }

    #[track_caller]
    fn check(&self) {
        let expected = self.expected();
        for &level in Level::all() {
            assert_eq!(self.conv(0..self.config.input[0]).result_shape().len(), expected.len());
            for &method in self.methods(level) {
                let what = format!("{} {method:?} {:?}", level.name(), self.config);
                assert_close(
                    what,
                    &self.all(level, method),
                    &expected,
                    self.usual(),
                    tolerance(method),
                );
            }
        }
    }
}

/// Returns the position that an enlargement to `to` repeats at `index`: the whole part of `index · from / to`.
fn enlarged_from(index: usize, from: usize, to: usize) -> usize {
    index * from / to
}

#[test]
fn small_conv_matches_the_twin() {
    let mut config = Config::new([2, 3, 4, 8], 5);
    config.bias = Bias::OfEntries;
    config.add = true;
    config.dtype = Dtype::F16;
    Case::new(1, config).check();
    let mut config = Config::new([1, 4, 3, 3], 5);
    config.stride = 2;
    config.pad_end = true;
    config.dtype = Dtype::Bf16;
    Case::new(2, config).check();
    config.stride = 1;
    config.pad_end = false;
    config.size = (5, 4);
    Case::new(3, config).check();
}

#[test]
fn conv_maps_of_few_tiles_match_the_twin() {
    let mut seed = 0;
    for (height, width) in [(1, 1), (1, 2), (2, 1), (3, 3), (4, 4), (5, 3), (7, 9), (8, 8), (13, 6)] {
        for channels in [4, 8, 24, 32, 40] {
            for outputs in [1, 4, 8, 24, 33] {
                for batch in [1, 3] {
                    seed += 1;
                    let mut config = Config::new([batch, height, width, channels], outputs);
                    config.bias = BIASES[seed % 3];
                    config.add = seed.is_multiple_of(2);
                    config.dtype = DTYPES[seed / 3 % 3];
                    Case::new(seed as u64, config).check();
                }
            }
        }
    }
}

#[test]
fn conv_stride_2_matches_the_twin() {
    let mut seed = 0;
    for (height, width) in [(2, 2), (3, 2), (4, 7), (9, 9), (16, 11)] {
        for pad_end in [false, true] {
            for channels in [4, 8, 40] {
                for batch in [1, 3] {
                    seed += 1;
                    let mut config = Config::new([batch, height, width, channels], 24);
                    config.stride = 2;
                    config.pad_end = pad_end;
                    config.bias = BIASES[seed % 3];
                    config.add = seed.is_multiple_of(2);
                    Case::new(seed as u64, config).check();
                }
            }
        }
    }
}

#[test]
fn conv_enlarged_input_matches_the_twin() {
    let sizes = [
        ((1, 1), (2, 2)),
        ((2, 3), (4, 6)),
        ((3, 3), (5, 5)),
        ((3, 5), (5, 9)),
        ((4, 4), (7, 8)),
        ((5, 7), (5, 13)),
        ((9, 8), (18, 16)),
    ];
    for ((height, width), size) in sizes {
        for (channels, stride) in [(4, 1), (16, 1), (40, 1), (16, 2)] {
            let mut config = Config::new([2, height, width, channels], 20);
            config.size = size;
            config.stride = stride;
            config.bias = Bias::OfEntries;
            Case::new(1, config).check();
        }
    }
}

/// More channels than are transformed at a time, with few tiles and with many.
#[test]
fn conv_many_channels_match_the_twin() {
    for (height, width, channels, outputs) in [
        (3, 5, 64, 40),
        (3, 5, 72, 40),
        (5, 5, 160, 70),
        (16, 16, 208, 24),
        (33, 20, 80, 130),
        (9, 40, 128, 260),
    ] {
        let mut config = Config::new([1, height, width, channels], outputs);
        config.dtype = Dtype::F16;
        Case::new(1, config).check();
        config.input[3] = channels / 16 * 16 + 16;
        config.input[0] = 2;
        config.bias = Bias::OfEntries;
        Case::new(2, config).check();
    }
}

/// More tiles than are transformed at a time: about 6 MiB of transformed input.
#[test]
fn conv_many_tiles_match_the_twin() {
    // Of 4x4 and of 2x2 results; then so many channels that few tiles are already too many.
    for input in [[1, 72, 81, 128], [2, 70, 73, 64], [1, 34, 33, 512]] {
        Case::new(1, Config::new(input, 16)).check();
    }
}

#[test]
fn conv_chosen_method_can_compute_and_ignores_the_batch() {
    for side in [1, 2, 3, 4, 5, 7, 8, 9, 16] {
        for channels in [1, 3, 4, 8, 16, 40] {
            for outputs in [1, 4, 8, 16] {
                for (stride, pad_end) in [(1, false), (2, false), (2, true)] {
                    let mut config = Config::new([3, side, 4, channels], outputs);
                    config.stride = stride;
                    config.pad_end = pad_end;
                    let case = Case::new(1, config);
                    for &level in Level::all() {
                        let method = case.conv(0..3).method(level);
                        assert!(case.methods(level).contains(&method), "{config:?}");
                        assert_eq!(case.conv(0..1).method(level), method, "{config:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn conv_compute_uses_the_best_level_and_the_chosen_method() {
    let case = Case::new(1, Config::new([2, 9, 9, 16], 20));
    let mut out = vec![f32::NAN; 2 * case.entry_len()];
    case.conv(0..2).compute(&mut out);
    let level = Level::best();
    let expected = case.all(level, case.conv(0..2).method(level));
    assert_same_bytes("compute", &out, &expected);
}

#[test]
fn conv_without_entries_or_outputs_does_nothing() {
    for config in [Config::new([0, 5, 5, 16], 8), Config::new([2, 5, 5, 16], 0)] {
        let case = Case::new(1, config);
        for (_, out) in on_each_level(0, |level, _| drop(case.all(level, Method::Winograd4))) {
            assert!(out.is_empty());
        }
    }
}

proptest! {
    #![proptest_config(cases(120))]

    #[test]
    fn conv_random_shapes_match_the_twin(
        seed in any::<u64>(),
        shape in (1..4_usize, 1..20_usize, 1..20_usize, 1..7_usize, any::<bool>()),
        larger in (0..10_usize, 0..10_usize, any::<bool>()),
        stride in 1..3_usize,
        pad_end in any::<bool>(),
        outputs in 1..50_usize,
        dtype in 0..3_usize,
        bias in 0..3_usize,
        add in any::<bool>(),
    ) {
        let (batch, height, width, channels, whole) = shape;
        let channels = if whole { 8 * channels } else { channels };
        let size = if larger.2 { (height + larger.0, width + larger.1) } else { (height, width) };
        // The padding at the end is for stride 2 only, and for maps of at least 2x2.
        let pad_end = pad_end && stride == 2 && size.0 > 1 && size.1 > 1;
        let config = Config {
            input: [batch, height, width, channels],
            size,
            stride,
            pad_end,
            outputs,
            dtype: DTYPES[dtype],
            bias: BIASES[bias],
            add,
        };
        Case::new(seed, config).check();
    }

    #[test]
    fn conv_entry_alone_has_the_bytes_that_it_has_among_others(
        seed in any::<u64>(),
        shape in (1..20_usize, 1..20_usize, 1..10_usize),
        stride in 1..3_usize,
        outputs in 1..50_usize,
        bias in 0..3_usize,
    ) {
        let (height, width, channels) = shape;
        let mut config = Config::new([3, height, width, 16 * channels], outputs);
        config.stride = stride;
        config.bias = BIASES[bias];
        let mut case = Case::new(seed, config);
        // What the first entry holds must not matter, either.
        let entry = height * width * 16 * channels;
        case.input[..entry].fill(f32::NAN);
        for &level in Level::all() {
            for &method in case.methods(level) {
                let all = case.all(level, method);
                let len = case.entry_len();
                for entry in 1..3 {
                    let alone = case.compute(level, method, entry..entry + 1);
                    let what = format!("{} {method:?} {config:?}", level.name());
                    assert_same_bytes(what, &alone, &all[entry * len..][..len]);
                }
            }
        }
    }
}

/// The batch decides whether there are few tiles, and how many are transformed at a time.
#[test]
fn conv_entry_of_a_larger_map_has_the_bytes_that_it_has_alone() {
    for (height, width, channels) in [(8, 20, 160), (20, 21, 80), (16, 17, 512)] {
        let case = Case::new(1, Config::new([3, height, width, channels], 40));
        for &level in Level::all() {
            for &method in case.methods(level) {
                let all = case.all(level, method);
                let len = case.entry_len();
                for entry in 0..3 {
                    let alone = case.compute(level, method, entry..entry + 1);
                    let what = format!("{} {method:?} {:?}", level.name(), case.config);
                    assert_same_bytes(what, &alone, &all[entry * len..][..len]);
                }
            }
        }
    }
}

#[test]
fn conv_one_thread_gives_the_bytes_of_all_threads() {
    for (input, outputs) in [
        ([1, 5, 5, 160], 8),
        ([2, 33, 20, 80], 16),
        ([1, 40, 40, 32], 130),
        ([1, 1, 1, 16], 1),
    ] {
        for stride in [1, 2] {
            let mut config = Config::new(input, outputs);
            config.stride = stride;
            let case = Case::new(1, config);
            for &level in Level::all() {
                for &method in case.methods(level) {
                    let alone = on_one_thread(|| case.all(level, method));
                    let what = format!("{} {method:?} {config:?}", level.name());
                    assert_same_bytes(what, &case.all(level, method), &alone);
                }
            }
        }
    }
}

/// A thread uses its buffers again from call to call.
#[test]
fn conv_after_a_call_with_nan_gives_the_bytes_of_before() {
    on_one_thread(|| {
        for (height, width, channels, outputs) in [(5, 3, 16, 20), (5, 5, 160, 17), (21, 22, 80, 40)] {
            let case = Case::new(1, Config::new([1, height, width, channels], outputs));
            let mut bad = Case::new(1, Config::new([1, height, width, channels], outputs));
            bad.input.fill(f32::NAN);
            bad.weights = Weights::new(Dtype::F32, vec![f32::NAN; outputs * channels * 9]);
            for &level in Level::all() {
                for &method in case.methods(level) {
                    let before = case.all(level, method);
                    assert!(bad.all(level, method).iter().all(|value| value.is_nan()));
                    assert_same_bytes(
                        format!("{} {method:?}", level.name()),
                        &case.all(level, method),
                        &before,
                    );
                }
            }
        }
    });
}
