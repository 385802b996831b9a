//! Which tensor of the file is which of the folder's.

use std::collections::{BTreeMap, BTreeSet};

use diffusion_core::{Error, Result};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use super::{clip, unet, vae};
use crate::tensors::{Entry, Source};

const UNET: &str = "model.diffusion_model.";
const VAE: &str = "first_stage_model.";
const CLIP: &str = "cond_stage_model.transformer.";
const OPEN_CLIP: &str = "cond_stage_model.model.";

/// A component of the folder that has weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// `unet/`
    Unet,
    /// `vae/`
    Vae,
    /// `text_encoder/`
    TextEncoder,
}

impl Component {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Unet, Self::Vae, Self::TextEncoder];

    /// The file of its weights.
    pub fn weights(self) -> &'static str {
        match self {
            Self::Unet => "unet/diffusion_pytorch_model.safetensors",
            Self::Vae => "vae/diffusion_pytorch_model.safetensors",
            Self::TextEncoder => "text_encoder/model.safetensors",
        }
    }
}

/// Whose text encoder it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Stable Diffusion 1: OpenAI's CLIP ViT-L/14.
    Sd1,
    /// Stable Diffusion 2: OpenCLIP ViT-H/14 without its last layer.
    Sd2,
}

/// A tensor of the folder, and the part of the file's tensor that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its name in its component.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Which of the equal parts of the file's tensor, along the first dimension: number and count.
    pub part: (u64, u64),
}

impl Place {
    /// The whole of a tensor.
    pub fn whole(name: impl Into<String>, shape: &[usize]) -> Self {
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            part: (0, 1),
        }
    }
}

/// What becomes of a tensor of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is one of the folder's, or several.
    Kept(Vec<Place>),
    /// No component needs it, for this reason.
    LeftOut(&'static str),
}

/// The file's tensors, by what becomes of them.
pub struct Layout {
    /// Whose text encoder it is.
    pub family: Family,
    entries: BTreeMap<Component, Vec<Entry>>,
    left_out: BTreeMap<&'static str, usize>,
}

impl Layout {
    /// The layout of a file.
    ///
    /// # Errors
    /// `Unsupported` for a file of another model, `NotFound` if a component is missing, `InvalidArgument` for a tensor of a
    /// component that has no place in it.
    pub fn of(source: &Source) -> Result<Self> {
        let names = source.names();
        let infos: Vec<(&str, &TensorInfo)> = names
            .iter()
            .filter_map(|name| Some((name.as_str(), source.info(name)?)))
            .collect();
        Self::of_tensors(&infos)
    }

    /// [`Layout::of`] the tensors of a file.
    ///
    /// # Errors
    /// As there.
    pub fn of_tensors(tensors: &[(&str, &TensorInfo)]) -> Result<Self> {
        let family = family(tensors)?;
        let unet_names = tensors.iter().filter_map(|(name, _)| name.strip_prefix(UNET));
        let unet = unet::Blocks::of(unet_names.clone());
        let vae_names = tensors.iter().filter_map(|(name, _)| name.strip_prefix(VAE));
        let vae = vae::Blocks::of(vae_names);
        let mut layout = Self {
            family,
            entries: BTreeMap::new(),
            left_out: BTreeMap::new(),
        };
        for (name, info) in tensors {
            match fate(name, &info.shape, &unet, &vae) {
                Some((component, Some(Fate::Kept(places)))) => {
                    let own = layout.entries.entry(component).or_default();
                    own.extend(places.into_iter().map(|place| entry(name, info, place)));
                }
                Some((_, Some(Fate::LeftOut(why)))) => *layout.left_out.entry(why).or_default() += 1,
                Some((_, None)) => {
                    return Err(Error::invalid_argument(format!(
                        "tensor {name} of shape {:?} has no place in a diffusers folder",
                        info.shape
                    )));
                }
                None => *layout.left_out.entry(why_left_out(name)).or_default() += 1,
            }
        }
        layout.check_names()?;
        Ok(layout)
    }

    /// Checks that no two of the file's tensors are the same one of the folder.
    fn check_names(&self) -> Result<()> {
        for (component, entries) in &self.entries {
            let mut names = BTreeSet::new();
            if let Some(twice) = entries.iter().find(|entry| !names.insert(&entry.name)) {
                return Err(Error::invalid_argument(format!(
                    "tensor {} is in the file twice, also under another name: both are {} of {}",
                    twice.from,
                    twice.name,
                    component.weights()
                )));
            }
        }
        Ok(())
    }

    /// The tensors of a component.
    pub fn entries(&self, component: Component) -> Vec<Entry> {
        self.entries.get(&component).cloned().unwrap_or_default()
    }

