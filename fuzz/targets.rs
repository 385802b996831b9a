//! What the fuzzer and `tests/fuzz_corpus` call with any bytes. A target panics if something is wrong.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each program uses some targets, which fail by panicking"
)]

use std::fs;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use diffusion_core::config::{ModelParameters, PipelineClass};
use diffusion_core::{Error, Result};
use diffusion_image::{EncodedImage, ImageLimits, RgbImage};
use diffusion_request::{ElementInputs, GenerateRequest, ModelInfo, PromptSyntax, Prompts, RequestValidator};
use tch::{Device, Kind};
use triton_diffusion::adapters::{AdaptableLayers, EmbeddingPool, LoraPool};
use triton_diffusion::models::clip::{ClipTextConfig, ClipTokenizer, ClipVisionConfig};
use triton_diffusion::models::dpt::DptConfig;
use triton_diffusion::models::safety_checker::SafetyCheckerConfig;
use triton_diffusion::models::unet::UNet2DConfig;
use triton_diffusion::models::vae::{AutoencoderKlConfig, AutoencoderTinyConfig};
use triton_diffusion::pipelines::ModelIndex;
use triton_diffusion::processors::{ClipImageProcessor, DptImageProcessor};
use triton_diffusion::schedulers::{self, LowResScheduler, SamplingOptions, SchedulerConfig};
use triton_diffusion::weights::{LayerShapes, TensorFile, read_json};

/// Images of more pixels are refused, so that a run stays short.
const LIMITS: ImageLimits = ImageLimits {
    max_base64_bytes: 4 << 20,
    max_pixels: 1 << 20,
    max_side: 16_384,
};

/// Takes any bytes.
pub type Target = fn(&[u8]);

/// All targets, by the names of their corpora.
pub const TARGETS: [(&str, Target); 9] = [
    ("bytes", bytes_tensor),
    ("gen_args", gen_args),
    ("prompt", weighted_prompt),
    ("base64", base64_image),
    ("image", image_file),
    ("safetensors", safetensors_file),
    ("adapter", adapter_files),
    ("tokenizer", tokenizer_folder),
    ("config", config_file),
];

/// The first byte is the number of elements, the rest a BYTES tensor. What is decoded gives the same bytes again.
pub fn bytes_tensor(data: &[u8]) {
    let Some((&expected, tensor)) = data.split_first() else {
        return;
    };
    if let Ok(elements) = triton_api::decode_bytes(tensor, expected.into()) {
        assert_eq!(elements.len(), usize::from(expected));
        assert_eq!(triton_api::encode_bytes(&elements).unwrap(), tensor);
    }
}

