//! Every model part, scheduler and pipeline against numbers that diffusers made from the same tiny
//! checkpoints (`tools/reference/make_goldens.py`).
//!
//! The committed numbers come from one processor; kernels differ between processors, so they are
//! held to a tolerance. `make parity` makes them anew on the machine at hand, names their folder in
//! `TRITON_DIFFUSION_PARITY`, and then every byte must be equal.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};
use triton_diffusion::config::{ModelParameters, Numerics};
use triton_diffusion::engine::Pipeline;
use triton_diffusion::libtorch::Generator;
use triton_diffusion::models::{
    AutoencoderKl, ClipTextConfig, ClipTextModel, ClipTokenizer, Rows, UNet2DConditionModel,
    UNetInput,
};
use triton_diffusion::picture::encode::Picture;
use triton_diffusion::pipeline::{Components, Place, StableDiffusionPipeline};
use triton_diffusion::request::generate::{RequestContext, resolve};
use triton_diffusion::schedulers::{self, Plan, SchedulerConfig};
use triton_diffusion::weights::{Component, TensorFile, Weights, read_json};

/// The largest difference that another processor's kernels may make in one value of a model part or a
/// trajectory, as a share of the largest value (and of 1, if that is smaller).
const TOLERANCE: f64 = 5e-4;
/// The same for a picture's bytes, of which at most one in a hundred may differ at all.
const BYTE_TOLERANCE: u8 = 2;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// Where this machine's own goldens are, if every byte is demanded.
fn parity() -> Option<PathBuf> {
    std::env::var_os("TRITON_DIFFUSION_PARITY").map(PathBuf::from)
}

fn checkpoint(name: &str) -> PathBuf {
    root().join("checkpoints").join(name)
}

struct Goldens {
    folder: PathBuf,
    tensors: TensorFile,
    group: &'static str,
    compared: usize,
    /// Collected, so that one run shows all of them.
    failures: Vec<String>,
}

impl Goldens {
    fn open(group: &'static str) -> Self {
        let folder = parity().unwrap_or_else(|| root().join("goldens"));
        let tensors = TensorFile::open(&folder.join(format!("{group}.safetensors"))).unwrap();
        Self {
            folder,
            tensors,
            group,
            compared: 0,
            failures: Vec::new(),
        }
    }

    fn manifest<T: DeserializeOwned>(&self) -> T {
        manifest(&self.folder, self.group)
    }

    fn tensor(&self, name: &str) -> Tensor {
        self.tensors.tensor(name).unwrap()
    }

    /// Ours against the tensor `name`: every byte, or within the tolerance.
    fn compare(&mut self, name: &str, ours: &Tensor) {
        let theirs = self.tensor(name);
        assert_eq!(ours.size(), theirs.size(), "{name}: shape");
        assert_eq!(ours.kind(), theirs.kind(), "{name}: dtype");
        self.compared += 1;
        if ours == &theirs {
            return;
        }
        let largest = |tensor: Tensor| f64::try_from(tensor.abs().max()).unwrap();
        let exact = theirs.to_kind(Kind::Double);
        let scale = largest(exact.shallow_clone()).max(1.0);
        let difference = largest(ours.to_kind(Kind::Double) - exact) / scale;
        if parity().is_some() || difference.is_nan() || difference >= TOLERANCE {
            self.failures
                .push(format!("{name}: differs by {difference:e}"));
        }
    }

    fn report(&self) {
        let how = if parity().is_some() {
            "equal to the byte"
        } else {
            "within the tolerance"
        };
        let good = self.compared - self.failures.len();
        println!("{}: {good} of {} {how}", self.group, self.compared);
        assert!(self.failures.is_empty(), "{}", self.failures.join("\n"));
        assert!(self.compared > 0, "{}: nothing was compared", self.group);
    }
}

fn manifest<T: DeserializeOwned>(folder: &Path, group: &str) -> T {
    read_json(&folder.join(format!("{group}.json"))).unwrap()
}

#[derive(Deserialize)]
struct Cases<T> {
    cases: Vec<T>,
}

fn weights(checkpoint_name: &str, component: &str, stem: &str) -> Weights {
    let component = Component::open(&checkpoint(checkpoint_name).join(component), stem).unwrap();
    Weights::new(component, Device::Cpu, Kind::Float)
}