    /// The shape of a tensor of the folder.
    pub fn shape(&self, component: Component, name: &str) -> Option<&[usize]> {
        let entries = self.entries.get(&component)?;
        let entry = entries.iter().find(|entry| entry.name == name)?;
        Some(&entry.shape)
    }

    /// How many of `0, 1, 2, ...` in place of `{}` in a name there are, one after the other.
    pub fn count(&self, component: Component, name: &str) -> usize {
        (0..)
            .take_while(|index| {
                let name = name.replace("{}", &index.to_string());
                self.shape(component, &name).is_some()
            })
            .count()
    }

    /// Bytes of the file's tensors that are kept.
    pub fn bytes(&self) -> u64 {
        let entries = self.entries.values().flatten();
        entries.map(|entry| entry.range.1 - entry.range.0).sum()
    }

    /// Why tensors are left out, and how many.
    pub fn left_out(&self) -> impl Iterator<Item = (&'static str, usize)> {
        self.left_out.iter().map(|(why, count)| (*why, *count))
    }
}

/// The component that a tensor is of, and what becomes of it there; `None` for one outside of the components.
fn fate(name: &str, shape: &[usize], unet: &unet::Blocks, vae: &vae::Blocks) -> Option<(Component, Option<Fate>)> {
    if let Some(own) = name.strip_prefix(UNET) {
        return Some((Component::Unet, unet.fate(own, shape)));
    }
    if let Some(own) = name.strip_prefix(VAE) {
        return Some((Component::Vae, vae.fate(own, shape)));
    }
    if let Some(own) = name.strip_prefix(CLIP) {
        return Some((Component::TextEncoder, clip::fate(own, shape)));
    }
    let own = name.strip_prefix(OPEN_CLIP)?;
    Some((Component::TextEncoder, clip::open_clip_fate(own, shape)))
}

fn entry(name: &str, info: &TensorInfo, place: Place) -> Entry {
    let bytes = (info.data_offsets.1 - info.data_offsets.0) as u64;
    let (part, parts) = place.part;
    Entry {
        name: place.name,
        shape: place.shape,
        dtype: info.dtype,
        from: name.to_owned(),
        range: (bytes / parts * part, bytes / parts * (part + 1)),
    }
}

fn family(tensors: &[(&str, &TensorInfo)]) -> Result<Family> {
    let has = |prefix: &str| tensors.iter().any(|(name, _)| name.starts_with(prefix));
    let unsupported = |what: &str| {
        Error::unsupported(format!(
            "the file holds {what}; checkpoints of Stable Diffusion 1 and 2, for text to image and for inpainting, are converted"
        ))
    };
    for (prefix, what) in [
        ("conditioner.", "Stable Diffusion XL"),
        ("model.diffusion_model.joint_blocks.", "Stable Diffusion 3"),
        ("model.diffusion_model.double_blocks.", "Flux"),
        ("control_model.", "a ControlNet"),
        ("lora_", "a LoRA, which is no checkpoint of its own"),
        ("depth_model.", "depth to image"),
        ("model.diffusion_model.label_emb.", "the upscaler"),
    ] {
        if has(prefix) {
            return Err(unsupported(what));
        }
    }
    for (prefix, what) in [(UNET, "UNet"), (VAE, "VAE")] {
        if !has(prefix) {
            return Err(Error::not_found(format!(
                "the file holds no {what}: none of its tensors begins with {prefix}"
            )));
        }
    }
    // Whole numbers and 8-bit floats are of quantised files.
    let odd = tensors.iter().find(|(name, info)| {
        name.starts_with(UNET) && !matches!(info.dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
    });
    if let Some((name, info)) = odd {
        return Err(Error::unsupported(format!(
            "tensor {name} has dtype {:?}; float32, float16, bfloat16 and float64 are converted",
            info.dtype
        )));
    }
    match (has(CLIP), has(OPEN_CLIP)) {
        (true, false) => Ok(Family::Sd1),
        (false, true) => Ok(Family::Sd2),
        (false, false) => Err(Error::not_found(format!(
            "the file holds no text encoder: none of its tensors begins with {CLIP} or {OPEN_CLIP}"
        ))),
        (true, true) => Err(Error::invalid_argument(
            "the file holds the text encoders of Stable Diffusion 1 and of 2",
        )),
    }
}

/// Why a tensor outside of the components is left out.
fn why_left_out(name: &str) -> &'static str {
    if name.starts_with("model_ema.") {
        "running means of the training (model_ema)"
    } else {
        "of the training, or of other programs"
    }
}
