//! The samplers that count in sigmas.

use proptest::prelude::*;
use serde_json::{Value, json};
use tch::Tensor;

use super::support::{NoiseLevel, cases, config, distance, error_of_the_flow, largest, noise, plan, run_to};
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

    /// Those that are asked for. diffusers' division makes one more of some numbers with `trailing`
    /// spacing, at timestep −1, where no conversion spaces the sigmas anew.
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

    /// The last and only call of each step, or the first of its two.
    fn first_calls<'a, T>(&self, calls: &'a [T]) -> Vec<&'a T> {
        let order = 1 + usize::from(self.calls_twice());
        // The calls of a Heun step are the first at its sigma and the first at the next.
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

/// diffusers makes 62 of them: `numpy.arange(1000, 0, -1000 / 61)` is one number longer than asked. Sigmas that are
/// spaced anew are as many as asked, and EulerAncestral has no switch for that.
#[test]
fn sixty_one_trailing_steps_are_sixty_two() {
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
        let trace = run_to(&noise(2), &config, &plan(61), PredictionType::Epsilon);
        assert_eq!(trace.timesteps.len(), steps, "{class} {conversion}");
    }
}

proptest! {
    #![proptest_config(cases(150))]

    /// Timesteps and sigmas go down, one step of sigma after the other, and the calls are as many as
    /// the class makes of the steps.
    #[test]
    fn timesteps_and_sigmas_descend(switched in switched()) {
        let trace = run_to(
            &noise(2),
            &switched.config(&json!({})),
            &plan(switched.steps),
            PredictionType::Epsilon,
        );
        let steps = switched.steps_of_the_run();
        let calls = if switched.calls_twice() { 2 * steps - 1 } else { steps };
        prop_assert_eq!(trace.timesteps.len(), calls);
        let timesteps = switched.first_calls(&trace.timesteps);
        // KDPM2 rounds the timesteps of this spacing, so that neighbours may become one.
        let rounded = switched.class.starts_with("KDPM2") && switched.conversion == "use_karras_sigmas";
        for pair in timesteps.windows(2) {
            prop_assert!(pair[0] > pair[1] || rounded && pair[0] == pair[1], "{pair:?}");
        }
        for pair in switched.first_calls(&trace.levels).windows(2) {
            prop_assert!(pair[0].sigma > pair[1].sigma, "{pair:?}");
        }
        prop_assert!(trace.timesteps.iter().all(|t| (-1.0..=999.0).contains(t)));
    }

    /// A second call of Heun's is at the timestep and sigma of the step that follows, one of KDPM2's
    /// between those of its step.
    #[test]
    fn second_calls_are_where_the_class_has_them(switched in switched()) {
        prop_assume!(switched.calls_twice());
        let trace = run_to(
            &noise(2),
            &switched.config(&json!({})),
            &plan(switched.steps),
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
                // Before it adds noise the step arrives at next² / from; halfway there is the next. That
                // sigma's square is a difference of two float32, both about next².
                let rounding = f64::from(f32::EPSILON) * (sigmas[0] / sigmas[2]).powi(2);
                prop_assert!((sigmas[1] / sigmas[2] - 1.0).abs() < 1e-3 + rounding, "{sigmas:?}");
            }
        }
    }

    /// Every sampler arrives at the clean sample of a network that knows it, whatever the network
    /// predicts and however timesteps and sigmas are spaced.
    #[test]
    fn a_network_that_knows_the_clean_sample_is_followed_to_it(
        switched in switched(),
        prediction in prop::sample::select(&["epsilon", "v_prediction", "sample"][..]),
    ) {
        let only_two = switched.class.contains("Ancestral") || switched.class.starts_with("KDPM2");
        prop_assume!(!(only_two && prediction == "sample"));
        let clean = noise(2);
        let trace = run_to(
            &clean,
            &switched.config(&json!({"prediction_type": prediction})),
            &plan(switched.steps),
            serde_json::from_value(prediction.into()).unwrap(),
        );
        let distance = distance(trace.end(), &clean);
        // Ninety steps round ninety times, from samples that are some forty times as large.
        prop_assert!(distance < 5e-4, "{distance}");
    }

    /// With another final sigma that much noise is left.
    #[test]
    fn the_final_sigma_is_left(mut switched in switched()) {
        switched.class = "EulerDiscreteScheduler";
        let clean = noise(2);
        let further = json!({"final_sigmas_type": "sigma_min"});
        let trace = run_to(
            &clean,
            &switched.config(&further),
            &plan(switched.steps),
            PredictionType::Epsilon,
        );
        // That of the first training timestep: √(β/(1−β)).
        let sigma_min = (0.00085f64 / (1.0 - 0.00085)).sqrt();
        let start = &trace.samples[0];
        let first_noise = (start - &clean) / trace.levels[0].sigma;
        let left = trace.end() - &clean;
        let distance = distance(&left, &(first_noise * sigma_min));
        prop_assert!(distance < 1e-4, "{distance}");
    }

    /// A run that begins in the middle goes on as one that has come there.
    #[test]
    fn a_run_may_begin_anywhere(mut switched in switched(), share in 0.0..1.0) {
        switched.class = match switched.class {
            "HeunDiscreteScheduler" | "KDPM2DiscreteScheduler" => switched.class,
            _ => "EulerDiscreteScheduler",
        };
        let config = switched.config(&json!({}));
        let begin = (share * switched.steps as f64) as usize;
        let whole = run_to(&noise(2), &config, &plan(switched.steps), PredictionType::Sample);
        let mut scheduler = config.build(&plan(switched.steps)).unwrap();
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
fn methods_converge_with_their_order() {
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
    // A method of the fourth order, though it begins with lower ones, is soon as good as float32 is.
    let lms = config("LMSDiscreteScheduler", &json!({"use_karras_sigmas": true}));
    assert!(rate(&lms, 10) > 3.0);
    assert!(error_of_the_flow(&lms, 40) < 1e-4);
}

/// A plan of given sigmas or timesteps.
fn custom(timesteps: Option<&[i64]>, sigmas: Option<&[f64]>) -> SamplingOptions {
    SamplingOptions {
        timesteps: timesteps.map(<[i64]>::to_vec),
        sigmas: sigmas.map(<[f64]>::to_vec),
        ..plan(1)
    }
}

#[test]
fn plans_that_cannot_be_followed_are_refused() {
    let message =
        |class: &str, keys: &Value, plan: SamplingOptions| config(class, keys).build(&plan).err().unwrap().to_string();
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
        ("EulerDiscreteScheduler", &json!({}), Some(&[]), None, "empty"),
        ("HeunDiscreteScheduler", &json!({}), Some(&[]), None, "empty"),
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
        ("LMSDiscreteScheduler", &json!({}), Some(&[900]), None, "not taken by"),
        (
            "HeunDiscreteScheduler",
            &json!({}),
            None,
            Some(&[3.0, 0.0]),
            "not taken by",
        ),
    ] {
        let message = message(class, keys, custom(timesteps, sigmas));
        assert!(message.contains(word), "{message}");
    }
    for class in CLASSES {
        for steps in [0, 1001] {
            let message = message(class, &json!({}), plan(steps));
            assert!(message.contains("num_inference_steps"), "{message}");
        }
    }
    // Too steep a schedule for the float32 arithmetic of one step down and up again.
    let cosine = json!({"beta_schedule": "squaredcos_cap_v2"});
    let message = message("KDPM2AncestralDiscreteScheduler", &cosine, plan(3));
    assert!(message.contains("num_inference_steps"), "{message}");
}

#[test]
fn a_run_whose_first_timestep_comes_twice_cannot_begin_but_in_a_image() {
    let config = config("EulerDiscreteScheduler", &json!({}));
    let plan = custom(None, Some(&[30.0, 20.0, 0.0]));
    let sample = noise(1);
    let mut generator = Generator::new(0).unwrap();
    let mut from_noise = config.build(&plan).unwrap();
    let message = from_noise.scale_model_input(&sample).unwrap_err().to_string();
    assert!(message.contains("comes twice"), "{message}");
    assert!(from_noise.step(&sample, &sample, &mut generator).is_err());
    let mut from_image = config.build(&plan).unwrap();
    from_image.set_begin_index(0);
    for _ in 0..2 {
        let next = from_image.step(&sample, &sample, &mut generator).unwrap();
        assert!(largest(&next).is_finite());
    }
}

#[test]
fn configurations_that_are_not_done_are_refused_by_name() {
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

/// Half-precision samples stay so, whatever a step is computed in.
#[test]
fn the_dtype_is_the_networks() {
    for class in CLASSES {
        let mut scheduler = config(class, &json!({})).build(&plan(4)).unwrap();
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