/// The first byte chooses the pipeline, the rest is `gen_args`. The arguments of an accepted request are within its limits,
/// and give the same request again.
pub fn gen_args(data: &[u8]) {
    // In this order, which the corpus depends on.
    const CLASSES: [PipelineClass; 9] = [
        PipelineClass::StableDiffusion,
        PipelineClass::LatentConsistency,
        PipelineClass::Img2Img,
        PipelineClass::Depth2Img,
        PipelineClass::Inpaint,
        PipelineClass::Upscale,
        PipelineClass::StableDiffusionXl,
        PipelineClass::Img2ImgXl,
        PipelineClass::InpaintXl,
    ];
    let Some((&class, args)) = data.split_first() else {
        return;
    };
    let index = usize::from(class) % CLASSES.len();
    let class = CLASSES[index];
    // Made once: making them takes longer than the rest.
    static IMAGE: LazyLock<String> = LazyLock::new(image);
    static VALIDATORS: LazyLock<Vec<RequestValidator>> = LazyLock::new(|| {
        let parameters = ModelParameters::default();
        let make = |&class| RequestValidator::new(model_info(class), &parameters).unwrap();
        CLASSES.iter().map(make).collect()
    });
    let (image, validator) = (&*IMAGE, &VALIDATORS[index]);
    let takes_image = !matches!(
        class,
        PipelineClass::StableDiffusion | PipelineClass::LatentConsistency | PipelineClass::StableDiffusionXl
    );
    let takes_mask = matches!(class, PipelineClass::Inpaint | PipelineClass::InpaintXl);
    let validate = |args: &[u8]| {
        validator.validate(&ElementInputs {
            prompt: b"a cat",
            image: takes_image.then_some(image.as_bytes()),
            mask_image: takes_mask.then_some(image.as_bytes()),
            gen_args: Some(args),
            ..ElementInputs::default()
        })
    };
    match validate(args) {
        Err(error) => check_error(&error),
        Ok(request) => {
            let limits = validator.limits();
            assert!(request.pixels() <= limits.max_pixels.max(64 * 64 * 16), "{request:?}");
            assert!(
                request.unet_batch_size() as u64 <= u64::from(limits.max_unet_batch_size),
                "{request:?}"
            );
            assert!(
                (1..=limits.max_steps as usize).contains(&request.num_inference_steps),
                "{request:?}"
            );
            let mut again = request.gen_args();
            if let Some(scheduler) = &request.scheduler {
                again.insert("scheduler".to_owned(), scheduler.clone().into());
            }
            let again = serde_json::to_vec(&again).unwrap();
            let repeated = validate(&again).unwrap_or_else(|error| panic!("{error}: {}", again.escape_ascii()));
            // How long the client waits is not an argument of the image.
            let timeout = request.timeout;
            assert_eq!(GenerateRequest { timeout, ..repeated }, request);
        }
    }
}

/// The text of a weighted prompt: the parts are the text without its syntax, and weights are numbers.
pub fn weighted_prompt(data: &[u8]) {
    let text = String::from_utf8_lossy(data).into_owned();
    for syntax in [PromptSyntax::Weighted, PromptSyntax::Plain] {
        match Prompts::parse(syntax, text.clone(), text.clone()) {
            Ok(prompts) => assert_eq!(prompts.syntax(), syntax),
            Err(error) => check_error(&error),
        }
    }
}

/// The base64 text of an image, or a `data:` URL.
pub fn base64_image(data: &[u8]) {
    decode(data);
}

/// An image file.
pub fn image_file(data: &[u8]) {
    decode(BASE64_STANDARD.encode(data).as_bytes());
}

/// A safetensors file: its tensors lie within the file.
pub fn safetensors_file(data: &[u8]) {
    with_folder(&[("model.safetensors", data)], |folder| {
        match TensorFile::open(&folder.join("model.safetensors")) {
            Err(error) => check_file_error(&error),
            Ok(file) => {
                for name in file.names() {
                    let info = file.info(&name).unwrap();
                    let range = file.range(info);
                    assert!(range.start <= range.end && range.end <= data.len());
                    if let Err(error) = file.tensor(&name) {
                        check_file_error(&error);
                    }
                }
            }
        }
    });
}

/// A LoRA's file; after a first byte of 1, the configuration of one in a folder of peft; after a 2, a file of textual
/// inversion.
pub fn adapter_files(data: &[u8]) {
    const FILE: &str = "lora.safetensors";
    let layers = LayerShapes::from([
        ("down_blocks.0.proj".into(), vec![6, 4]),
        ("conv_in".into(), vec![6, 4, 3, 3]),
    ]);
    let text = LayerShapes::from([("encoder.layers.0.mlp.fc1".into(), vec![5, 3])]);
    let get = |folder: &Path, name: &str| {
        let layers = AdaptableLayers::new((&layers, Kind::Float), (&text, Kind::Float), Device::Cpu);
        let pool = LoraPool::new(folder.to_path_buf(), layers, 1 << 20);
        match pool.get(name) {
            Ok(lora) => assert!(lora.bytes() > 0),
            Err(error) => check_file_error(&error),
        }
    };
    match data.split_first() {
        Some((2, file)) => with_folder(&[("word.safetensors", file)], embedding_folder),
        Some((1, config)) => with_folder(
            &[("adapter_model.safetensors", LORA), ("adapter_config.json", config)],
            |folder| {
                let name = folder.file_name().unwrap().to_str().unwrap();
                get(folder.parent().unwrap(), name);
            },
        ),
        _ => with_folder(&[(FILE, data)], |folder| get(folder, "lora")),
    }
}

