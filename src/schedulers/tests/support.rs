//! Networks whose answers are known, and runs of samplers over them.

use proptest::test_runner::Config;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::schedulers::{PredictionType, SamplingOptions, Scheduler, SchedulerConfig};
use crate::torch::Generator;

/// A property is tried on so many random runs.
pub fn cases(cases: u32) -> Config {
    Config {
        cases,
        // A failure is told, not kept in a file beside the source.
        failure_persistence: None,
        ..Config::default()
    }
}

/// What a sample is made of: `alpha` times the clean sample plus `sigma` times standard normal noise.
#[derive(Clone, Copy, Debug)]
pub struct NoiseLevel {
    pub alpha: f64,
    pub sigma: f64,
}

impl NoiseLevel {
    /// The level of a scheduler's present timestep.
    pub fn of(scheduler: &dyn Scheduler) -> Self {
        let one = Tensor::ones([1, 1, 1, 1], (Kind::Double, tch::Device::Cpu));
        let number = |tensor: Tensor| tensor.double_value(&[0, 0, 0, 0]);
        let zero = one.zeros_like();
        let present = Self {
            alpha: number(scheduler.add_noise(&one, &zero).unwrap()),
            sigma: number(scheduler.add_noise(&zero, &one).unwrap()),
        };
        // The samplers that count in sigmas divide by the root of 1 + sigma². A second call of a step
        // may have a sigma of its own, which this alone tells, less precisely.
        let scaled = number(scheduler.scale_model_input(&one).unwrap());
        let seen = (scaled.powi(-2) - 1.0).sqrt();
        if scaled == 1.0 || (seen / present.sigma - 1.0).abs() < 1e-3 {
            return present;
        }
        Self {
            alpha: 1.0,
            sigma: seen,
        }
    }

    /// Noise over signal: sigma in the terms of the samplers that count in sigmas.
    pub fn ratio(self) -> f64 {
        self.sigma / self.alpha
    }

    /// What a network that expects `clean` behind `sample` would answer.
    pub fn output(self, prediction: PredictionType, clean: &Tensor, sample: &Tensor) -> Tensor {
        let noise = || (sample - clean * self.alpha) / self.sigma;
        match prediction {
            PredictionType::Epsilon => noise(),
            PredictionType::Sample => clean.shallow_clone(),
            PredictionType::VPrediction => (noise() * self.alpha - clean * self.sigma) / self.alpha.hypot(self.sigma),
        }
    }
}

/// The level of the first training timestep of [`config`], whose β is ᾱ's distance from 1.
pub fn cleanest() -> NoiseLevel {
    NoiseLevel {
        alpha: (1.0f64 - 0.00085).sqrt(),
        sigma: 0.00085f64.sqrt(),
    }
}

/// One run.
pub struct Trace {
    pub timesteps: Vec<f64>,
    /// Of each call.
    pub levels: Vec<NoiseLevel>,
    /// Before the first call and after each.
    pub samples: Vec<Tensor>,
}

impl Trace {
    /// The sample after the last call.
    pub fn end(&self) -> &Tensor {
        self.samples.last().unwrap()
    }
}

/// A class with the noise schedule of the public checkpoints and further keys, an object.
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

/// A plan of so many steps.
pub fn plan(steps: usize) -> SamplingOptions {
    SamplingOptions {
        num_inference_steps: steps,
        timesteps: None,
        sigmas: None,
        eta: 0.0,
    }
}

/// Standard normal numbers `[1, 2, 3, 4]` in float32.
pub fn noise(seed: u64) -> Tensor {
    let mut generator = Generator::new(seed).unwrap();
    generator.randn(&[1, 2, 3, 4], Kind::Float).unwrap()
}

/// A whole run from `noise`, over a network that is given the sample and its level.
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

/// A whole run over the network that knows the clean sample.
pub fn run_to(clean: &Tensor, config: &SchedulerConfig, plan: &SamplingOptions, prediction: PredictionType) -> Trace {
    run(config.build(plan).unwrap(), &noise(1), |sample, level| {
        level.output(prediction, clean, sample)
    })
}

/// How far a run of `steps` steps ends from the solution of the probability flow, as a share of it,
/// where the data are normal numbers around 0 and the network is exact for them. The last step, which
/// leaves no noise, is that of the first order in all samplers and in the solution here.
///
/// There the predicted clean sample is linear in the sample, and the flow is dy/dσ = yσ/(1+σ²) for
/// y = sample / alpha, solved by y ∝ √(1+σ²) (Karras et al., 2022, equation 1 and appendix B).
pub fn error_of_the_flow(config: &SchedulerConfig, steps: usize) -> f64 {
    let start = noise(1).to_kind(Kind::Double);
    let trace = run(config.build(&plan(steps)).unwrap(), &start, |sample, level| {
        let clean = sample * (level.alpha / (level.alpha.powi(2) + level.sigma.powi(2)));
        level.output(PredictionType::Epsilon, &clean, sample)
    });
    let (first, last) = (trace.levels[0], trace.levels[trace.levels.len() - 1]);
    let spread = |level: NoiseLevel| level.ratio().hypot(1.0);
    let factor = spread(last) / spread(first) / spread(last).powi(2) / first.alpha;
    let expected = &trace.samples[0] * factor;
    distance(trace.end(), &expected) / largest(&expected)
}

/// The largest absolute value.
pub fn largest(tensor: &Tensor) -> f64 {
    tensor.abs().max().double_value(&[])
}

/// The largest absolute difference; NaN if any number is.
pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
    largest(&(a.to_kind(Kind::Double) - b.to_kind(Kind::Double)))
}
