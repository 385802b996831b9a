//! What holds for every class.

use proptest::prelude::*;
use serde_json::json;
use tch::{Kind, Tensor};

use super::support::{cases, cleanest, config, distance, largest, noise, plan, run, run_to};
use crate::schedulers::{PredictionType, names};

/// Those that add noise with every switch at its default.
const STOCHASTIC: [&str; 4] = [
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
];

/// Where the class ends over a network that knows the clean sample, with the noise in it.
fn end(class: &str, clean: &Tensor, noise: &Tensor) -> Tensor {
    if matches!(class, "DEISMultistepScheduler" | "TCDScheduler") {
        // They end at the first training timestep rather than without noise.
        clean * cleanest().alpha + noise * cleanest().sigma
    } else {
        clean.shallow_clone()
    }
}

proptest! {
    #![proptest_config(cases(400))]

    /// Over a network that knows the clean sample every sampler arrives at it, whatever the number of
    /// steps: the noise in the sample then is the same all along, and no noise is left at the end.
    /// With `leading` spacing, since the older classes guess the timestep that comes next and are right
    /// with that one.
    #[test]
    fn a_network_that_knows_the_clean_sample_is_followed_to_it(
        class in prop::sample::select(names()),
        steps in 2usize..50,
    ) {
        let clean = noise(2);
        let config = config(class, &json!({
            "timestep_spacing": "leading",
            "original_inference_steps": 100,
        }));
        let trace = run_to(&clean, &config, &plan(steps), PredictionType::Epsilon);
        prop_assert!(trace.timesteps.len() >= steps);
        let first = trace.levels[0].output(PredictionType::Epsilon, &clean, &trace.samples[0]);
        let distance = distance(trace.end(), &end(class, &clean, &first));
        prop_assert!(distance < 1e-3, "{class}: {distance}");
    }

    /// A run in half precision stays in it and near the run in single precision.
    #[test]
    fn halves_stay_halves(class in prop::sample::select(names()), steps in 2usize..20) {
        let config = config(class, &json!({"timestep_spacing": "leading"}));
        let start = noise(1);
        let traced = |kind: Kind| {
            run(config.build(&plan(steps)).unwrap(), &start.to_kind(kind), |sample, level| {
                sample * (level.sigma / level.alpha.hypot(level.sigma))
            })
        };
        let (halves, singles) = (traced(Kind::Half), traced(Kind::Float));
        for (half, single) in halves.samples.iter().zip(&singles.samples) {
            prop_assert_eq!(half.kind(), Kind::Half);
            // A class that adds noise draws other numbers in another precision.
            if !STOCHASTIC.contains(&class) {
                let distance = distance(half, single) / largest(single).max(1.0);
                prop_assert!(distance < 0.1, "{class}: {distance}");
            }
        }
    }
}