fn text_config(name: &str) -> ClipTextConfig {
    read_json(&checkpoint(name).join("text_encoder/config.json")).unwrap()
}

fn tokenizer(name: &str) -> ClipTokenizer {
    let config = text_config(name);
    ClipTokenizer::open(&checkpoint(name).join("tokenizer"), 77, config.vocab_size).unwrap()
}

#[test]
fn token_ids() {
    #[derive(Deserialize)]
    struct Text {
        text: String,
        ids: Vec<i64>,
        truncated: bool,
    }
    let folder = parity().unwrap_or_else(|| root().join("goldens"));
    let all: Map<String, Value> = manifest(&folder, "tokens");
    let mut compared = 0;
    for (name, texts) in all {
        let texts: Vec<Text> = serde_json::from_value(texts).unwrap();
        let tokenizer = tokenizer(&name);
        for Text {
            text,
            ids,
            truncated,
        } in texts
        {
            let ours = tokenizer.encode(&text).unwrap();
            assert_eq!(ours.ids, ids, "{name}: {text:?}");
            assert_eq!(ours.truncated, truncated, "{name}: {text:?}");
            compared += 1;
        }
    }
    println!("tokens: {compared} texts equal");
    assert!(compared > 40);
}

#[test]
fn text_embeddings() {
    #[derive(Deserialize)]
    struct Case {
        name: String,
        checkpoint: String,
        clip_skip: Option<usize>,
        texts: Vec<String>,
    }
    let mut goldens = Goldens::open("text");
    let cases: Cases<Case> = goldens.manifest();
    let _no_grad = tch::no_grad_guard();
    for case in cases.cases {
        let model = ClipTextModel::new(
            text_config(&case.checkpoint),
            weights(&case.checkpoint, "text_encoder", "model"),
        )
        .unwrap();
        let tokenizer = tokenizer(&case.checkpoint);
        let rows: Vec<Tensor> = case
            .texts
            .iter()
            .map(|text| {
                let ids = Tensor::from_slice(&tokenizer.encode(text).unwrap().ids).unsqueeze(0);
                model.forward(&ids, case.clip_skip.unwrap_or(0)).unwrap()
            })
            .collect();
        goldens.compare(&case.name, &Tensor::cat(&rows, 0));
    }
    goldens.report();
}

#[test]
fn unet_calls() {
    #[derive(Deserialize)]
    struct Case {
        checkpoint: String,
        rows: i64,
        sample: String,
        timestep: String,
        encoder_hidden_states: String,
        class_labels: Option<String>,
        output: String,
    }
    let mut goldens = Goldens::open("unet");
    let cases: Cases<Case> = goldens.manifest();
    let _no_grad = tch::no_grad_guard();
    for case in cases.cases {
        let config = read_json(&checkpoint(&case.checkpoint).join("unet/config.json")).unwrap();
        let weights = weights(&case.checkpoint, "unet", "diffusion_pytorch_model");
        let model = UNet2DConditionModel::new(config, weights).unwrap();
        model.config().check().unwrap();
        let first = |name: &str| goldens.tensor(name).narrow(0, 0, case.rows);
        let labels = case.class_labels.as_deref().map(first);
        let input = UNetInput {
            sample: &first(&case.sample),
            timesteps: &first(&case.timestep),
            encoder_hidden_states: &first(&case.encoder_hidden_states),
            class_labels: labels.as_ref(),
        };
        let ours = model.forward(&input, Rows::WHOLE).unwrap();
        goldens.compare(&case.output, &ours);
    }
    goldens.report();
}

#[test]
fn vae_both_ways() {
    #[derive(Deserialize)]
    struct Case {
        checkpoint: String,
        kind: String,
        input: String,
        output: String,
    }
    let mut goldens = Goldens::open("vae");
    let cases: Cases<Case> = goldens.manifest();
    let _no_grad = tch::no_grad_guard();
    for case in cases.cases {
        let config = read_json(&checkpoint(&case.checkpoint).join("vae/config.json")).unwrap();
        let weights = weights(&case.checkpoint, "vae", "diffusion_pytorch_model");
        let model = AutoencoderKl::new(config, weights).unwrap();
        model.config().check().unwrap();
        let input = goldens.tensor(&case.input);
        let ours = match case.kind.as_str() {
            "decode" => model.decode(&input).unwrap(),
            "encode" => model.encode(&input).unwrap(),
            other => panic!("an unknown kind {other}"),
        };
        goldens.compare(&case.output, &ours);
    }
    goldens.report();
}

