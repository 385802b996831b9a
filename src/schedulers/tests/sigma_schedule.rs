//! The classes that count in sigmas.

use proptest::prelude::*;
use serde_json::{Value, json};
use tch::Tensor;

use super::support::{NoiseLevel, cases, config, distance, error_of_the_flow, largest, noise, options, run_to};
use crate::schedulers::{PredictionType, SamplingOptions, SchedulerConfig};
use crate::torch::Generator;

const CLASSES: [&str; 6] = [
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
];
const CONVERSIONS: [&str; 4] = ["none", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"];

/// A class with random switches.
#[derive(Clone, Debug)]
struct Switched {
    class: &'static str,
    steps: usize,
    spacing: &'static str,
    conversion: &'static str,
}

impl Switched {
    fn config(&self, further: &Value) -> SchedulerConfig {
        let mut keys = json!({"timestep_spacing": self.spacing});
        if self.conversion != "none" {
            keys[self.conversion] = true.into();
        }
        for (key, value) in further.as_object().unwrap() {
            keys[key] = value.clone();
        }
        config(self.class, &keys)
    }

    /// The number of steps of the run: as requested, or one more at timestep −1. numpy's rounding adds that one to some
    /// numbers of `trailing` steps, unless a conversion spaces the sigmas.
    fn steps_of_the_run(&self) -> usize {
        let steps = self.steps as f64;
        let timesteps = (1000.0 / (1000.0 / steps)).ceil() as usize;
        let converted = self.conversion != "none" && self.class != "EulerAncestralDiscreteScheduler";
        if self.spacing == "trailing" && !converted {
            timesteps
        } else {
            self.steps
        }
    }

    fn calls_twice(&self) -> bool {
        self.class.starts_with("KDPM2") || self.class.starts_with("Heun")
    }

    /// The first or only call of each step.
    fn first_calls<'a, T>(&self, calls: &'a [T]) -> Vec<&'a T> {
        let order = 1 + usize::from(self.calls_twice());
        calls.iter().step_by(order).collect()
    }
}

fn switched() -> impl Strategy<Value = Switched> {
    (
        prop::sample::select(&CLASSES[..]),
        1usize..100,
        prop::sample::select(&["linspace", "leading", "trailing"][..]),
        prop::sample::select(&CONVERSIONS[..]),
    )
        .prop_map(|(class, steps, spacing, conversion)| Switched {
            class,
            steps,
            spacing,
            conversion,
        })
}

/// `numpy.arange(1000, 0, -1000 / 61)` has 62 numbers, so diffusers takes 62 steps. Spaced sigmas are as many as
/// requested, but EulerAncestral cannot space them.
#[test]
fn trailing_61_steps_make_62_timesteps() {
    for (class, conversion, steps) in [
        ("EulerDiscreteScheduler", "none", 62),
        ("EulerDiscreteScheduler", "use_karras_sigmas", 61),
        ("EulerAncestralDiscreteScheduler", "use_karras_sigmas", 62),
    ] {
        let switched = Switched {
            class,
            steps: 61,
            spacing: "trailing",
            conversion,
        };
        let config = switched.config(&json!({}));
        let trace = run_to(&noise(2), &config, &options(61), PredictionType::Epsilon);
        assert_eq!(trace.timesteps.len(), steps, "{class} {conversion}");
    }
}

