//! The loaded parts of a model folder.

use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use tch::{Device, Kind};

use super::model_index::ModelIndex;
use crate::models::clip::{ClipTextConfig, ClipTextModel, ClipTokenizer};
use crate::models::dpt::{DptConfig, DptForDepthEstimation};
use crate::models::unet::{UNet2DConditionModel, UNet2DConfig};
use crate::models::vae::{AutoencoderKl, AutoencoderKlConfig};
use crate::pipelines::prompt_encoder::PromptEncoder;
use crate::pipelines::safety_check::SafetyCheck;
use crate::processors::DptImageProcessor;
use crate::schedulers::{self, LowResScheduler, SchedulerConfig};
use crate::torch::cuda;
use crate::weights::{Footprint, Loader, Progress, Shared, read_json};
use diffusion_core::config::{Dtype, ModelParameters, Numerics, PipelineClass};
use diffusion_core::{Context, Error, Result};
use diffusion_request::ModelInfo;

/// `scaling_factor` of the x4 upscaler's VAE (`pipeline_stable_diffusion_upscale.py`).
const UPSCALE_SCALING_FACTOR: f64 = 0.08333;
/// `max_noise_level` where `model_index.json` has none, diffusers' default.
const MAX_NOISE_LEVEL: u32 = 350;

/// Where an instance computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// On the host.
    Cpu,
    /// On the GPU of this index.
    Gpu(i32),
}

impl Place {
    /// The place as libtorch calls it, whether or not it is there.
    pub fn device(self) -> Device {
        match self {
            Self::Cpu => Device::Cpu,
            Self::Gpu(index) => usize::try_from(index).map_or(Device::Cpu, Device::Cuda),
        }
    }
}

/// `cpu`, `gpu0`, `gpu1`, ...
impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu(index) => write!(f, "gpu{index}"),
        }
    }
}

/// What depth to image has beside the common parts.
#[derive(Clone)]
pub struct DepthEstimator {
    /// Makes what the model takes of an image.
    pub processor: Arc<DptImageProcessor>,
    /// The model.
    pub model: Shared<DptForDepthEstimation>,
}

/// The parts of one model on one device. A clone shares the weights.
#[derive(Clone)]
pub struct Components {
    /// The pipeline that the folder is.
    pub class: PipelineClass,
    pub(in crate::pipelines) tokenizer: Arc<ClipTokenizer>,
    pub(in crate::pipelines) text_encoder: Shared<ClipTextModel>,
    pub(in crate::pipelines) unet: Shared<UNet2DConditionModel>,
    pub(in crate::pipelines) vae: Shared<AutoencoderKl>,
    pub(in crate::pipelines) depth: Option<DepthEstimator>,
    pub(in crate::pipelines) safety_check: Option<SafetyCheck>,
    pub(in crate::pipelines) scheduler: SchedulerConfig,
    /// Makes the upscaler's input noisy.
    pub(in crate::pipelines) low_res_scheduler: Option<LowResScheduler>,
    /// The upscaler's largest `noise_level`; 0 for others.
    max_noise_level: u32,
    pub(in crate::pipelines) device: Device,
    pub(in crate::pipelines) numerics: Numerics,
    /// What the weights take.
    pub footprint: Footprint,
}

impl Components {
    /// Loads `folder` as `parameters` say.
    ///
    /// The second value holds warnings for the log: parts of the folder that are left aside.
    ///
    /// # Errors
    /// A missing file or tensor (`NotFound`), a damaged one (`InvalidArgument`), one that we do not
    /// do (`Unsupported`), each by name; out of memory.
    pub fn load(folder: &Path, parameters: &ModelParameters, place: Place) -> Result<(Self, Vec<String>)> {
        Self::load_reporting(folder, parameters, place, &|_| {})
    }

