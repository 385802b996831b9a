//! Networks with known outputs, and runs of samplers over them.

use proptest::test_runner::Config;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::schedulers::{PredictionType, SamplingOptions, Scheduler, SchedulerConfig};
use crate::torch::Generator;

/// The settings of a property that is tried on `cases` random runs.
pub fn cases(cases: u32) -> Config {
    Config {
        cases,
        // No file next to the source.
        failure_persistence: None,
        ..Config::default()
    }
}

/// The noise level of a sample: `alpha` times the clean sample plus `sigma` times standard normal noise.
#[derive(Clone, Copy, Debug)]
pub struct NoiseLevel {
    pub alpha: f64,
    pub sigma: f64,
}

impl NoiseLevel {
    /// Measures the level at a scheduler's current timestep.
    pub fn of(scheduler: &dyn Scheduler) -> Self {
        let one = Tensor::ones([1, 1, 1, 1], (Kind::Double, tch::Device::Cpu));
        let number = |tensor: Tensor| tensor.double_value(&[0, 0, 0, 0]);
        let zero = one.zeros_like();
        let current = Self {
            alpha: number(scheduler.add_noise(&one, &zero).unwrap()),
            sigma: number(scheduler.add_noise(&zero, &one).unwrap()),
        };
        // The classes that count in sigmas divide by √(1 + sigma²). The second call of a step may have another sigma,
        // which follows only from this division, less precisely.
        let scaled = number(scheduler.scale_model_input(&one).unwrap());
        let seen = (scaled.powi(-2) - 1.0).sqrt();
        if scaled == 1.0 || (seen / current.sigma - 1.0).abs() < 1e-3 {
            return current;
        }
        Self {
            alpha: 1.0,
            sigma: seen,
        }
    }

    /// Noise over signal: the sigma of the classes that count in sigmas.
    pub fn ratio(self) -> f64 {
        self.sigma / self.alpha
    }

    /// The output of a network that knows the clean sample.
    pub fn output(self, prediction: PredictionType, clean: &Tensor, sample: &Tensor) -> Tensor {
        let noise = || (sample - clean * self.alpha) / self.sigma;
        match prediction {
            PredictionType::Epsilon => noise(),
            PredictionType::Sample => clean.shallow_clone(),
            PredictionType::VPrediction => (noise() * self.alpha - clean * self.sigma) / self.alpha.hypot(self.sigma),
        }
    }
}

/// The level of the first training timestep of [`config`], where 1 − ᾱ = β.
pub fn cleanest() -> NoiseLevel {
    NoiseLevel {
        alpha: (1.0f64 - 0.00085).sqrt(),
        sigma: 0.00085f64.sqrt(),
    }
}

/// The record of one run.
pub struct Trace {
    pub timesteps: Vec<f64>,
    /// The level of each call.
    pub levels: Vec<NoiseLevel>,
    /// The samples before the first call and after each call.
    pub samples: Vec<Tensor>,
}

impl Trace {
    /// Returns the sample after the last call.
    pub fn end(&self) -> &Tensor {
        self.samples.last().unwrap()
    }
}

/// Configures a class with the noise schedule of the public checkpoints and further keys, an object.
pub fn config(class: &str, keys: &Value) -> SchedulerConfig {
    let mut all = json!({
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "skip_prk_steps": true,
        "clip_sample": false,
        "set_alpha_to_one": true,
    });
    for (key, value) in keys.as_object().unwrap() {
        all[key] = value.clone();
    }
    SchedulerConfig::parse_as(&all.to_string(), class).unwrap()
}

/// The options of a run of `steps` steps.
pub fn options(steps: usize) -> SamplingOptions {
    SamplingOptions {
        num_inference_steps: steps,
        timesteps: None,
        sigmas: None,
        eta: 0.0,
    }
}

/// Draws standard normal numbers `[1, 2, 3, 4]` in float32.
pub fn noise(seed: u64) -> Tensor {
    let mut generator = Generator::new(seed).unwrap();
    generator.randn(&[1, 2, 3, 4], Kind::Float).unwrap()
}

/// Runs a scheduler from `noise` to the end, over a network of the sample and its level.
pub fn run(
    mut scheduler: Box<dyn Scheduler>,
    noise: &Tensor,
    network: impl Fn(&Tensor, NoiseLevel) -> Tensor,
) -> Trace {
    let mut generator = Generator::new(3).unwrap();
    let timesteps = scheduler.timesteps().to_vec();
    let mut samples = vec![noise * scheduler.init_noise_sigma()];
    let mut levels = Vec::new();
    for _ in &timesteps {
        let sample = samples.last().unwrap();
        let level = NoiseLevel::of(scheduler.as_ref());
        let output = network(sample, level);
        levels.push(level);
        samples.push(scheduler.step(&output, sample, &mut generator).unwrap());
    }
    Trace {
        timesteps,
        levels,
        samples,
    }
}

/// Runs a scheduler over a network that knows the clean sample.
pub fn run_to(
    clean: &Tensor,
    config: &SchedulerConfig,
    options: &SamplingOptions,
    prediction: PredictionType,
) -> Trace {
    run(config.build(options).unwrap(), &noise(1), |sample, level| {
        level.output(prediction, clean, sample)
    })
}

/// Returns the relative error of a run of `steps` steps against the solution of the probability flow, for data that are
/// normal numbers around 0 and a network that is exact for them. The last step, which leaves no noise, is of first order
/// in all samplers and in the solution here.
///
/// The predicted clean sample is linear in the sample, and the flow is dy/dσ = yσ/(1+σ²) for y = sample / alpha, with
/// the solution y ∝ √(1+σ²) (Karras et al., 2022, equation 1 and appendix B).
pub fn error_of_the_flow(config: &SchedulerConfig, steps: usize) -> f64 {
    let start = noise(1).to_kind(Kind::Double);
    let trace = run(config.build(&options(steps)).unwrap(), &start, |sample, level| {
        let clean = sample * (level.alpha / (level.alpha.powi(2) + level.sigma.powi(2)));
        level.output(PredictionType::Epsilon, &clean, sample)
    });
    let (first, last) = (trace.levels[0], trace.levels[trace.levels.len() - 1]);
    let spread = |level: NoiseLevel| level.ratio().hypot(1.0);
    let factor = spread(last) / spread(first) / spread(last).powi(2) / first.alpha;
    let expected = &trace.samples[0] * factor;
    distance(trace.end(), &expected) / largest(&expected)
}

/// Returns the largest absolute value.
pub fn largest(tensor: &Tensor) -> f64 {
    tensor.abs().max().double_value(&[])
}

/// Returns the largest absolute difference, or NaN if any number is NaN.
pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
    largest(&(a.to_kind(Kind::Double) - b.to_kind(Kind::Double)))
}