proptest! {
    #![proptest_config(cases(150))]

    /// Timesteps and sigmas descend, and the number of calls is that of the class.
    #[test]
    fn timesteps_and_sigmas_descend(switched in switched()) {
        let trace = run_to(
            &noise(2),
            &switched.config(&json!({})),
            &options(switched.steps),
            PredictionType::Epsilon,
        );
        let steps = switched.steps_of_the_run();
        let calls = if switched.calls_twice() { 2 * steps - 1 } else { steps };
        prop_assert_eq!(trace.timesteps.len(), calls);
        let timesteps = switched.first_calls(&trace.timesteps);
        // With this spacing KDPM2 rounds timesteps, and neighbors may become equal.
        let rounded = switched.class.starts_with("KDPM2") && switched.conversion == "use_karras_sigmas";
        for pair in timesteps.windows(2) {
            prop_assert!(pair[0] > pair[1] || rounded && pair[0] == pair[1], "{pair:?}");
        }
        for pair in switched.first_calls(&trace.levels).windows(2) {
            prop_assert!(pair[0].sigma > pair[1].sigma, "{pair:?}");
        }
        prop_assert!(trace.timesteps.iter().all(|t| (-1.0..=999.0).contains(t)));
    }

    /// The second call of a Heun step has the timestep and sigma of the next step, that of a KDPM2 step has values
    /// between the steps.
    #[test]
    fn second_call_sigma_matches_class(switched in switched()) {
        prop_assume!(switched.calls_twice());
        let trace = run_to(
            &noise(2),
            &switched.config(&json!({})),
            &options(switched.steps),
            PredictionType::Epsilon,
        );
        for second in (1..trace.timesteps.len()).step_by(2) {
            let sigmas: Vec<f64> =
                trace.levels[second - 1..=second + 1].iter().map(|level| level.sigma).collect();
            if switched.class == "HeunDiscreteScheduler" {
                prop_assert_eq!(trace.timesteps[second], trace.timesteps[second + 1]);
                prop_assert_eq!(sigmas[1], sigmas[2]);
            } else if switched.class == "KDPM2DiscreteScheduler" {
                let middle = (sigmas[0] * sigmas[2]).sqrt();
                prop_assert!((sigmas[1] / middle - 1.0).abs() < 1e-3, "{sigmas:?}");
            } else {
                // Before it adds noise the step reaches next² / from, and the sigma halfway there is `next`. Its square
                // is a difference of two float32 numbers, both about next².
                let rounding = f64::from(f32::EPSILON) * (sigmas[0] / sigmas[2]).powi(2);
                prop_assert!((sigmas[1] / sigmas[2] - 1.0).abs() < 1e-3 + rounding, "{sigmas:?}");
            }
        }
    }

    /// Every sampler reaches the clean sample of a network that knows it, for every prediction type and every spacing of
    /// timesteps and sigmas.
    #[test]
    fn exact_network_reaches_clean_sample(
        switched in switched(),
        prediction in prop::sample::select(&["epsilon", "v_prediction", "sample"][..]),
    ) {
        let only_two = switched.class.contains("Ancestral") || switched.class.starts_with("KDPM2");
        prop_assume!(!(only_two && prediction == "sample"));
        let clean = noise(2);
        let trace = run_to(
            &clean,
            &switched.config(&json!({"prediction_type": prediction})),
            &options(switched.steps),
            serde_json::from_value(prediction.into()).unwrap(),
        );
        let distance = distance(trace.end(), &clean);
        // Ninety steps round ninety times, starting from samples forty times as large.
        prop_assert!(distance < 5e-4, "{distance}");
    }

    /// A final sigma above 0 leaves noise of that level.
    #[test]
    fn final_sigma_min_leaves_noise(mut switched in switched()) {
        switched.class = "EulerDiscreteScheduler";
        let clean = noise(2);
        let further = json!({"final_sigmas_type": "sigma_min"});
        let trace = run_to(
            &clean,
            &switched.config(&further),
            &options(switched.steps),
            PredictionType::Epsilon,
        );
        // The sigma of the first training timestep: √(β/(1−β)).
        let sigma_min = (0.00085f64 / (1.0 - 0.00085)).sqrt();
        let start = &trace.samples[0];
        let first_noise = (start - &clean) / trace.levels[0].sigma;
        let left = trace.end() - &clean;
        let distance = distance(&left, &(first_noise * sigma_min));
        prop_assert!(distance < 1e-4, "{distance}");
    }

    /// A run that begins in the middle equals the rest of the full run.
    #[test]
    fn begin_index_continues_full_run(mut switched in switched(), share in 0.0..1.0) {
        switched.class = match switched.class {
            "HeunDiscreteScheduler" | "KDPM2DiscreteScheduler" => switched.class,
            _ => "EulerDiscreteScheduler",
        };
        let config = switched.config(&json!({}));
        let begin = (share * switched.steps as f64) as usize;
        let whole = run_to(&noise(2), &config, &options(switched.steps), PredictionType::Sample);
        let mut scheduler = config.build(&options(switched.steps)).unwrap();
        let skipped = begin * scheduler.order();
        scheduler.set_begin_index(skipped);
        prop_assert_eq!(scheduler.timesteps(), &whole.timesteps[skipped..]);
        let mut sample = whole.samples[skipped].shallow_clone();
        let mut generator = Generator::new(0).unwrap();
        for expected in &whole.samples[skipped + 1..] {
            let output = NoiseLevel::of(scheduler.as_ref()).output(PredictionType::Sample, &noise(2), &sample);
            sample = scheduler.step(&output, &sample, &mut generator).unwrap();
            prop_assert_eq!(&sample, expected);
        }
    }
}

