//! The solvers in half log-SNR.

use proptest::prelude::*;
use serde_json::{Value, json};
use tch::Tensor;

use super::support::{
    NoiseLevel, Trace, cases, cleanest, config, distance, error_of_the_flow, noise, plan, run, run_to,
};
use crate::schedulers::{PredictionType, SchedulerConfig};

const CLASSES: [&str; 4] = [
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
];
const CONVERSIONS: [&str; 5] = [
    "none",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
];

/// A class with random switches.
#[derive(Clone, Debug)]
struct Switched {
    class: &'static str,
    steps: usize,
    order: usize,
    spacing: &'static str,
    conversion: &'static str,
    prediction: &'static str,
    /// Noise is left at the end.
    sigma_min: bool,
    /// Of the classes that have it.
    stochastic: bool,
}

impl Switched {
    fn config(&self) -> SchedulerConfig {
        let mut keys = json!({
            "solver_order": self.order,
            "timestep_spacing": self.spacing,
            "prediction_type": self.prediction,
            "final_sigmas_type": if self.sigma_min { "sigma_min" } else { "zero" },
            // Of the one class that would divide by the length of a last step that has none.
            "euler_at_final": self.sigma_min,
        });
        if self.conversion != "none" {
            keys[self.conversion] = true.into();
        }
        if self.stochastic && self.class.starts_with("DPM") {
            keys["algorithm_type"] = "sde-dpmsolver++".into();
        }
        config(self.class, &keys)
    }

    fn spaces_sigmas(&self) -> bool {
        self.conversion != "none"
            && (self.conversion != "use_lu_lambdas" || self.class == "DPMSolverMultistepScheduler")
    }

    /// A run over the network that knows the clean sample.
    fn run_to(&self, clean: &Tensor) -> Trace {
        let prediction = prediction_type(self.prediction);
        run_to(clean, &self.config(), &plan(self.steps), prediction)
    }
}

fn prediction_type(name: &str) -> PredictionType {
    serde_json::from_value(name.into()).unwrap()
}