#[test]
fn scheduler_trajectories() {
    #[derive(Deserialize)]
    struct Case {
        name: String,
        class: String,
        config: Map<String, Value>,
        num_inference_steps: usize,
        timesteps: Option<Vec<i64>>,
        eta: f64,
        seed: u64,
        init_noise_sigma: f64,
    }
    /// Switches that fail the load by name.
    const REFUSED: [&str; 4] = [
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "use_lu_lambdas",
    ];

    let mut goldens = Goldens::open("schedulers");
    let cases: Cases<Case> = goldens.manifest();
    let _no_grad = tch::no_grad_guard();
    let outputs = goldens.tensor("model_outputs");
    for case in cases.cases {
        let text = Value::Object(case.config.clone()).to_string();
        let config = SchedulerConfig::parse_as(&text, &case.class);
        let third_order_sde = case.config.get("algorithm_type") == Some(&"sde-dpmsolver".into())
            && case.config.get("solver_order") == Some(&3.into());
        if third_order_sde {
            // diffusers fails at its third step.
            assert!(
                config.unwrap_err().to_string().contains("solver_order"),
                "{}",
                case.name
            );
            continue;
        }
        if let Some(switch) = REFUSED
            .iter()
            .find(|key| case.config.get(**key) == Some(&Value::Bool(true)))
        {
            let error = config.unwrap_err().to_string();
            assert!(error.contains(switch), "{}: {error}", case.name);
            continue;
        }
        let plan = Plan {
            num_inference_steps: case.num_inference_steps,
            timesteps: case.timesteps,
            sigmas: None,
            eta: case.eta,
        };
        let mut scheduler = config
            .unwrap()
            .build(&plan)
            .unwrap_or_else(|error| panic!("{}: {error}", case.name));
        let mut generator = Generator::new(case.seed).unwrap();
        assert_eq!(
            scheduler.init_noise_sigma(),
            case.init_noise_sigma,
            "{}",
            case.name
        );
        let timesteps = Tensor::from_slice(scheduler.timesteps());
        assert_eq!(
            timesteps,
            goldens.tensor(&format!("{}/timesteps", case.name)),
            "{}",
            case.name
        );
        let mut sample = goldens.tensor("sample");
        let mut samples = Vec::new();
        for index in 0..scheduler.timesteps().len() {
            let output = outputs.get(index as i64);
            sample = scheduler.step(&output, &sample, &mut generator).unwrap();
            samples.push(sample.shallow_clone());
        }
        assert!(
            scheduler.step(&sample, &sample, &mut generator).is_err(),
            "a step too many"
        );
        goldens.compare(
            &format!("{}/samples", case.name),
            &Tensor::stack(&samples, 0),
        );
    }
    goldens.report();
}

#[derive(Deserialize)]
struct Row {
    prompt: String,
    negative_prompt: Option<String>,
    gen_args: Map<String, Value>,
}

#[derive(Deserialize)]
struct PictureCase {
    name: String,
    checkpoint: String,
    rows: Vec<Row>,
}

/// The pictures of rows that are all in flight together.
fn generate(
    pipeline: &mut StableDiffusionPipeline,
    context: &RequestContext,
    rows: &[Row],
) -> Vec<Vec<Picture>> {
    let mut jobs: Vec<_> = rows
        .iter()
        .map(|row| {
            let gen_args = Value::Object(row.gen_args.clone()).to_string();
            let negative = row.negative_prompt.as_deref().map(str::as_bytes);
            let request = resolve(
                row.prompt.as_bytes(),
                negative,
                Some(gen_args.as_bytes()),
                context,
            )
            .unwrap();
            pipeline.prepare(request).unwrap()
        })
        .collect();
    loop {
        let mut going: Vec<_> = jobs
            .iter_mut()
            .filter(|job| !pipeline.is_done(job))
            .collect();
        if going.is_empty() {
            break;
        }
        // Rows of equal shape share the call, as in the engine.
        let shape = pipeline.batch(going[0]).shape;
        going.retain(|job| pipeline.batch(job).shape == shape);
        for outcome in pipeline.step(&mut going).unwrap() {
            outcome.unwrap();
        }
    }
    jobs.into_iter()
        .map(|job| pipeline.finish(job).unwrap().pictures)
        .collect()
}

