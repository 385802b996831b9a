//! Properties of every class.

use proptest::prelude::*;
use serde_json::json;
use tch::{Kind, Tensor};

use super::support::{NoiseLevel, cases, cleanest, config, distance, largest, noise, options, run, run_to};
use crate::schedulers::PredictionType::{Epsilon, VPrediction};
use crate::schedulers::{PredictionType, names};
use crate::torch::Generator;

/// The classes that add noise by default.
const STOCHASTIC: [&str; 4] = [
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
];

/// The last sample over a network that knows the clean sample, given the noise in the first.
fn end(class: &str, clean: &Tensor, noise: &Tensor) -> Tensor {
    if matches!(class, "DEISMultistepScheduler" | "TCDScheduler") {
        // These classes end with the noise of the first training timestep.
        clean * cleanest().alpha + noise * cleanest().sigma
    } else {
        clean.shallow_clone()
    }
}

proptest! {
    #![proptest_config(cases(400))]

    /// Over a network that knows the clean sample every sampler reaches it in any number of steps: the predicted noise
    /// never changes, and no noise is left at the end. The spacing is `leading`, where the older classes compute the
    /// next timestep correctly.
    #[test]
    fn exact_network_reaches_clean_sample(
        class in prop::sample::select(names()),
        steps in 2usize..50,
    ) {
        let clean = noise(2);
        let config = config(class, &json!({
            "timestep_spacing": "leading",
            "original_inference_steps": 100,
        }));
        let trace = run_to(&clean, &config, &options(steps), PredictionType::Epsilon);
        prop_assert!(trace.timesteps.len() >= steps);
        let first = trace.levels[0].output(PredictionType::Epsilon, &clean, &trace.samples[0]);
        let distance = distance(trace.end(), &end(class, &clean, &first));
        prop_assert!(distance < 1e-3, "{class}: {distance}");
    }

    /// Over a network that knows the clean sample, the denoiser returns it after every call.
    #[test]
    fn denoiser_returns_what_an_exact_network_predicts(
        class in prop::sample::select(names()),
        steps in 2usize..30,
        prediction in prop::sample::select(&[("epsilon", Epsilon), ("v_prediction", VPrediction)][..]),
    ) {
        let (name, prediction) = prediction;
        let clean = noise(2);
        let config = config(class, &json!({"timestep_spacing": "leading", "prediction_type": name}));
        let denoiser = config.denoiser().unwrap();
        let mut scheduler = config.build(&options(steps)).unwrap();
        let mut generator = Generator::new(3).unwrap();
        let mut sample = noise(1) * scheduler.init_noise_sigma();
        for timestep in scheduler.timesteps().to_vec() {
            let output = NoiseLevel::of(scheduler.as_ref()).output(prediction, &clean, &sample);
            let input = scheduler.scale_model_input(&sample).unwrap();
            let predicted = denoiser.pred_original_sample(timestep, &input, &output).unwrap();
            let distance = distance(&predicted, &clean);
            prop_assert!(distance < 0.02, "{class} at {timestep}: {distance}");
            sample = scheduler.step(&output, &sample, &mut generator).unwrap();
        }
    }

    /// A run in half precision keeps its dtype and stays near the run in single precision.
    #[test]
    fn half_precision_run_stays_half(class in prop::sample::select(names()), steps in 2usize..20) {
        let config = config(class, &json!({"timestep_spacing": "leading"}));
        let start = noise(1);
        let traced = |kind: Kind| {
            run(config.build(&options(steps)).unwrap(), &start.to_kind(kind), |sample, level| {
                sample * (level.sigma / level.alpha.hypot(level.sigma))
            })
        };
        let (halves, singles) = (traced(Kind::Half), traced(Kind::Float));
        for (half, single) in halves.samples.iter().zip(&singles.samples) {
            prop_assert_eq!(half.kind(), Kind::Half);
            // The numbers that a class draws depend on the dtype.
            if !STOCHASTIC.contains(&class) {
                let distance = distance(half, single) / largest(single).max(1.0);
                prop_assert!(distance < 0.1, "{class}: {distance}");
            }
        }
    }
}
