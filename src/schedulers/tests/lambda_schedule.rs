//! The solvers in half log-SNR.

use proptest::prelude::*;
use serde_json::{Value, json};
use tch::Tensor;

use super::support::{
    NoiseLevel, Trace, cases, cleanest, config, distance, error_of_the_flow, noise, options, run, run_to,
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
    /// Noise is added, in the classes that can.
    stochastic: bool,
}

impl Switched {
    fn config(&self) -> SchedulerConfig {
        let mut keys = json!({
            "solver_order": self.order,
            "timestep_spacing": self.spacing,
            "prediction_type": self.prediction,
            "final_sigmas_type": if self.sigma_min { "sigma_min" } else { "zero" },
            // One class would divide by the length of a last step of zero length.
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

    /// Runs the class over a network that knows the clean sample.
    fn run_to(&self, clean: &Tensor) -> Trace {
        let prediction = prediction_type(self.prediction);
        run_to(clean, &self.config(), &options(self.steps), prediction)
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

    /// Timesteps and noise descend with every step, and every step has one call.
    #[test]
    fn timesteps_and_noise_descend(switched in switched()) {
        let trace = switched.run_to(&noise(2));
        // numpy's rounding adds a step at timestep -1 to some numbers of steps with this spacing.
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

    /// Over a network that knows the clean sample every solver of every order reaches it, with noise of the final sigma.
    #[test]
    fn exact_network_reaches_clean_sample(switched in switched()) {
        let clean = noise(2);
        let trace = switched.run_to(&clean);
        let deis = switched.class == "DEISMultistepScheduler";
        let expected = if switched.sigma_min || deis {
            // With spaced sigmas DEIS and UniPC end where the last step starts.
            let ends_early = deis || switched.class == "UniPCMultistepScheduler";
            prop_assume!(!(ends_early && switched.steps == 1 && switched.spaces_sigmas()));
            // The remaining noise of a stochastic sampler is random.
            prop_assume!(deis || !switched.stochastic || !switched.class.starts_with("DPM"));
            let noise = trace.levels[0].output(PredictionType::Epsilon, &clean, &trace.samples[0]);
            let NoiseLevel { alpha, sigma } = cleanest();
            &clean * alpha + noise * sigma
        } else {
            clean
        };
        // DEIS of third order divides by products of differences of logarithms, which lose float32's precision where
        // sigmas lie close.
        let cancels = deis && switched.order == 3;
        prop_assume!(!(cancels && switched.conversion == "use_beta_sigmas"));
        let distance = distance(trace.end(), &expected);
        prop_assert!(distance < if cancels { 5e-2 } else { 2e-3 }, "{distance}");
    }

    /// A run that begins in the middle of a full run ends at the same sample.
    #[test]
    fn begin_index_ends_as_full_run(mut switched in switched(), share in 0.0..1.0) {
        switched.stochastic = false;
        switched.order = switched.order.min(2);
        let clean = noise(2);
        let whole = switched.run_to(&clean);
        let mut scheduler = switched.config().build(&options(switched.steps)).unwrap();
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

/// Runs a class over a network that is a bounded function of the sample and its level.
fn run_of(class: &str, steps: usize, keys: &Value) -> Trace {
    run(
        config(class, keys).build(&options(steps)).unwrap(),
        &noise(1),
        |sample, level| (sample * level.alpha).sin() * 0.7 + sample * (0.3 * level.sigma),
    )
}

fn assert_same(trace: &Trace, expected: &Trace, samples: usize) {
    assert_eq!(trace.timesteps, expected.timesteps);
    for (step, pair) in trace.samples.iter().zip(&expected.samples).enumerate().take(samples) {
        let distance = distance(pair.0, pair.1);
        assert!(distance < 1e-4, "sample {step}: {distance}");
    }
}

proptest! {
    #![proptest_config(cases(60))]

    /// At first order both DPM-Solver classes agree, with both algorithms, and DEIS agrees with them.
    #[test]
    fn dpm_solvers_of_first_order_agree(steps in 1usize..100) {
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
        // DEIS has the same sigmas.
        let deis = run_of("DEISMultistepScheduler", steps, &json!({"solver_order": 1}));
        assert_same(&deis, &first, steps + 1);
    }

    /// The first order of each solver is DDIM (Lu et al., 2022, section 4.1; Zhao et al., 2023, section 3.3) if both have
    /// the same timesteps: with trailing spacing, for divisors of 1000.
    #[test]
    fn solvers_of_first_order_equal_ddim(
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
        // A deterministic TCD is DDIM down to timestep 0, if the steps of the distillation have the same timesteps.
        if 50 % steps == 0 {
            assert_same(&run_of("TCDScheduler", steps, &keys), &ddim, steps);
        }
    }
}

/// The rates of convergence: twice the steps divide the error by 2^rate.
fn rates(steps: [usize; 3], error: impl Fn(usize) -> f64) -> [f64; 2] {
    let [a, b, c] = steps.map(error);
    [(a / b).log2(), (b / c).log2()]
}

/// The multistep methods start with a step of first order, which limits the run to second order. UniPC's corrector is
/// an order better than its predictor (Zhao et al., 2023, corollary 3.2).
#[test]
fn error_falls_with_method_order() {
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
        // A whole number of steps of every order, and the last step.
        let rates = rates([19, 37, 73], |steps| error_of_the_flow(&config, steps));
        let good = rates.iter().all(|&rate| rate > order - 0.3);
        assert!(good, "{class} {keys}: {rates:?}");
    }
    // The third order of UniPC soon reaches the precision of float32.
    let error = |solver_order| {
        let keys = json!({"solver_order": solver_order, "use_exponential_sigmas": true});
        error_of_the_flow(&config(unipc, &keys), 19)
    };
    assert!(error(3) < 0.5 * error(2));
}

/// DEIS ends with noise left. For data that are standard normal numbers the flow does not change a sample. The third
/// order soon reaches the precision of float32.
#[test]
fn deis_error_falls_with_order() {
    let error = |solver_order: usize, steps| {
        let keys = json!({"solver_order": solver_order, "use_exponential_sigmas": true});
        let trace = run(
            config("DEISMultistepScheduler", &keys).build(&options(steps)).unwrap(),
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