/// Texts have either the vectors of a file or an error that tells its name, and texts without its word have no error.
fn embedding_folder(folder: &Path) {
    const TOKENIZER: &[u8] = include_bytes!("corpus/tokenizer/minimal");
    // Made once: making it takes longer than the rest.
    static OPENED: LazyLock<Arc<ClipTokenizer>> = LazyLock::new(|| {
        let mut opened = None;
        with_folder(&tokenizer_files(TOKENIZER), |folder| {
            opened = Some(Arc::new(ClipTokenizer::open(folder, 77, 3).unwrap()));
        });
        opened.unwrap()
    });
    let pool = EmbeddingPool::new(folder.to_path_buf(), None, Arc::clone(&OPENED), (4, Kind::Float));
    let embeddings = pool.get();
    let words: Vec<(&str, usize)> = embeddings.words().collect();
    assert_eq!(words.len() + embeddings.warnings().len(), 1);
    for (word, vectors) in words {
        let text = embeddings.convert(word).unwrap();
        let ids = embeddings.encode_unpadded(&OPENED, &text).unwrap();
        assert_eq!(ids.len(), vectors);
        for id in ids {
            let vector = embeddings.vector(id).unwrap();
            assert!(vector.len() == 4 && vector.iter().all(|number| number.is_finite()));
        }
    }
    if let Err(error) = embeddings.encode_unpadded(&OPENED, "a word") {
        assert!(error.to_string().contains("word.safetensors"), "{error}");
        check_file_error(&error);
    }
}

/// A LoRA of peft for the layers of [`adapter_files`].
const LORA: &[u8] = include_bytes!("corpus/adapter/peft");

/// The names and contents of a tokenizer's files, which zeros separate.
fn tokenizer_files(data: &[u8]) -> Vec<(&str, &[u8])> {
    const NAMES: [&str; 4] = [
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ];
    let contents = data.splitn(NAMES.len(), |&byte| byte == 0);
    NAMES.into_iter().zip(contents).collect()
}

/// The files of a tokenizer, separated by zeros: `vocab.json`, `merges.txt`, `tokenizer_config.json` and
/// `special_tokens_map.json`. Its tokens are numbers of the vocabulary.
pub fn tokenizer_folder(data: &[u8]) {
    const VOCABULARY: i64 = 49_408;
    with_folder(&tokenizer_files(data), |folder| {
        match ClipTokenizer::open(folder, 77, VOCABULARY) {
            Err(error) => check_file_error(&error),
            Ok(tokenizer) => {
                for text in ["a photo of a cat", "", "<|endoftext|> \u{1F408} x0"] {
                    match tokenizer.encode_unpadded(text) {
                        Ok(tokens) => assert!(tokens.iter().all(|token| (0..VOCABULARY).contains(token))),
                        Err(error) => check_file_error(&error),
                    }
                    if let Err(error) = tokenizer.encode(text) {
                        check_file_error(&error);
                    }
                }
            }
        }
    });
}