#[test]
fn error_falls_with_method_order() {
    // Twice the steps leave 2^order of the error.
    let rate = |config: &SchedulerConfig, steps: usize| {
        (error_of_the_flow(config, steps) / error_of_the_flow(config, 2 * steps)).log2()
    };
    for (class, order) in [
        ("EulerDiscreteScheduler", 0.95..1.1),
        ("HeunDiscreteScheduler", 1.95..2.3),
        ("KDPM2DiscreteScheduler", 1.95..2.3),
    ] {
        let config = config(class, &json!({"use_karras_sigmas": true}));
        for steps in [10, 20, 40] {
            let rate = rate(&config, steps);
            assert!(order.contains(&rate), "{class}, {steps} steps: {rate}");
        }
    }
    // A method of fourth order soon reaches the precision of float32, although it begins with lower orders.
    let lms = config("LMSDiscreteScheduler", &json!({"use_karras_sigmas": true}));
    assert!(rate(&lms, 10) > 3.0);
    assert!(error_of_the_flow(&lms, 40) < 1e-4);
}

/// Options with custom sigmas or timesteps.
fn custom(timesteps: Option<&[i64]>, sigmas: Option<&[f64]>) -> SamplingOptions {
    SamplingOptions {
        timesteps: timesteps.map(<[i64]>::to_vec),
        sigmas: sigmas.map(<[f64]>::to_vec),
        ..options(1)
    }
}

#[test]
fn build_bad_options_are_refused() {
    let message = |class: &str, keys: &Value, options: SamplingOptions| {
        config(class, keys).build(&options).err().unwrap().to_string()
    };
    let karras = json!({"use_karras_sigmas": true});
    let continuous = json!({"timestep_type": "continuous", "prediction_type": "v_prediction"});
    for (class, keys, timesteps, sigmas, word) in [
        (
            "EulerDiscreteScheduler",
            &karras,
            Some(&[900][..]),
            None,
            "use_karras_sigmas",
        ),
        (
            "HeunDiscreteScheduler",
            &karras,
            Some(&[900]),
            None,
            "use_karras_sigmas",
        ),
        (
            "EulerDiscreteScheduler",
            &continuous,
            Some(&[900]),
            None,
            "timestep_type",
        ),
        (
            "EulerDiscreteScheduler",
            &json!({}),
            Some(&[]),
            None,
            "must not be empty",
        ),
        (
            "HeunDiscreteScheduler",
            &json!({}),
            Some(&[]),
            None,
            "must not be empty",
        ),
        (
            "EulerDiscreteScheduler",
            &json!({}),
            Some(&[900]),
            Some(&[3.0, 0.0][..]),
            "only one",
        ),
        ("EulerDiscreteScheduler", &json!({}), None, Some(&[3.0]), "at least two"),
        (
            "EulerDiscreteScheduler",
            &json!({}),
            None,
            Some(&[3.0, 0.0, 0.0]),
            "above 0",
        ),
        (
            "EulerDiscreteScheduler",
            &json!({}),
            None,
            Some(&[3.0, -1.0]),
            "above 0",
        ),
        (
            "EulerDiscreteScheduler",
            &json!({}),
            None,
            Some(&[f64::INFINITY, 0.0]),
            "above 0",
        ),
        (
            "LMSDiscreteScheduler",
            &json!({}),
            Some(&[900]),
            None,
            "not supported by",
        ),
        (
            "HeunDiscreteScheduler",
            &json!({}),
            None,
            Some(&[3.0, 0.0]),
            "not supported by",
        ),
    ] {
        let message = message(class, keys, custom(timesteps, sigmas));
        assert!(message.contains(word), "{message}");
    }
    for class in CLASSES {
        for steps in [0, 1001] {
            let message = message(class, &json!({}), options(steps));
            assert!(message.contains("num_inference_steps"), "{message}");
        }
    }
    // So few steps of this schedule are too large for the float32 arithmetic of ancestral sampling.
    let cosine = json!({"beta_schedule": "squaredcos_cap_v2"});
    let message = message("KDPM2AncestralDiscreteScheduler", &cosine, options(3));
    assert!(message.contains("num_inference_steps"), "{message}");
}