fn pipeline(name: &str, parameters: &ModelParameters) -> (StableDiffusionPipeline, RequestContext) {
    let (components, _) = Components::load(&checkpoint(name), parameters, Place::Cpu).unwrap();
    let (height, width) = components.default_size();
    let context = RequestContext::new(
        components.class,
        parameters,
        height,
        width,
        components.num_text_layers(),
        &schedulers::NAMES,
    )
    .unwrap();
    (StableDiffusionPipeline::new(components), context)
}

#[test]
fn pictures() {
    let mut goldens = Goldens::open("pictures");
    let cases: Cases<PictureCase> = goldens.manifest();
    let _no_grad = tch::no_grad_guard();
    let mut exact = 0;
    for case in cases.cases {
        let (mut pipeline, context) = pipeline(&case.checkpoint, &ModelParameters::default());
        let rows = generate(&mut pipeline, &context, &case.rows);
        for (index, pictures) in rows.iter().enumerate() {
            let name = format!("{}/{index}", case.name);
            let theirs = goldens.tensor(&name);
            let size = theirs.size();
            assert_eq!(
                size[0] as usize,
                pictures.len(),
                "{name}: number of pictures"
            );
            for (picture, theirs) in pictures.iter().zip(theirs.split(1, 0)) {
                let (height, width) = (i64::from(picture.height()), i64::from(picture.width()));
                assert_eq!([height, width], [size[1], size[2]], "{name}: size");
                let theirs: Vec<u8> = theirs.reshape([-1]).try_into().unwrap();
                goldens.compared += 1;
                match compare_bytes(picture.rgb(), &theirs) {
                    Ok(equal) => exact += usize::from(equal),
                    Err(difference) => goldens.failures.push(format!("{name}: {difference}")),
                }
            }
        }
    }
    println!(
        "pictures: {exact} of {} equal to the byte",
        goldens.compared
    );
    goldens.report();
}

/// With `numerics: fast` rows are computed together; the pictures stay above 50 dB of diffusers'.
#[test]
fn fast_numerics_stay_close() {
    let goldens = Goldens::open("pictures");
    let cases: Cases<PictureCase> = goldens.manifest();
    let _no_grad = tch::no_grad_guard();
    let parameters = ModelParameters {
        numerics: Numerics::Fast,
        ..ModelParameters::default()
    };
    let mut compared = 0;
    for case in cases.cases.iter().filter(|case| case.rows.len() > 1) {
        let (mut pipeline, context) = pipeline(&case.checkpoint, &parameters);
        let rows = generate(&mut pipeline, &context, &case.rows);
        for (index, pictures) in rows.iter().enumerate() {
            let theirs = goldens.tensor(&format!("{}/{index}", case.name));
            for (picture, theirs) in pictures.iter().zip(theirs.split(1, 0)) {
                let theirs: Vec<u8> = theirs.reshape([-1]).try_into().unwrap();
                let psnr = psnr(picture.rgb(), &theirs);
                assert!(psnr > 50.0, "{}/{index}: {psnr} dB", case.name);
                compared += 1;
            }
        }
    }
    assert!(compared > 0);
}

/// Peak signal to noise ratio in dB of 8-bit pictures.
fn psnr(ours: &[u8], theirs: &[u8]) -> f64 {
    let square = |(a, b): (&u8, &u8)| (f64::from(*a) - f64::from(*b)).powi(2);
    let mean = ours.iter().zip(theirs).map(square).sum::<f64>() / ours.len() as f64;
    10.0 * (255.0 * 255.0 / mean).log10()
}

/// Whether all bytes are equal, or what differs if they must be equal or are not nearly.
fn compare_bytes(ours: &[u8], theirs: &[u8]) -> Result<bool, String> {
    if ours == theirs {
        return Ok(true);
    }
    let differing = ours.iter().zip(theirs).filter(|(a, b)| a != b).count();
    let largest = ours
        .iter()
        .zip(theirs)
        .map(|(a, b)| a.abs_diff(*b))
        .max()
        .unwrap_or(0);
    let nearly =
        ours.len() == theirs.len() && largest <= BYTE_TOLERANCE && differing * 100 <= ours.len();
    if parity().is_none() && nearly {
        return Ok(false);
    }
    Err(format!(
        "{differing} of {} bytes differ, by up to {largest}",
        ours.len()
    ))
}
