//! Kernels of several threads at once.

use std::thread;

use diffusion_kernels::{Activation, Conv3x3, Level, Linear, Matrix, Shape, Then, Values, pool};

use crate::support::{Random, assert_same_bytes};

/// Computes a convolution and a linear layer of its result, of random values.
fn layers(seed: u64, level: Level) -> Vec<f32> {
    let mut random = Random::new(seed);
    let side = 9 + seed as usize % 8;
    let (input, weight) = (random.values(side * side * 32), random.values(40 * 32 * 9));
    let conv = Conv3x3 {
        input: &input,
        shape: Shape {
            batch: 1,
            height: side,
            width: side,
            channels: 32,
        },
        size: (side, side),
        stride: 1,
        pad_end: false,
        weight: Values::F32(&weight),
        outputs: 40,
        bias: None,
        add: None,
    };
    let mut map = vec![f32::NAN; side * side * 40];
    conv.compute_with(level, conv.method(level), &mut map);
    let weight = random.values(50 * 40);
    let linear = Linear {
        rows: side * side,
        depth: 40,
        input: &map,
        matrices: &[Matrix {
            values: Values::F32(&weight),
            bias: None,
        }],
        columns: 50,
        then: Then::Activate(Activation::Silu),
    };
    let mut out = vec![f32::NAN; side * side * 50];
    linear.compute_with(level, &mut out);
    out
}

#[test]
fn kernels_of_several_threads_at_once_give_the_bytes_that_they_give_alone() {
    for &level in Level::all() {
        let alone: Vec<_> = (0..6).map(|seed| layers(seed, level)).collect();
        thread::scope(|scope| {
            for (seed, alone) in alone.iter().enumerate() {
                scope.spawn(move || {
                    // Two of the callers compute by themselves.
                    pool::set_thread_limit(seed % 3);
                    for _ in 0..10 {
                        assert_same_bytes(level.name(), &layers(seed as u64, level), alone);
                    }
                });
            }
        });
    }
}

#[test]
fn kernels_in_tasks_give_the_bytes_that_they_give_outside() {
    let level = Level::best();
    let alone: Vec<_> = (0..4).map(|seed| layers(seed, level)).collect();
    pool::for_each(8, |number| {
        assert_same_bytes("in a task", &layers(number as u64 % 4, level), &alone[number % 4])
    });
}

#[test]
fn kernel_after_a_task_that_panicked_gives_the_same_bytes() {
    let level = Level::best();
    let alone = layers(1, level);
    let result = std::panic::catch_unwind(|| {
        pool::for_each(4, |number| {
            layers(number as u64, level);
            assert!(number != 2, "as armed");
        });
    });
    assert!(result.is_err());
    assert_same_bytes("after a panic", &layers(1, level), &alone);
}
