//! Slices whose lengths do not fit, and other misuse: an assertion fails before anything is read or written.

#![expect(clippy::panic, reason = "a test fails by panicking")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use diffusion_kernels::{
    Activation, Attention, Conv3x3, GroupNorm, LayerNorm, Level, Linear, Matrix, Method, Shape, Then, Values, Vectors,
    join_channels,
};

static VALUES: [f32; 4096] = [0.0; 4096];

/// Returns a slice of a length.
fn values(count: usize) -> &'static [f32] {
    &VALUES[..count]
}

/// Requires that `kernel` panics by an assertion and leaves its result of `len` values as it was, for each instruction
/// set.
#[track_caller]
fn assert_refused(what: &str, len: usize, kernel: impl Fn(Level, &mut [f32])) {
    for &level in Level::all() {
        let mut out = vec![7.0; len];
        let panic = match catch_unwind(AssertUnwindSafe(|| kernel(level, &mut out))) {
            Ok(()) => panic!("{what} is accepted by {}", level.name()),
            Err(panic) => panic,
        };
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or(panic.downcast_ref::<&str>().copied()).unwrap_or_default();
        assert!(message.starts_with("assertion"), "{what}: {message}");
        assert!(out.iter().all(|&value| value == 7.0), "{what}");
    }
}

/// A layer of 3 rows, 10 values and 6 columns: its result has 18 values.
fn linear() -> Linear<'static> {
    Linear {
        rows: 3,
        depth: 10,
        input: values(30),
        matrices: &[Matrix {
            values: Values::F16(&[0; 60]),
            bias: None,
        }],
        columns: 6,
        then: Then::Activate(Activation::Identity),
    }
}

#[test]
fn linear_slice_of_a_wrong_length_is_refused() {
    linear().compute(&mut [0.0; 18]);
    let refused = |what: &str, len: usize, linear: Linear<'_>| {
        assert_refused(what, len, |level, out| linear.compute_with(level, out));
    };
    for len in [0, 17, 19] {
        refused("a wrong result", len, linear());
    }
    for len in [29, 31] {
        let input = values(len);
        refused("a wrong input", 18, Linear { input, ..linear() });
        let then = Then::Add(values(len));
        refused("wrong values to add", 18, Linear { then, ..linear() });
    }
    for matrix in [
        Matrix {
            values: Values::F16(&[0; 59]),
            bias: None,
        },
        Matrix {
            values: Values::F32(values(61)),
            bias: None,
        },
        Matrix {
            values: Values::F32(values(60)),
            bias: Some(values(5)),
        },
    ] {
        let matrices = &[matrix];
        refused("a wrong matrix", 18, Linear { matrices, ..linear() });
    }
    let matrices = &[linear().matrices[0]; 2];
    let then = Then::Gate;
    refused(
        "a gate of two matrices",
        9,
        Linear {
            matrices,
            then,
            ..linear()
        },
    );
    let matrices = &[Matrix {
        values: Values::F16(&[0; 50]),
        bias: None,
    }];
    let odd = Linear {
        columns: 5,
        matrices,
        then,
        ..linear()
    };
    refused("a gate of an odd number of columns", 6, odd);
}

/// A convolution of 2 entries of 4x5 positions, from 16 channels to 3: its result has 120 values.
fn conv() -> Conv3x3<'static> {
    Conv3x3 {
        input: values(640),
        shape: Shape {
            batch: 2,
            height: 4,
            width: 5,
            channels: 16,
        },
        size: (4, 5),
        stride: 1,
        pad_end: false,
        weight: Values::F32(values(432)),
        outputs: 3,
        bias: None,
        add: None,
    }
}

#[test]
fn conv_slice_of_a_wrong_length_is_refused() {
    conv().compute(&mut [0.0; 120]);
    for method in [Method::Direct, Method::Winograd2, Method::Winograd4] {
        let refused = |what: &str, len: usize, conv: Conv3x3<'_>| {
            assert_refused(what, len, |level, out| conv.compute_with(level, method, out));
        };
        for len in [0, 119, 121] {
            refused("a wrong result", len, conv());
            let add = Some(values(len));
            refused("wrong values to add", 120, Conv3x3 { add, ..conv() });
        }
        for len in [0, 639, 641] {
            let input = values(len);
            refused("a wrong input", 120, Conv3x3 { input, ..conv() });
        }
        for len in [431, 433] {
            let weight = Values::F32(values(len));
            refused("wrong weights", 120, Conv3x3 { weight, ..conv() });
        }
        for len in [2, 4, 7] {
            let bias = Some(values(len));
            refused("a wrong bias", 120, Conv3x3 { bias, ..conv() });
        }
        refused("a stride of 3", 36, Conv3x3 { stride: 3, ..conv() });
    }
}

