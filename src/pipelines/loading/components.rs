//! The loaded components of a model folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tch::Kind;

use super::model_folder::ModelFolder;
use super::{DepthEstimator, depth, safety_checker, scheduler, self_test, text_encoder, unet, vae, vae_tiny};
use crate::adapters::{AdaptableLayers, EmbeddingPool, Embeddings, JobAdapters, LoraPool, ScaledLora, load_lora};
use crate::models::clip::{ClipTextModel, ClipTokenizer};
use crate::models::unet::UNet2DConditionModel;
use crate::models::vae::{AutoencoderKl, AutoencoderTiny};
use crate::pipelines::prompt_encoder::PromptEncoder;
use crate::pipelines::prompt_encoder_xl::{TextEncoder, XlPromptEncoder};
use crate::pipelines::safety_check::SafetyCheck;
use crate::schedulers::{self, LowResScheduler, SchedulerConfig};
use crate::torch::{Device, Stream, cuda, threads};
use crate::weights::{MappedFiles, Progress, SharedModel, WeightMemory};
use diffusion_core::config::{ModelParameters, Numerics, PipelineClass};
use diffusion_core::suggest::did_you_mean;
use diffusion_core::{Context, Error, Result};
use diffusion_request::{GenerateRequest, ModelInfo};

/// The components of one model on one device. A clone shares the weights.
#[derive(Clone)]
pub struct Components {
    /// The pipeline of the folder.
    pub class: PipelineClass,
    pub(in crate::pipelines) tokenizer: Arc<ClipTokenizer>,
    pub(in crate::pipelines) text_encoder: SharedModel<ClipTextModel>,
    /// The second text encoder of Stable Diffusion XL.
    pub(in crate::pipelines) second_text_encoder: Option<TextEncoder>,
    /// Whether an absent negative prompt is encoded as zeros, in Stable Diffusion XL.
    zeros_for_absent_prompt: bool,
    pub(in crate::pipelines) unet: SharedModel<UNet2DConditionModel>,
    pub(in crate::pipelines) vae: SharedModel<AutoencoderKl>,
    /// Decodes for requests that ask for it.
    pub(in crate::pipelines) vae_tiny: Option<SharedModel<AutoencoderTiny>>,
    pub(in crate::pipelines) depth: Option<DepthEstimator>,
    pub(in crate::pipelines) safety_check: Option<SafetyCheck>,
    pub(in crate::pipelines) scheduler: SchedulerConfig,
    /// Adds noise to the upscaler's input.
    pub(in crate::pipelines) low_res_scheduler: Option<LowResScheduler>,
    /// The upscaler's largest `noise_level`; 0 for other pipelines.
    max_noise_level: u32,
    pub(in crate::pipelines) device: tch::Device,
    pub(in crate::pipelines) numerics: Numerics,
    /// Threads on the CPU; 0 for as many as the machine has.
    pub(in crate::pipelines) intra_op_threads: usize,
    /// The memory of the weights.
    pub memory: WeightMemory,
    /// The mapped files that the weights are in.
    pub(in crate::pipelines) files: MappedFiles,
    /// The LoRA that is part of the model, for every request.
    own_lora: Option<ScaledLora>,
    /// The LoRAs that requests may ask for.
    loras: Option<Arc<LoraPool>>,
    /// The textual inversions that prompts may have words of.
    embeddings: Option<Arc<EmbeddingPool>>,
}

/// LoRAs that stay in memory, unless the model says otherwise.
const LORA_CACHE_BYTES: u64 = 512 << 20;

impl Components {
    /// Loads the model in `folder` onto `device`.
    ///
    /// The second value holds warnings for the log.
    ///
    /// # Errors
    /// A missing file or tensor (`NotFound`), a damaged one (`InvalidArgument`), an unsupported one (`Unsupported`),
    /// each with its name; out of memory; a GPU that cannot compute the model.
    pub fn load(folder: &Path, parameters: &ModelParameters, device: Device) -> Result<(Self, Vec<String>)> {
        Self::load_with_progress(folder, parameters, device, &|_| {})
    }