fn switched() -> impl Strategy<Value = Switched> {
    (
        prop::sample::select(&CLASSES[..]),
        1usize..120,
        1usize..=3,
        prop::sample::select(&["linspace", "leading", "trailing"][..]),
        prop::sample::select(&CONVERSIONS[..]),
        prop::sample::select(&["epsilon", "v_prediction", "sample"][..]),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(
            |(class, steps, order, spacing, conversion, prediction, sigma_min, stochastic)| Switched {
                class,
                steps,
                order,
                spacing,
                conversion,
                prediction,
                sigma_min,
                stochastic,
            },
        )
}

proptest! {
    #![proptest_config(cases(300))]

    /// Timesteps and noise go down with every step, and the calls are as many as the steps.
    #[test]
    fn timesteps_and_noise_descend(switched in switched()) {
        let trace = switched.run_to(&noise(2));
        // numpy's rounding makes 1 more of some numbers of steps with this spacing, at timestep -1.
        let quirk = switched.spacing == "trailing"
            && !switched.spaces_sigmas()
            && trace.timesteps.last() == Some(&-1.0);
        let taken = trace.timesteps.len() - usize::from(quirk);
        prop_assert_eq!(taken, switched.steps);
        let timesteps = &trace.timesteps[..taken];
        prop_assert!(timesteps.iter().all(|t| (0.0..=999.0).contains(t)));
        for pair in timesteps.windows(2) {
            // The timesteps of spaced sigmas are made whole.
            prop_assert!(
                pair[0] > pair[1] || switched.spaces_sigmas() && pair[0] == pair[1],
                "{pair:?}"
            );
        }
        for pair in trace.levels[..taken].windows(2) {
            prop_assert!(pair[0].ratio() > pair[1].ratio(), "{pair:?}");
        }
        for sample in &trace.samples {
            prop_assert!(bool::try_from(sample.isfinite().all()).unwrap());
        }
    }

    /// Over a network that knows the clean sample every solver of every order arrives at it, with the
    /// noise that the final sigma says.
    #[test]
    fn a_network_that_knows_the_clean_sample_is_followed_to_it(switched in switched()) {
        let clean = noise(2);
        let trace = switched.run_to(&clean);
        let deis = switched.class == "DEISMultistepScheduler";
        let expected = if switched.sigma_min || deis {
            // A run of DEIS or UniPC down spaced sigmas ends where its last step starts.
            let ends_early = deis || switched.class == "UniPCMultistepScheduler";
            prop_assume!(!(ends_early && switched.steps == 1 && switched.spaces_sigmas()));
            // What a sampler that adds noise leaves is random.
            prop_assume!(deis || !switched.stochastic || !switched.class.starts_with("DPM"));
            let noise = trace.levels[0].output(PredictionType::Epsilon, &clean, &trace.samples[0]);
            let NoiseLevel { alpha, sigma } = cleanest();
            &clean * alpha + noise * sigma
        } else {
            clean
        };
        // DEIS of the third order divides by products of differences of logarithms: where sigmas lie
        // close, little is left of float32.
        let cancels = deis && switched.order == 3;
        prop_assume!(!(cancels && switched.conversion == "use_beta_sigmas"));
        let distance = distance(trace.end(), &expected);
        prop_assert!(distance < if cancels { 5e-2 } else { 2e-3 }, "{distance}");
    }

    /// A run that begins in the middle, where the whole run comes by, arrives where that does.
    #[test]
    fn a_run_may_begin_anywhere(mut switched in switched(), share in 0.0..1.0) {
        switched.stochastic = false;
        switched.order = switched.order.min(2);
        let clean = noise(2);
        let whole = switched.run_to(&clean);
        let mut scheduler = switched.config().build(&plan(switched.steps)).unwrap();
        let begin = (share * switched.steps as f64) as usize;
        scheduler.set_begin_index(begin);
        prop_assert_eq!(scheduler.timesteps(), &whole.timesteps[begin..]);
        let mut generator = crate::torch::Generator::new(0).unwrap();
        let mut sample = whole.samples[begin].shallow_clone();
        for _ in begin..whole.timesteps.len() {
            let output = NoiseLevel::of(scheduler.as_ref()).output(
                prediction_type(switched.prediction),
                &clean,
                &sample,
            );
            sample = scheduler.step(&output, &sample, &mut generator).unwrap();
        }
        let distance = distance(&sample, whole.end());
        prop_assert!(distance < 2e-3, "{distance}");
    }
}

/// A run over a network that knows nothing: a bounded function of the sample and its level.
fn run_of(class: &str, steps: usize, keys: &Value) -> Trace {
    run(
        config(class, keys).build(&plan(steps)).unwrap(),
        &noise(1),
        |sample, level| (sample * level.alpha).sin() * 0.7 + sample * (0.3 * level.sigma),
    )
}

fn assert_same(ours: &Trace, theirs: &Trace, samples: usize) {
    assert_eq!(ours.timesteps, theirs.timesteps);
    for (step, pair) in ours.samples.iter().zip(&theirs.samples).enumerate().take(samples) {
        let distance = distance(pair.0, pair.1);
        assert!(distance < 1e-4, "sample {step}: {distance}");
    }
}

proptest! {
    #![proptest_config(cases(60))]

    /// At the first order both DPM-Solvers, of both algorithms, are one.
    #[test]
    fn first_orders_of_the_dpm_solvers_are_one(steps in 1usize..100) {
        let keys = json!({"solver_order": 1, "final_sigmas_type": "sigma_min"});
        let first = run_of("DPMSolverMultistepScheduler", steps, &keys);
        let single = run_of("DPMSolverSinglestepScheduler", steps, &keys);
        assert_same(&single, &first, steps + 1);
        let keys = json!({
            "solver_order": 1,
            "final_sigmas_type": "sigma_min",
            "algorithm_type": "dpmsolver",
        });
        for class in ["DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"] {
            assert_same(&run_of(class, steps, &keys), &first, steps + 1);
        }
        // DEIS starts from the same sigmas and ends at the same.
        let deis = run_of("DEISMultistepScheduler", steps, &json!({"solver_order": 1}));
        assert_same(&deis, &first, steps + 1);
    }

    /// The first order of each solver is DDIM (Lu et al., 2022, section 4.1; Zhao et al., 2023,
    /// section 3.3), where both have the same timesteps: with trailing spacing, for divisors of 1000.
    #[test]
    fn first_orders_are_ddim(
        steps in prop::sample::select(&[1usize, 2, 4, 5, 8, 10, 20, 25, 40, 50][..]),
        prediction in prop::sample::select(&["epsilon", "v_prediction"][..]),
    ) {
        let keys = json!({
            "timestep_spacing": "trailing",
            "solver_order": 1,
            "prediction_type": prediction,
            "disable_corrector": (0..steps).collect::<Vec<_>>(),
        });
        let ddim = run_of("DDIMScheduler", steps, &keys);
        for class in ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"] {
            assert_same(&run_of(class, steps, &keys), &ddim, steps + 1);
        }
        // DEIS leaves noise at the end.
        assert_same(&run_of("DEISMultistepScheduler", steps, &keys), &ddim, steps);
        // With all its steps deterministic TCD is DDIM down to timestep 0; the steps of its
        // distillation have to be of the same timesteps.
        if 50 % steps == 0 {
            assert_same(&run_of("TCDScheduler", steps, &keys), &ddim, steps);
        }
    }
}