#[test]
fn conv_method_that_cannot_compute_is_refused() {
    for method in [Method::Winograd2, Method::Winograd4] {
        assert_refused("a stride of 2", 36, |level, out| {
            Conv3x3 { stride: 2, ..conv() }.compute_with(level, method, out);
        });
        assert_refused("a number of channels that is not whole", 120, |level, out| {
            let shape = Shape {
                channels: 15,
                ..conv().shape
            };
            let conv = Conv3x3 {
                shape,
                input: values(600),
                weight: Values::F32(values(405)),
                ..conv()
            };
            conv.compute_with(level, method, out);
        });
    }
}

#[test]
fn group_norm_slice_of_a_wrong_length_is_refused() {
    let norm = GroupNorm {
        input: values(240),
        shape: Shape {
            batch: 2,
            height: 4,
            width: 5,
            channels: 6,
        },
        groups: 3,
        weight: values(6),
        bias: values(6),
        eps: 1e-5,
        activation: Activation::Identity,
    };
    norm.compute(&mut [0.0; 240]);
    let refused = |what: &str, len: usize, norm: GroupNorm<'_>| {
        assert_refused(what, len, |level, out| norm.compute_with(level, out));
    };
    refused("a wrong result", 239, norm);
    refused("a wrong result", 241, norm);
    for len in [5, 7, 239] {
        let wrong = values(len);
        refused("a wrong input", 240, GroupNorm { input: wrong, ..norm });
        refused("a wrong weight", 240, GroupNorm { weight: wrong, ..norm });
        refused("a wrong bias", 240, GroupNorm { bias: wrong, ..norm });
    }
    for groups in [0, 4, 7] {
        refused(
            "groups that do not divide the channels",
            240,
            GroupNorm { groups, ..norm },
        );
    }
}

#[test]
fn layer_norm_slice_of_a_wrong_length_is_refused() {
    let norm = LayerNorm {
        input: values(30),
        weight: values(10),
        bias: values(10),
        eps: 1e-5,
    };
    norm.compute(&mut [0.0; 30]);
    let refused = |what: &str, len: usize, norm: LayerNorm<'_>| {
        assert_refused(what, len, |level, out| norm.compute_with(level, out));
    };
    refused("a wrong result", 29, norm);
    refused("a wrong result", 40, norm);
    let input = values(31);
    refused("a part of a row", 31, LayerNorm { input, ..norm });
    let bias = values(9);
    refused("a wrong bias", 30, LayerNorm { bias, ..norm });
    let (weight, bias) = (values(0), values(0));
    refused("rows of no values", 30, LayerNorm { weight, bias, ..norm });
}

#[test]
fn attention_slice_of_a_wrong_length_is_refused() {
    let of = |count: usize| Vectors {
        values: values(count),
        entry_stride: 100,
        row_stride: 20,
    };
    // Two heads of 5 values: the last row of the second entry ends 10 values behind its start.
    let attention = Attention {
        query: of(100 + 2 * 20 + 10),
        key: of(100 + 4 * 20 + 10),
        value: of(100 + 4 * 20 + 10),
        batch: 2,
        heads: 2,
        head_size: 5,
        queries: 3,
        keys: 5,
        scale: 1.0,
        causal: false,
    };
    attention.compute(&mut [0.0; 60]);
    let refused = |what: &str, len: usize, attention: Attention<'_>| {
        assert_refused(what, len, |level, out| attention.compute_with(level, out));
    };
    refused("a wrong result", 59, attention);
    refused("a wrong result", 61, attention);
    let short = of(149);
    refused(
        "short queries",
        60,
        Attention {
            query: short,
            ..attention
        },
    );
    let short = of(189);
    refused(
        "short keys",
        60,
        Attention {
            key: short,
            ..attention
        },
    );
    refused(
        "short values",
        60,
        Attention {
            value: short,
            ..attention
        },
    );
    refused("no keys", 60, Attention { keys: 0, ..attention });
}

#[test]
#[should_panic(expected = "assertion failed")]
fn join_channels_sides_of_other_rows_are_refused() {
    join_channels(values(20), 2, values(33), 3, &mut [0.0; 50]);
}

#[test]
#[should_panic(expected = "assertion failed")]
fn join_channels_part_of_a_row_is_refused() {
    join_channels(values(20), 2, values(30), 3, &mut [0.0; 51]);
}

#[test]
#[should_panic(expected = "assertion failed")]
fn join_channels_of_no_channels_are_refused() {
    join_channels(&[], 0, &[], 0, &mut []);
}
