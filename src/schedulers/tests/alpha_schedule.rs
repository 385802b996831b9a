//! The classes that look ᾱ up by the timestep: DDIM, DDPM, PNDM, LCM and TCD.

use proptest::prelude::*;
use serde_json::{Value, json};
use tch::Tensor;

use super::support::{NoiseLevel, Trace, cases, config, distance, noise, options, run, run_to};
use crate::schedulers::{PredictionType, SamplingOptions};

/// A bounded function, and not a simple one, of the clean sample and the noise.
fn network(sample: &Tensor, level: NoiseLevel) -> Tensor {
    (sample * level.alpha).sin() * 0.7 + sample * (0.3 * level.sigma)
}

fn run_of(class: &str, options: &SamplingOptions, keys: &Value) -> Trace {
    run(config(class, keys).build(options).unwrap(), &noise(1), network)
}

proptest! {
    #![proptest_config(cases(200))]

    /// Timesteps descend, one for each step, and every sample is finite.
    #[test]
    fn timesteps_descend(
        class in prop::sample::select(&[
            "DDIMScheduler",
            "DDPMScheduler",
            "LCMScheduler",
            "PNDMScheduler",
            "TCDScheduler",
        ][..]),
        steps in 1usize..60,
        spacing in prop::sample::select(&["leading", "linspace", "trailing"][..]),
        steps_offset in 0..2,
        prediction in prop::sample::select(&["epsilon", "v_prediction"][..]),
    ) {
        let keys = json!({
            "timestep_spacing": spacing,
            "steps_offset": steps_offset,
            "prediction_type": prediction,
            "original_inference_steps": 60,
        });
        let trace = run_of(class, &options(steps), &keys);
        // PNDM takes its second timestep twice, if there are two.
        let again = usize::from(class == "PNDMScheduler" && steps > 1);
        prop_assert_eq!(trace.timesteps.len(), steps + again);
        prop_assert!(trace.timesteps.iter().all(|t| (0.0..=999.0).contains(t)));
        for (i, pair) in trace.timesteps.windows(2).enumerate() {
            prop_assert!(pair[0] > pair[1] || again == 1 && i == 1 && pair[0] == pair[1], "{pair:?}");
        }
        for sample in &trace.samples {
            prop_assert!(bool::try_from(sample.isfinite().all()).unwrap());
        }
    }

    /// DDIM with η = 1 is DDPM (Song et al., 2020, section 4.1): from the same noise both take the same path, up to
    /// rounding.
    #[test]
    fn ddim_eta_one_equals_ddpm(
        steps in 1usize..60,
        train in prop::sample::select(&[60, 100, 1000][..]),
        prediction in prop::sample::select(&["epsilon", "v_prediction", "sample"][..]),
    ) {
        // DDIM computes the next timestep from the ratio, which is right with leading spacing and no offset.
        let keys = json!({"num_train_timesteps": train, "prediction_type": prediction});
        let ddpm = run_of("DDPMScheduler", &options(steps), &keys);
        let noisy = SamplingOptions { eta: 1.0, ..options(steps) };
        let ddim = run_of("DDIMScheduler", &noisy, &keys);
        prop_assert_eq!(&ddim.timesteps, &ddpm.timesteps);
        for (step, (ddim, ddpm)) in ddim.samples.iter().zip(&ddpm.samples).enumerate() {
            let distance = distance(ddim, ddpm);
            prop_assert!(distance < 2e-3, "sample {step}: {distance}");
        }
    }

    /// One step of LCM returns the predicted clean sample, except for the boundary condition (Luo et al., 2023, equation
    /// 9): the weight of the sample is the data's σ² over (s·t)² + σ².
    #[test]
    fn lcm_one_step_equals_prediction(scaling in 1e-4..20.0) {
        let keys = json!({"timestep_scaling": scaling});
        let trace = run_of("LCMScheduler", &options(1), &keys);
        prop_assert_eq!(&trace.timesteps, &[999.0]);
        let (start, level) = (&trace.samples[0], trace.levels[0]);
        let predicted = (start - network(start, level) * level.sigma) / level.alpha;
        let scaled: f64 = 999.0 * scaling;
        let variance = scaled.powi(2) + 0.25;
        let expected = predicted * (scaled / variance.sqrt()) + start * (0.25 / variance);
        let distance = distance(trace.end(), &expected);
        prop_assert!(distance < 1e-4, "{distance}");
    }

    /// At γ = 1 every step of TCD removes all noise and adds new noise, as in LCM: over a network that knows the clean
    /// sample the next sample has only the noise drawn last.
    #[test]
    fn tcd_eta_one_forgets_earlier_noise(steps in 2usize..20) {
        let clean = noise(2);
        let noisy = SamplingOptions { eta: 1.0, ..options(steps) };
        let tcd = run_to(&clean, &config("TCDScheduler", &json!({})), &noisy, PredictionType::Epsilon);
        let lcm = run_to(&clean, &config("LCMScheduler", &json!({})), &options(steps), PredictionType::Epsilon);
        prop_assert_eq!(&tcd.timesteps, &lcm.timesteps);
        for step in 1..steps {
            // At timestep 0 LCM leaves no noise, TCD the noise of the first level.
            let distance = distance(&tcd.samples[step], &lcm.samples[step]);
            prop_assert!(distance < 0.15, "sample {step}: {distance}");
        }
    }
}