    /// Does what [`Components::load`] does, and calls `report` with the progress at most every two seconds.
    ///
    /// # Errors
    /// Those of [`Components::load`].
    pub fn load_with_progress(
        folder: &Path,
        parameters: &ModelParameters,
        device: Device,
        report: &(dyn Fn(Progress) + Sync),
    ) -> Result<(Self, Vec<String>)> {
        let device = match device {
            Device::Cpu => tch::Device::Cpu,
            Device::Cuda(index) => cuda::device(index)?,
        };
        // Some weights are computed from others here. The self-test waits for them, since models run on other streams.
        let stream = Stream::new(device)?;
        stream.make_current()?;
        let _no_grad = tch::no_grad_guard();
        let mut warnings = Vec::new();
        let mut folder = ModelFolder::open(folder, device, parameters)?;
        self_test::check_dtype(device, folder.kind)?;

        let text_encoder = text_encoder::open(&mut folder)?;
        let second = text_encoder::open_second(&mut folder)?;
        let zeros_for_absent_prompt = folder.index.switch("force_zeros_for_empty_prompt", true)?;
        let vae = vae::open(&mut folder)?;
        let vae_tiny = vae_tiny::open(&mut folder, &vae.config)?;
        let unet = unet::open(
            &mut folder,
            &vae.config,
            &text_encoder.config,
            second.as_ref().map(|second| &second.config),
        )?;
        let scheduler = scheduler::open(&folder, parameters.scheduler.as_deref())?;
        let low_res = scheduler::open_low_res(&folder, &unet.config)?;
        let depth = depth::open(&mut folder)?;
        let safety_checker = safety_checker::open(&mut folder, parameters.safety_checker, &mut warnings)?;

        let mut weights = folder.loader.load(report)?;
        let fast = parameters.numerics == Numerics::Fast;
        let text_encoder = text_encoder.build(&mut weights, fast)?;
        let (max_noise_level, low_res_scheduler) = low_res
            .map(|low_res| (low_res.max_noise_level, low_res.scheduler))
            .unzip();
        let components = Self {
            class: folder.class,
            tokenizer: text_encoder.tokenizer,
            text_encoder: text_encoder.model,
            second_text_encoder: second.map(|second| second.build(&mut weights, fast)).transpose()?,
            zeros_for_absent_prompt,
            unet: unet.build(&mut weights, fast)?,
            vae: vae.build(&mut weights, fast)?,
            vae_tiny: vae_tiny.map(|tiny| tiny.build(&mut weights, fast)).transpose()?,
            depth: depth.map(|depth| depth.build(&mut weights)).transpose()?,
            safety_check: safety_checker.map(|checker| checker.build(&mut weights)).transpose()?,
            scheduler,
            low_res_scheduler,
            max_noise_level: max_noise_level.unwrap_or(0),
            device,
            numerics: parameters.numerics,
            intra_op_threads: parameters.intra_op_threads.unwrap_or(0) as usize,
            memory: weights.memory,
            files: weights.files,
            own_lora: None,
            loras: None,
            embeddings: None,
        };
        self_test::run(&components, &stream)?;
        components.files.check()?;
        Ok((components, warnings))
    }

    /// Lets requests ask for the LoRAs of a folder, which need not exist. They stay in memory up to `cache_bytes` bytes. With
    /// a `root`, no link may lead out of it. Does nothing for Stable Diffusion XL, which has no LoRAs yet.
    #[must_use]
    pub fn with_loras(mut self, folder: PathBuf, cache_bytes: Option<u64>, root: Option<PathBuf>) -> Self {
        if self.class.is_xl() {
            return self;
        }
        let cache_bytes = cache_bytes.unwrap_or(LORA_CACHE_BYTES);
        let pool = LoraPool::new(folder, self.adaptable_layers(), cache_bytes).inside(root);
        self.loras = Some(Arc::new(pool));
        self
    }

    /// Makes the LoRA at a path, a file or a folder, part of the model: it changes every request, before the LoRAs that the
    /// request asks for. With a `root`, no link may lead out of it.
    ///
    /// # Errors
    /// `NotFound` if there is no LoRA; `InvalidArgument` or `Unsupported` for one that does not fit the model.
    pub fn with_lora(mut self, path: &Path, scale: f64, root: Option<&Path>) -> Result<Self> {
        if self.class.is_xl() {
            return Err(Error::unsupported("LoRAs of Stable Diffusion XL are not supported"));
        }
        let lora = load_lora(path, &self.adaptable_layers(), root)?;
        self.own_lora = Some((Arc::new(lora), scale, scale));
        Ok(self)
    }

    /// Returns the memory of the LoRA that is part of the model, in bytes.
    pub fn own_lora_bytes(&self) -> u64 {
        self.own_lora.as_ref().map_or(0, |(lora, _, _)| lora.bytes())
    }

    fn adaptable_layers(&self) -> AdaptableLayers {
        AdaptableLayers::new(
            (self.unet.layers(), self.unet.kind()),
            (self.text_encoder.layers(), self.text_encoder.kind()),
            self.device,
        )
    }

    /// Returns the LoRAs that requests may ask for.
    pub fn loras(&self) -> Option<&LoraPool> {
        self.loras.as_deref()
    }

