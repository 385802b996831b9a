//! The loaded parts of a model folder.

use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use tch::{Device, Kind};

use super::model_index::ModelIndex;
use crate::config::{Dtype, ModelParameters, Numerics, PipelineClass};
use crate::error::{Context, Error, Result};
use crate::libtorch::cuda;
use crate::models::{
    AutoencoderKl, AutoencoderKlConfig, ClipTextConfig, ClipTextModel, ClipTokenizer,
    UNet2DConditionModel, UNet2DConfig,
};
use crate::schedulers::SchedulerConfig;
use crate::weights::{Component, Shared, Weights, read_json};

/// Where an instance computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// On the host.
    Cpu,
    /// On the GPU of this index.
    Gpu(i32),
}

/// The parts of one model on one device. A clone shares the weights.
#[derive(Clone)]
pub struct Components {
    /// The pipeline that the folder is.
    pub class: PipelineClass,
    pub(super) tokenizer: Arc<ClipTokenizer>,
    pub(super) text_encoder: Shared<ClipTextModel>,
    pub(super) unet: Shared<UNet2DConditionModel>,
    pub(super) vae: Shared<AutoencoderKl>,
    pub(super) scheduler: SchedulerConfig,
    pub(super) device: Device,
    pub(super) numerics: Numerics,
}

impl Components {
    /// Loads `folder` as `parameters` say.
    ///
    /// The second value holds warnings for the log: parts of the folder that are left aside.
    ///
    /// # Errors
    /// A missing file or tensor (`NotFound`), a damaged one (`InvalidArgument`), one that we do not
    /// do (`Unsupported`), each by name; out of memory.
    pub fn load(
        folder: &Path,
        parameters: &ModelParameters,
        place: Place,
    ) -> Result<(Self, Vec<String>)> {
        let index = ModelIndex::read(folder)?;
        if index.class != PipelineClass::StableDiffusion {
            return Err(Error::unsupported(format!(
                "{}: {} is not supported yet",
                folder.join("model_index.json").display(),
                index.class
            )));
        }
        index.require("tokenizer", &["CLIPTokenizer", "CLIPTokenizerFast"])?;
        index.require("text_encoder", &["CLIPTextModel"])?;
        index.require("unet", &["UNet2DConditionModel"])?;
        index.require("vae", &["AutoencoderKL"])?;
        let mut warnings = Vec::new();
        if index.has("safety_checker") {
            warnings.push("the folder's safety_checker is not run".to_owned());
        }

        let device = match place {
            Place::Cpu => Device::Cpu,
            Place::Gpu(index) => cuda::device(index)?,
        };
        cuda::make_current(device)?;
        let kind = kind(parameters.dtype, device);
        let _no_grad = tch::no_grad_guard();
        let open = |name: &str, stem: &str| -> Result<Weights> {
            Ok(Weights::new(
                Component::open(&folder.join(name), stem)?,
                device,
                kind,
            ))
        };

        let text_config: ClipTextConfig = config(folder, "text_encoder")?;
        text_config.check()?;
        let unet_config: UNet2DConfig = config(folder, "unet")?;
        unet_config.check()?;
        let vae_config: AutoencoderKlConfig = config(folder, "vae")?;
        vae_config.check()?;
        if unet_config.in_channels != vae_config.latent_channels {
            return Err(Error::invalid_argument(format!(
                "unet/config.json: in_channels is {}, but {} takes the VAE's {} latent channels",
                unet_config.in_channels, index.class, vae_config.latent_channels
            )));
        }
        if unet_config.num_class_embeds.is_some() {
            return Err(Error::unsupported(format!(
                "unet/config.json: num_class_embeds is not supported by {}",
                index.class
            )));
        }
        if unet_config.cross_attention_dim != text_config.hidden_size {
            return Err(Error::invalid_argument(format!(
                "unet/config.json: cross_attention_dim is {}, but the text encoder's hidden_size is {}",
                unet_config.cross_attention_dim, text_config.hidden_size
            )));
        }
        let positions = usize::try_from(text_config.max_position_embeddings).unwrap_or(usize::MAX);
        let tokenizer =
            ClipTokenizer::open(&folder.join("tokenizer"), positions, text_config.vocab_size)?;
        let scheduler = read_scheduler(folder, parameters.scheduler.as_deref())?;

        let text_encoder = ClipTextModel::new(text_config, open("text_encoder", "model")?)?;
        let unet =
            UNet2DConditionModel::new(unet_config, open("unet", "diffusion_pytorch_model")?)?;
        let vae = AutoencoderKl::new(vae_config, open("vae", "diffusion_pytorch_model")?)?;
        let components = Self {
            class: index.class,
            tokenizer: Arc::new(tokenizer),
            text_encoder: Shared::new(text_encoder),
            unet: Shared::new(unet),
            vae: Shared::new(vae),
            scheduler,
            device,
            numerics: parameters.numerics,
        };
        Ok((components, warnings))
    }

    /// Height and width of a picture where a request does not say: what the UNet was trained on.
    pub fn default_size(&self) -> (u32, u32) {
        let (height, width) = self.unet.config().sample_sides();
        let factor = self.vae.config().scale_factor();
        let pixels = |side: i64| u32::try_from(side.saturating_mul(factor)).unwrap_or(u32::MAX);
        (pixels(height), pixels(width))
    }

    /// Layers of the text encoder.
    pub fn num_text_layers(&self) -> usize {
        self.text_encoder.config().num_hidden_layers
    }

    /// The scheduler that a request gets if it asks for none.
    pub fn scheduler_name(&self) -> &'static str {
        self.scheduler.class_name()
    }
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

fn read_scheduler(folder: &Path, class: Option<&str>) -> Result<SchedulerConfig> {
    let path = folder.join("scheduler").join("scheduler_config.json");
    let text = std::fs::read_to_string(&path)
        .map_err(|error| Error::not_found(format!("{}: {error}", path.display())))?;
    let own_folder = || folder.join("scheduler").display().to_string();
    match class {
        // The folder's own class need not be one that we know if another is asked for.
        Some(class) => SchedulerConfig::parse_as(&text, class).context(own_folder),
        None => SchedulerConfig::parse(&text).context(own_folder),
    }
}