    /// As [`Components::load`]; `report` is told every two seconds how far it is.
    ///
    /// # Errors
    /// As there.
    pub fn load_reporting(
        folder: &Path,
        parameters: &ModelParameters,
        place: Place,
        report: &(dyn Fn(Progress) + Sync),
    ) -> Result<(Self, Vec<String>)> {
        let index = ModelIndex::read(folder)?;
        let class = index.class;
        index.require("tokenizer", &["CLIPTokenizer", "CLIPTokenizerFast"])?;
        index.require("text_encoder", &["CLIPTextModel"])?;
        index.require("unet", &["UNet2DConditionModel"])?;
        index.require("vae", &["AutoencoderKL"])?;
        let mut warnings = Vec::new();
        let device = match place {
            Place::Cpu => Device::Cpu,
            Place::Gpu(index) => cuda::device(index)?,
        };
        cuda::make_current(device)?;
        let kind = kind(parameters.dtype, device);
        let _no_grad = tch::no_grad_guard();
        let mut loader = Loader::new(device);

        let text_config: ClipTextConfig = config(folder, "text_encoder")?;
        text_config.check()?;
        let unet_config: UNet2DConfig = config(folder, "unet")?;
        unet_config.check()?;
        let mut vae_config: AutoencoderKlConfig = config(folder, "vae")?;
        vae_config.check()?;
        let mut vae_kind = kind;
        if class == PipelineClass::Upscale {
            // The pipeline's own, whatever the file says; old files say nothing.
            vae_config.scaling_factor = UPSCALE_SCALING_FACTOR;
            if kind == Kind::Half && vae_config.force_upcast {
                vae_kind = Kind::Float;
            }
        }
        check_unet(class, &unet_config, &vae_config, &text_config)?;
        let positions = usize::try_from(text_config.max_position_embeddings).unwrap_or(usize::MAX);
        let tokenizer = ClipTokenizer::open(&folder.join("tokenizer"), positions, text_config.vocab_size)?;
        let scheduler = read_scheduler(folder, class, parameters.scheduler.as_deref())?;
        let (mut low_res_scheduler, mut max_noise_level) = (None, 0);
        if class == PipelineClass::Upscale {
            index.require("low_res_scheduler", &["DDPMScheduler"])?;
            let own = folder.join("low_res_scheduler");
            let text = read_text(&own.join("scheduler_config.json"))?;
            let scheduler = LowResScheduler::parse(&text).context(|| own.display().to_string())?;
            max_noise_level = index.number("max_noise_level")?.unwrap_or(MAX_NOISE_LEVEL);
            let classes = unet_config.num_class_embeds.unwrap_or(0);
            let levels = scheduler.num_train_timesteps().min(classes);
            if i64::from(max_noise_level) >= levels {
                return Err(Error::invalid_argument(format!(
                    "model_index.json: max_noise_level is {max_noise_level}, beyond the {levels} noise levels of the UNet and the low_res_scheduler"
                )));
            }
            low_res_scheduler = Some(scheduler);
        }
        let depth = if class == PipelineClass::Depth2Img {
            index.require("depth_estimator", &["DPTForDepthEstimation"])?;
            index.require(
                "feature_extractor",
                &["DPTImageProcessor", "DPTFeatureExtractor", "DPTImageProcessorFast"],
            )?;
            let depth_config: DptConfig = config(folder, "depth_estimator")?;
            depth_config.check()?;
            let processor = DptImageProcessor::open(&folder.join("feature_extractor"))?;
            processor.check(depth_config.image_size)?;
            let part = loader.open(&folder.join("depth_estimator"), "model", kind)?;
            Some((processor, depth_config, part))
        } else {
            None
        };

        let safety_check = if !index.has("safety_checker") {
            None
        } else if !parameters.safety_checker {
            warnings.push("safety_checker is off: images are not looked at".to_owned());
            None
        } else {
            index.require("safety_checker", &["StableDiffusionSafetyChecker"])?;
            index.require(
                "feature_extractor",
                &["CLIPImageProcessor", "CLIPFeatureExtractor", "CLIPImageProcessorFast"],
            )?;
            Some(loader.open(&folder.join("safety_checker"), "model", kind)?)
        };

        let text_part = loader.open(&folder.join("text_encoder"), "model", kind)?;
        let unet_part = loader.open(&folder.join("unet"), "diffusion_pytorch_model", kind)?;
        let vae_part = loader.open(&folder.join("vae"), "diffusion_pytorch_model", vae_kind)?;
        let mut loaded = loader.load(report)?;
        let text_encoder = ClipTextModel::new(text_config, loaded.take(text_part)?)?;
        let unet = UNet2DConditionModel::new(unet_config, loaded.take(unet_part)?)?;
        let vae = AutoencoderKl::new(vae_config, loaded.take(vae_part)?)?;
        let depth = match depth {
            Some((processor, config, part)) => Some(DepthEstimator {
                processor: Arc::new(processor),
                model: Shared::new(DptForDepthEstimation::new(config, loaded.take(part)?)?),
            }),
            None => None,
        };
        let safety_check = match safety_check {
            Some(part) => Some(SafetyCheck::load(folder, loaded.take(part)?)?),
            None => None,
        };
        let components = Self {
            class,
            tokenizer: Arc::new(tokenizer),
            text_encoder: Shared::new(text_encoder),
            unet: Shared::new(unet),
            vae: Shared::new(vae),
            depth,
            safety_check,
            scheduler,
            low_res_scheduler,
            max_noise_level,
            device,
            numerics: parameters.numerics,
            footprint: loaded.footprint,
        };
        Ok((components, warnings))
    }