/// Twice the steps leave 2^rate less of the error.
fn rates(steps: [usize; 3], error: impl Fn(usize) -> f64) -> [f64; 2] {
    let [a, b, c] = steps.map(error);
    [(a / b).log2(), (b / c).log2()]
}

/// The methods of several steps start with a first one of the first order, which keeps the whole to the
/// second; UniPC's corrector is an order better than its predictor (Zhao et al., 2023, corollary 3.2).
#[test]
fn methods_converge_with_their_order() {
    let multistep = "DPMSolverMultistepScheduler";
    let singlestep = "DPMSolverSinglestepScheduler";
    let unipc = "UniPCMultistepScheduler";
    for (class, order, keys) in [
        (multistep, 1.0, json!({"solver_order": 1})),
        (multistep, 2.0, json!({"solver_order": 2})),
        (multistep, 2.0, json!({"solver_order": 2, "solver_type": "heun"})),
        (multistep, 2.0, json!({"solver_order": 3})),
        (singlestep, 1.0, json!({"solver_order": 1})),
        (singlestep, 2.0, json!({"solver_order": 2})),
        (singlestep, 3.0, json!({"solver_order": 3, "solver_type": "heun"})),
        (unipc, 2.0, json!({"solver_order": 1})),
        (unipc, 3.0, json!({"solver_order": 2})),
    ] {
        let mut keys = keys;
        keys["use_exponential_sigmas"] = true.into();
        let config = config(class, &keys);
        // Whole steps of every order, and the last.
        let rates = rates([19, 37, 73], |steps| error_of_the_flow(&config, steps));
        let good = rates.iter().all(|&rate| rate > order - 0.3);
        assert!(good, "{class} {keys}: {rates:?}");
    }
    // Its third order soon comes to the end of what float32 resolves.
    let error = |solver_order| {
        let keys = json!({"solver_order": solver_order, "use_exponential_sigmas": true});
        error_of_the_flow(&config(unipc, &keys), 19)
    };
    assert!(error(3) < 0.5 * error(2));
}

/// DEIS ends where noise is left. The flow of data that are normal numbers around 0 with variance 1 does
/// not change a sample at all. The third order soon comes to the end of what float32 resolves.
#[test]
fn deis_converges_with_its_order() {
    let error = |solver_order: usize, steps| {
        let keys = json!({"solver_order": solver_order, "use_exponential_sigmas": true});
        let trace = run(
            config("DEISMultistepScheduler", &keys).build(&plan(steps)).unwrap(),
            &noise(1),
            |sample, level| sample * level.sigma,
        );
        distance(trace.end(), &trace.samples[0])
    };
    for order in [1, 2] {
        let rates = rates([19, 37, 73], |steps| error(order, steps));
        let good = rates.iter().all(|&rate| rate > order as f64 - 0.3);
        assert!(good, "order {order}: {rates:?}");
    }
    assert!(error(3, 19) < 0.5 * error(2, 19));
}
