//! Maps side by side.

use diffusion_kernels::join_channels;

use crate::support::{Random, assert_same_bytes, on_one_thread};

#[test]
fn small_join_channels_puts_each_row_of_the_left_before_that_of_the_right() {
    let mut out = [f32::NAN; 9];
    join_channels(&[1.0, 2.0, 3.0], 1, &[4.0, 5.0, 6.0, 7.0, 8.0, 9.0], 2, &mut out);
    assert_eq!(out, [1.0, 4.0, 5.0, 2.0, 6.0, 7.0, 3.0, 8.0, 9.0]);
}

#[test]
fn join_channels_puts_each_row_of_the_left_before_that_of_the_right() {
    let mut random = Random::new(1);
    for rows in [0, 1, 2, 7, 1000, 5001] {
        for (left_size, right_size) in [(1, 1), (3, 8), (24, 1), (40, 8), (0, 5), (5, 0)] {
            let (left, right) = (random.values(rows * left_size), random.values(rows * right_size));
            let mut expected = Vec::new();
            for row in 0..rows {
                expected.extend_from_slice(&left[row * left_size..(row + 1) * left_size]);
                expected.extend_from_slice(&right[row * right_size..(row + 1) * right_size]);
            }
            let what = format!("{rows} rows of {left_size} and {right_size}");
            let mut out = vec![f32::NAN; expected.len()];
            join_channels(&left, left_size, &right, right_size, &mut out);
            assert_same_bytes(&what, &out, &expected);
            out.fill(f32::NAN);
            on_one_thread(|| join_channels(&left, left_size, &right, right_size, &mut out));
            assert_same_bytes(&what, &out, &expected);
        }
    }
}