    /// Returns the facts that decide the model's requests.
    pub fn model_info(&self) -> ModelInfo {
        let (height, width) = self.unet.config().sample_sides();
        let factor = self.vae.config().scale_factor();
        let pixels = |side: i64| u32::try_from(side.saturating_mul(factor)).unwrap_or(u32::MAX);
        ModelInfo {
            class: self.class,
            default_height: pixels(height),
            default_width: pixels(width),
            vae_scale_factor: pixels(1),
            num_text_layers: self.text_encoder.config().num_hidden_layers,
            guidance_embedding: self.unet.config().time_cond_proj_dim.is_some(),
            max_noise_level: self.max_noise_level,
            schedulers: schedulers::names(),
        }
    }

    /// What turns prompts into the UNet's inputs.
    pub fn prompt_encoder(&self) -> PromptEncoder {
        PromptEncoder::new(Arc::clone(&self.tokenizer), self.text_encoder.clone(), self.device)
    }

    /// The scheduler that a request gets if it asks for none.
    pub fn scheduler_name(&self) -> &'static str {
        self.scheduler.class_name()
    }
}

/// Checks that the UNet takes what the pipeline shows it.
fn check_unet(
    class: PipelineClass,
    unet: &UNet2DConfig,
    vae: &AutoencoderKlConfig,
    text: &ClipTextConfig,
) -> Result<()> {
    let latents = vae.latent_channels;
    let takes: &[i64] = match class {
        PipelineClass::StableDiffusion | PipelineClass::LatentConsistency | PipelineClass::Img2Img => &[latents],
        PipelineClass::Depth2Img => &[latents + 1],
        // With channels for the mask and the masked image, or without.
        PipelineClass::Inpaint => &[latents * 2 + 1, latents],
        PipelineClass::Upscale => &[latents + vae.in_channels],
    };
    if !takes.contains(&unet.in_channels) {
        let takes: Vec<String> = takes.iter().map(i64::to_string).collect();
        return Err(Error::invalid_argument(format!(
            "unet/config.json: in_channels is {}, but {class} with a VAE of {latents} latent channels has {}",
            unet.in_channels,
            takes.join(" or ")
        )));
    }
    if unet.num_class_embeds.is_some() != (class == PipelineClass::Upscale) {
        return Err(Error::unsupported(format!(
            "unet/config.json: {class} needs {} num_class_embeds",
            if class == PipelineClass::Upscale {
                "a UNet with"
            } else {
                "one without"
            },
        )));
    }
    if class == PipelineClass::LatentConsistency && unet.time_cond_proj_dim.is_none() {
        return Err(Error::invalid_argument(format!(
            "unet/config.json: time_cond_proj_dim is missing, but {class} needs it"
        )));
    }
    if matches!(class, PipelineClass::Depth2Img | PipelineClass::Upscale) && unet.time_cond_proj_dim.is_some() {
        return Err(Error::unsupported(format!(
            "unet/config.json: time_cond_proj_dim is not supported by {class}"
        )));
    }
    if unet.cross_attention_dim != text.hidden_size {
        return Err(Error::invalid_argument(format!(
            "unet/config.json: cross_attention_dim is {}, but the text encoder's hidden_size is {}",
            unet.cross_attention_dim, text.hidden_size
        )));
    }
    Ok(())
}

/// The dtype that weights are held and computed in.
fn kind(dtype: Dtype, device: Device) -> Kind {
    match dtype {
        Dtype::Float32 => Kind::Float,
        Dtype::Float16 => Kind::Half,
        Dtype::Bfloat16 => Kind::BFloat16,
        Dtype::Auto if device.is_cuda() => Kind::Half,
        Dtype::Auto => Kind::Float,
    }
}

fn config<T: DeserializeOwned>(folder: &Path, component: &str) -> Result<T> {
    read_json(&folder.join(component).join("config.json"))
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| Error::not_found(format!("{}: {error}", path.display())))
}

fn read_scheduler(folder: &Path, pipeline: PipelineClass, class: Option<&str>) -> Result<SchedulerConfig> {
    let own = folder.join("scheduler");
    let text = read_text(&own.join("scheduler_config.json"))?;
    SchedulerConfig::of_pipeline(&text, pipeline, class).context(|| own.display().to_string())
}