/// The first byte chooses a configuration file, the rest is its text. What is accepted can be worked with.
pub fn config_file(data: &[u8]) {
    let Some((&kind, text)) = data.split_first() else {
        return;
    };
    // The same text in each place where a file is read by its name.
    let files = [("model_index.json", text), ("preprocessor_config.json", text)];
    with_folder(&files, |folder| {
        let path = folder.join("model_index.json");
        let result = match kind % 11 {
            0 => ModelIndex::read(folder).and_then(|index| index.pipeline_class().map(drop)),
            1 => read_json::<UNet2DConfig>(&path).and_then(|config| {
                config.check()?;
                for fast in [false, true] {
                    config.activation_values(256, 256, fast);
                }
                config.text_values();
                config.largest_kernel_values();
                Ok(())
            }),
            2 => read_json::<AutoencoderKlConfig>(&path).and_then(|config| {
                config.check()?;
                for fast in [false, true] {
                    config.decoder_values(256, 256, fast);
                    config.encoder_values(2048, 2048, fast);
                }
                Ok(())
            }),
            3 => read_json::<ClipTextConfig>(&path).and_then(|config| config.check("text_encoder/config.json")),
            4 => read_json::<ClipVisionConfig>(&path).and_then(|config| config.check("config.json")),
            5 => read_json::<DptConfig>(&path).and_then(|config| {
                config.check()?;
                config.fused_values();
                Ok(())
            }),
            6 => read_json::<SafetyCheckerConfig>(&path).and_then(|config| config.check()),
            7 => read_json::<AutoencoderTinyConfig>(&path).and_then(|config| config.check()),
            8 => DptImageProcessor::open(folder).and_then(|processor| processor.check(384)),
            9 => ClipImageProcessor::open(folder).and_then(|processor| processor.check_size(512, 512)),
            _ => scheduler(text),
        };
        if let Err(error) = result {
            check_file_error(&error);
        }
    });
}

/// A scheduler's file builds a run of finite timesteps, or is refused.
fn scheduler(text: &[u8]) -> Result<()> {
    let text = std::str::from_utf8(text).map_err(|_| Error::invalid_argument("not UTF-8"))?;
    drop(LowResScheduler::parse(text));
    let config = SchedulerConfig::parse(text)?;
    for steps in [1, 3, 50] {
        let scheduler = config.build(&SamplingOptions {
            num_inference_steps: steps,
            timesteps: None,
            sigmas: None,
            eta: 0.0,
        })?;
        assert!(scheduler.timesteps().iter().all(|timestep| timestep.is_finite()));
    }
    Ok(())
}

fn decode(text: &[u8]) {
    let image = match EncodedImage::new("image", text, &LIMITS) {
        Ok(image) => image,
        Err(error) => return check_error(&error),
    };
    let pixels = u64::from(image.width()) * u64::from(image.height());
    assert!((1..=LIMITS.max_pixels).contains(&pixels));
    let size = |decoded: &RgbImage| {
        assert_eq!((decoded.width(), decoded.height()), (image.width(), image.height()));
        assert_eq!(decoded.rgb().len() as u64, pixels * 3);
    };
    let results = [
        image.rgb().map(|image| size(&image)),
        image.mask().map(drop),
        image.depth_map().map(drop),
    ];
    for result in results {
        if let Err(error) = result {
            check_error(&error);
        }
    }
}

/// An error that a client causes is the client's, and says so in words that are not those of a lack of memory.
fn check_error(error: &Error) {
    assert!(
        matches!(error, Error::InvalidArgument(_) | Error::Unsupported(_)),
        "{error:?}"
    );
}

/// An error of a file names what is wrong with the file.
fn check_file_error(error: &Error) {
    let expected = matches!(
        error,
        Error::InvalidArgument(_) | Error::Unsupported(_) | Error::NotFound(_)
    );
    assert!(expected, "{error:?}");
}

fn model_info(class: PipelineClass) -> ModelInfo {
    ModelInfo {
        class,
        default_height: 64,
        default_width: 64,
        vae_scale_factor: if class == PipelineClass::Upscale { 4 } else { 8 },
        num_text_layers: 23,
        guidance_embedding: class == PipelineClass::LatentConsistency,
        max_noise_level: if class == PipelineClass::Upscale { 350 } else { 0 },
        tiny_decoder: true,
        safety_checker: false,
        schedulers: schedulers::names(),
    }
}

/// A PNG of 64x64 pixels in base64.
fn image() -> String {
    let image = RgbImage::new(64, 64, vec![128; 64 * 64 * 3]).unwrap();
    let format = diffusion_image::OutputFormat::Png;
    diffusion_image::to_base64(&diffusion_image::encode(&image, &format, &serde_json::Value::Null, false).unwrap())
}

/// Calls `call` with a folder of these files, in memory where the system has such a place.
fn with_folder(files: &[(&str, &[u8])], call: impl FnOnce(&Path)) {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    let folder = folder.unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    call(folder.path());
}
