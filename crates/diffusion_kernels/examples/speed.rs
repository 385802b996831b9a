//! Prints the speed of the kernels for shapes of Stable Diffusion 2.1 at 512x512, of each instruction set:
//!
//! ```text
//! cargo run --release --package diffusion_kernels --example speed [THREADS]
//! ```
//!
//! Counts the products of the formula, so that a Winograd convolution can exceed what the processor multiplies.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "prints to a terminal, and fails by panicking"
)]

use std::time::Instant;

use diffusion_kernels::{
    Activation, Attention, Conv3x3, GroupNorm, Level, Linear, Matrix, Shape, Then, Values, Vectors, pool,
};

fn main() {
    let threads = std::env::args().nth(1).map_or(0, |threads| threads.parse().unwrap());
    pool::set_thread_limit(threads);
    println!("{} threads", pool::threads());
    for &level in Level::all().iter().rev() {
        println!("{}", level.name());
        for (side, channels, outputs) in [
            (64, 320, 320),
            (64, 960, 320),
            (32, 640, 640),
            (32, 1920, 640),
            (16, 1280, 1280),
            (16, 2560, 1280),
            (8, 1280, 1280),
            (8, 2560, 1280),
            (256, 256, 256),
        ] {
            conv(level, side, channels, outputs);
        }
        for (rows, depth, columns, gated) in [
            (8192, 320, 2560, true),
            (8192, 1280, 320, false),
            (8192, 320, 320, false),
            (2048, 640, 5120, true),
            (2048, 2560, 640, false),
            (512, 1280, 10240, true),
            (512, 5120, 1280, false),
            (128, 1280, 10240, true),
            (2, 1280, 1280, false),
        ] {
            linear(level, rows, depth, columns, gated);
        }
        for (heads, head_size, queries, keys) in [
            (5, 64, 4096, 4096),
            (10, 64, 1024, 1024),
            (20, 64, 256, 256),
            (5, 64, 4096, 77),
            (1, 512, 4096, 4096),
        ] {
            attention(level, heads, head_size, queries, keys);
        }
        for (side, channels) in [(64, 320), (64, 960), (16, 1280)] {
            norm(level, side, channels);
        }
    }
}

/// Values that are neither equal nor denormal.
fn values(len: usize) -> Vec<f32> {
    (0..len).map(|at| (at * 7919 % 1009) as f32 / 1009.0 - 0.5).collect()
}

/// The bits of float16 values.
fn halves(len: usize) -> Vec<u16> {
    (0..len)
        .map(|at| half::f16::from_f32((at * 7919 % 1009) as f32 / 1009.0 - 0.5).to_bits())
        .collect()
}

/// Prints the median of five runs.
fn measure(what: &str, operations: f64, mut run: impl FnMut()) {
    run();
    let mut seconds: Vec<f64> = (0..5)
        .map(|_| {
            let started = Instant::now();
            run();
            started.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    println!(
        "  {what:40} {:9.2} ms {:8.1} GFLOP/s",
        seconds[2] * 1e3,
        operations / seconds[2] / 1e9
    );
}

fn conv(level: Level, side: usize, channels: usize, outputs: usize) {
    let batch = if side > 64 { 1 } else { 2 };
    let shape = Shape {
        batch,
        height: side,
        width: side,
        channels,
    };
    let (input, weight, bias) = (values(shape.len()), halves(outputs * channels * 9), values(outputs));
    let mut out = vec![0.0; shape.positions() * outputs];
    let conv = Conv3x3 {
        input: &input,
        shape,
        size: (side, side),
        stride: 1,
        pad_end: false,
        weight: Values::F16(&weight),
        outputs,
        bias: Some(&bias),
        add: None,
    };
    let operations = 2.0 * (shape.positions() * channels * outputs * 9) as f64;
    let method = conv.method(level);
    measure(
        &format!("conv3x3 {side}x{side} {channels}-{outputs} {method:?}"),
        operations,
        || conv.compute_with(level, method, &mut out),
    );
}

fn linear(level: Level, rows: usize, depth: usize, columns: usize, gated: bool) {
    let (input, weight, bias) = (values(rows * depth), halves(columns * depth), values(columns));
    let matrices = [Matrix {
        values: Values::F16(&weight),
        bias: Some(&bias),
    }];
    let then = if gated {
        Then::Gate
    } else {
        Then::Activate(Activation::Identity)
    };
    let linear = Linear {
        rows,
        depth,
        input: &input,
        matrices: &matrices,
        columns,
        then,
    };
    let mut out = vec![0.0; rows * linear.result_columns()];
    let name = if gated { "gated linear" } else { "linear" };
    measure(
        &format!("{name} {rows}x{depth} {columns}"),
        2.0 * (rows * depth * columns) as f64,
        || linear.compute_with(level, &mut out),
    );
}

fn attention(level: Level, heads: usize, head_size: usize, queries: usize, keys: usize) {
    let (batch, size) = (2, heads * head_size);
    let (query, key) = (values(batch * queries * size), values(batch * keys * size));
    let vectors = |values, rows: usize| Vectors {
        values,
        entry_stride: rows * size,
        row_stride: size,
    };
    let attention = Attention {
        query: vectors(&query, queries),
        key: vectors(&key, keys),
        value: vectors(&key, keys),
        batch,
        heads,
        head_size,
        queries,
        keys,
        scale: (head_size as f32).sqrt().recip(),
        causal: false,
    };
    let mut out = vec![0.0; query.len()];
    let operations = 4.0 * (batch * queries * keys * size) as f64;
    measure(
        &format!("attention {heads}x{head_size} {queries}-{keys}"),
        operations,
        || attention.compute_with(level, &mut out),
    );
}

fn norm(level: Level, side: usize, channels: usize) {
    let shape = Shape {
        batch: 2,
        height: side,
        width: side,
        channels,
    };
    let (input, weight) = (values(shape.len()), values(channels));
    let mut out = vec![0.0; shape.len()];
    let norm = GroupNorm {
        input: &input,
        shape,
        groups: 32,
        eps: 1e-5,
        weight: &weight,
        bias: &weight,
        activation: Activation::Silu,
    };
    measure(
        &format!("group norm {side}x{side} {channels}"),
        8.0 * shape.len() as f64,
        || norm.compute_with(level, &mut out),
    );
}