    /// Lets prompts have words of the textual inversions of a folder, which need not exist. With a `root`, no link may lead out
    /// of it. They are loaded by the first request, or by [`EmbeddingPool::get`]. Does nothing for Stable Diffusion XL, which has
    /// no textual inversion yet.
    #[must_use]
    pub fn with_embeddings(mut self, folder: PathBuf, root: Option<PathBuf>) -> Self {
        if self.class.is_xl() {
            return self;
        }
        let encoder = (self.text_encoder.config().hidden_size, self.text_encoder.kind());
        let pool = EmbeddingPool::new(folder, root, Arc::clone(&self.tokenizer), encoder);
        self.embeddings = Some(Arc::new(pool));
        self
    }

    /// Returns the textual inversions that prompts may have words of.
    pub fn embeddings(&self) -> Option<&EmbeddingPool> {
        self.embeddings.as_deref()
    }

    /// Returns the LoRAs of a request, the model's own and those that it asks for, and the textual inversions, if all are in
    /// memory.
    pub fn loaded_adapters(&self, request: &GenerateRequest) -> Option<Arc<JobAdapters>> {
        let embeddings = match self.embeddings() {
            Some(pool) => pool.loaded()?,
            None => Arc::default(),
        };
        let asked = request.loras.iter().map(|lora| {
            let loaded = self.loras()?.loaded(&lora.name)?;
            Some((loaded, lora.scale, lora.text_encoder_scale))
        });
        let own = self.own_lora.iter().cloned().map(Some);
        let scaled: Option<Vec<ScaledLora>> = own.chain(asked).collect();
        Some(Arc::new(JobAdapters::new(&scaled?).with_embeddings(embeddings)))
    }

    /// Returns the LoRAs of a request, the model's own and those that it asks for, and the textual inversions. Loads those that
    /// are not in memory.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported` for a LoRA that is not there, or that does not fit the model. The message tells
    /// which of the list it is.
    pub fn load_adapters(&self, request: &GenerateRequest) -> Result<Arc<JobAdapters>> {
        let asked = request.loras.iter().enumerate().map(|(index, lora)| {
            let pool = self.loras();
            let loaded = pool.map_or_else(
                || Err(Error::not_found("the model has no LoRAs")),
                |pool| pool.get(&lora.name),
            );
            let loaded = loaded.map_err(|error| match error {
                // A client asked for it.
                Error::NotFound(message) => {
                    let names = pool.map(LoraPool::names).unwrap_or_default();
                    let hint = did_you_mean(&lora.name, names.iter().map(String::as_str));
                    Error::invalid_argument(format!("{message}{hint}"))
                }
                error => error,
            });
            let loaded = loaded.context(|| format!("gen_args: `loras`, number {}", index + 1))?;
            Ok((loaded, lora.scale, lora.text_encoder_scale))
        });
        let own = self.own_lora.iter().cloned().map(Ok);
        let scaled: Result<Vec<ScaledLora>> = own.chain(asked).collect();
        let embeddings: Arc<Embeddings> = self.embeddings().map(EmbeddingPool::get).unwrap_or_default();
        Ok(Arc::new(JobAdapters::new(&scaled?).with_embeddings(embeddings)))
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
            tiny_decoder: self.vae_tiny.is_some(),
            safety_checker: self.safety_check.is_some(),
            schedulers: schedulers::names(),
        }
    }

    /// Calls `f`, which computes with libtorch's operators, on all threads of the instance. Fast numerics on the CPU leave
    /// libtorch one thread elsewhere.
    pub(in crate::pipelines) fn with_libtorch_threads<R>(&self, f: impl FnOnce() -> R) -> R {
        if self.device == tch::Device::Cpu && self.numerics == Numerics::Fast {
            threads::with_libtorch_threads(self.intra_op_threads, f)
        } else {
            f()
        }
    }

    /// The dtype of the UNet and the text encoder, as torch names it.
    pub fn dtype(&self) -> &'static str {
        match self.unet.kind() {
            Kind::Half => "float16",
            Kind::BFloat16 => "bfloat16",
            _ => "float32",
        }
    }

    /// The encoder that turns prompts into inputs of the UNet.
    pub fn prompt_encoder(&self) -> PromptEncoder {
        PromptEncoder::new(Arc::clone(&self.tokenizer), self.text_encoder.clone(), self.device)
    }

    /// Creates an encoder for the prompts of Stable Diffusion XL; `None` for another family.
    pub fn xl_prompt_encoder(&self) -> Option<XlPromptEncoder> {
        let second = self.second_text_encoder.clone()?;
        let first = TextEncoder {
            tokenizer: Arc::clone(&self.tokenizer),
            model: self.text_encoder.clone(),
        };
        Some(XlPromptEncoder::new([first, second], self.zeros_for_absent_prompt))
    }

    /// The default scheduler of a request.
    pub fn scheduler_name(&self) -> &'static str {
        self.scheduler.class_name()
    }
}