#[test]
fn first_timestep_twice_starts_only_from_image() {
    let config = config("EulerDiscreteScheduler", &json!({}));
    let options = custom(None, Some(&[30.0, 20.0, 0.0]));
    let sample = noise(1);
    let mut generator = Generator::new(0).unwrap();
    let mut from_noise = config.build(&options).unwrap();
    let message = from_noise.scale_model_input(&sample).unwrap_err().to_string();
    assert!(message.contains("occurs twice"), "{message}");
    assert!(from_noise.step(&sample, &sample, &mut generator).is_err());
    let mut from_image = config.build(&options).unwrap();
    from_image.set_begin_index(0);
    for _ in 0..2 {
        let next = from_image.step(&sample, &sample, &mut generator).unwrap();
        assert!(largest(&next).is_finite());
    }
}

#[test]
fn read_unsupported_config_names_key() {
    let message = |class: &str, keys: Value| {
        SchedulerConfig::parse_as(&keys.to_string(), class)
            .unwrap_err()
            .to_string()
    };
    for class in CLASSES
        .iter()
        .filter(|class| class.contains("Ancestral") || class.starts_with("KDPM2"))
    {
        let message = message(class, json!({"prediction_type": "sample"}));
        assert!(message.contains("prediction_type sample"), "{message}");
    }
    for class in CLASSES.iter().filter(|class| !class.starts_with("Heun")) {
        let message = message(class, json!({"beta_schedule": "exp"}));
        assert!(message.contains("beta_schedule exp"), "{message}");
    }
    let both = json!({"use_karras_sigmas": true, "use_beta_sigmas": true});
    assert!(message("LMSDiscreteScheduler", both).contains("only one of"));
    let one = json!({"num_train_timesteps": 1});
    assert!(message("EulerDiscreteScheduler", one).contains("at least two timesteps"));
}

/// The dtype of samples does not depend on the dtype that a step computes in.
#[test]
fn half_precision_dtype_is_kept() {
    for class in CLASSES {
        let mut scheduler = config(class, &json!({})).build(&options(4)).unwrap();
        let mut generator = Generator::new(0).unwrap();
        let mut sample: Tensor = (noise(1) * scheduler.init_noise_sigma()).to_kind(tch::Kind::Half);
        for _ in 0..scheduler.timesteps().len() {
            let input = scheduler.scale_model_input(&sample).unwrap();
            assert_eq!(input.kind(), tch::Kind::Half, "{class}");
            sample = scheduler.step(&input, &sample, &mut generator).unwrap();
            assert_eq!(sample.kind(), tch::Kind::Half, "{class}");
        }
    }
}
