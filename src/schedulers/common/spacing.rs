//! Timesteps, and numpy's ways of spacing numbers.
//!
//! The rounding is numpy's: `linspace` multiplies a step and sets the end, `arange` multiplies the difference of its
//! first two numbers (`numpy/core/function_base.py`, `numpy/core/src/multiarray/arraytypes.c.src`).

use super::config::TimestepSpacing;
use diffusion_core::{Error, Result};

/// Checks that the number of steps is from 1 to `num_train_timesteps`.
///
/// # Errors
/// `InvalidArgument`, naming the argument.
pub fn check_num_inference_steps(steps: usize, num_train_timesteps: i64) -> Result<()> {
    if steps == 0 || i64::try_from(steps).is_ok_and(|steps| steps > num_train_timesteps) {
        return Err(Error::invalid_argument(format!(
            "gen_args: num_inference_steps: must be 1 to {num_train_timesteps}, the number of training timesteps"
        )));
    }
    Ok(())
}

/// Returns the timesteps of `steps` steps, cleanest first, as DDIM and PNDM space them (`set_timesteps` of diffusers'
/// `schedulers/scheduling_ddim.py`). `steps` is 1 to `train`, the number of training timesteps. `steps_offset` applies
/// to `leading` only.
pub fn ascending(spacing: TimestepSpacing, train: i64, steps: usize, steps_offset: i64) -> Vec<i64> {
    match spacing {
        TimestepSpacing::Linspace => rounded(&linspace(0.0, (train - 1) as f64, steps)),
        TimestepSpacing::Leading => {
            let ratio = train / steps as i64;
            // An offset beyond the range of i64 gives a timestep that the schedule refuses.
            (0..steps as i64)
                .map(|i| (i * ratio).saturating_add(steps_offset))
                .collect()
        }
        TimestepSpacing::Trailing => {
            let noisy = descending_to_zero(train as f64, train as f64 / steps as f64);
            rounded(&noisy).into_iter().rev().map(|t| t - 1).collect()
        }
    }
}

/// Returns the timesteps of `steps` steps, noisiest first, as the solvers in half log-SNR space them: the cleanest of
/// `steps + 1` is dropped (`set_timesteps` of diffusers' `schedulers/scheduling_dpmsolver_multistep.py`). `last` is the
/// number of training timesteps, out of `train`, that are not clipped as too noisy.
pub fn descending_without_cleanest(
    spacing: TimestepSpacing,
    train: i64,
    last: i64,
    steps: usize,
    steps_offset: i64,
) -> Vec<i64> {
    match spacing {
        TimestepSpacing::Linspace => {
            let ascending = rounded(&linspace(0.0, (last - 1) as f64, steps + 1));
            ascending.into_iter().skip(1).rev().collect()
        }
        TimestepSpacing::Leading => {
            let ratio = last / (steps as i64 + 1);
            let ascending = (1..=steps as i64).map(|i| (i * ratio).saturating_add(steps_offset));
            ascending.rev().collect()
        }
        TimestepSpacing::Trailing => {
            let noisy = descending_to_zero(last as f64, train as f64 / steps as f64);
            rounded(&noisy).into_iter().map(|t| t - 1).collect()
        }
    }
}

/// Computes `np.linspace(start, stop, count)`.
pub fn linspace(start: f64, stop: f64, count: usize) -> Vec<f64> {
    if count < 2 {
        return vec![start; count];
    }
    let step = (stop - start) / (count - 1) as f64;
    let mut values: Vec<f64> = (0..count).map(|i| i as f64 * step + start).collect();
    values[count - 1] = stop;
    values
}

/// Computes `np.arange(start, 0, -step)` for a positive `step`.
pub fn descending_to_zero(start: f64, step: f64) -> Vec<f64> {
    let count = (start / step).ceil().max(0.0) as usize;
    let difference = (start - step) - start;
    (0..count).map(|i| start + i as f64 * difference).collect()
}

/// Computes `np.round(values).astype(np.int64)`: to the nearest, halves to even.
pub fn rounded(values: &[f64]) -> Vec<i64> {
    values.iter().map(|value| value.round_ties_even() as i64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linspace_meets_its_ends_and_rounded_halves_go_to_even() {
        assert_eq!(linspace(0.0, 999.0, 4), [0.0, 333.0, 666.0, 999.0]);
        assert_eq!(linspace(5.0, 9.0, 1), [5.0]);
        assert_eq!(rounded(&[0.5, 1.5, 2.5, -0.5]), [0, 2, 2, 0]);
    }

    #[test]
    fn descending_to_zero_stops_before_zero() {
        assert_eq!(rounded(&descending_to_zero(1000.0, 1000.0 / 3.0)), [1000, 667, 333]);
        assert_eq!(descending_to_zero(1000.0, 250.0).len(), 4);
    }
}
