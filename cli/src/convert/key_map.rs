//! The map from the tensors of the file to the tensors of the folder.

use std::collections::{BTreeMap, BTreeSet};

use diffusion_core::{Error, Result};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use super::types::{Component, Family, Mapping, TargetTensor};
use super::{clip, unet, vae};
use crate::tensors::{Entry, Source};

const UNET: &str = "model.diffusion_model.";
const VAE: &str = "first_stage_model.";
const CLIP: &str = "cond_stage_model.transformer.";
const OPEN_CLIP: &str = "cond_stage_model.model.";

/// The mapped and the skipped tensors of a file.
pub struct KeyMap {
    /// The generation of the checkpoint.
    pub family: Family,
    entries: BTreeMap<Component, Vec<Entry>>,
    skipped: BTreeMap<&'static str, usize>,
}

impl KeyMap {
    /// Maps all tensors of a file.
    ///
    /// # Errors
    /// `Unsupported` for a file of another model, `NotFound` if a component is missing, `InvalidArgument` for an
    /// unexpected tensor of a component.
    pub fn from_file(source: &Source) -> Result<Self> {
        let names = source.names();
        let infos: Vec<(&str, &TensorInfo)> = names
            .iter()
            .filter_map(|name| Some((name.as_str(), source.info(name)?)))
            .collect();
        Self::from_tensors(&infos)
    }

    /// Maps tensors.
    ///
    /// # Errors
    /// Those of [`KeyMap::from_file`].
    pub fn from_tensors(tensors: &[(&str, &TensorInfo)]) -> Result<Self> {
        let family = family(tensors)?;
        let unet_names = tensors.iter().filter_map(|(name, _)| name.strip_prefix(UNET));
        let unet = unet::BlockNames::detect(unet_names.clone());
        let vae_names = tensors.iter().filter_map(|(name, _)| name.strip_prefix(VAE));
        let vae = vae::BlockNames::detect(vae_names);
        let mut key_map = Self {
            family,
            entries: BTreeMap::new(),
            skipped: BTreeMap::new(),
        };
        for (name, info) in tensors {
            match map_tensor(name, &info.shape, &unet, &vae) {
                Some((component, Some(Mapping::Mapped(targets)))) => {
                    let own = key_map.entries.entry(component).or_default();
                    own.extend(targets.into_iter().map(|target| entry(name, info, target)));
                }
                Some((_, Some(Mapping::Skipped(why)))) => *key_map.skipped.entry(why).or_default() += 1,
                Some((_, None)) => {
                    return Err(Error::invalid_argument(format!(
                        "unexpected tensor {name} of shape {:?}",
                        info.shape
                    )));
                }
                None => *key_map.skipped.entry(skip_reason(name)).or_default() += 1,
            }
        }
        key_map.check_names()?;
        Ok(key_map)
    }

    /// Checks that no two tensors of the file map to the same tensor of the folder.
    fn check_names(&self) -> Result<()> {
        for (component, entries) in &self.entries {
            let mut names = BTreeSet::new();
            if let Some(twice) = entries.iter().find(|entry| !names.insert(&entry.name)) {
                return Err(Error::invalid_argument(format!(
                    "tensor {} is in the file twice, under two names: both map to {} of {}",
                    twice.from,
                    twice.name,
                    component.weights()
                )));
            }
        }
        Ok(())
    }

    /// Returns the tensors of a component.
    pub fn entries(&self, component: Component) -> Vec<Entry> {
        self.entries.get(&component).cloned().unwrap_or_default()
    }

    /// Returns the shape of a tensor of the folder.
    pub fn shape(&self, component: Component, name: &str) -> Option<&[usize]> {
        let entries = self.entries.get(&component)?;
        let entry = entries.iter().find(|entry| entry.name == name)?;
        Some(&entry.shape)
    }

    /// Counts the tensors with `0, 1, 2, ...` in place of `{}` in the name.
    pub fn count(&self, component: Component, name: &str) -> usize {
        (0..)
            .take_while(|index| {
                let name = name.replace("{}", &index.to_string());
                self.shape(component, &name).is_some()
            })
            .count()
    }

    /// Returns the bytes of the mapped tensors in the file.
    pub fn bytes(&self) -> u64 {
        let entries = self.entries.values().flatten();
        entries.map(|entry| entry.range.1 - entry.range.0).sum()
    }

    /// Returns the reasons why tensors are skipped, and how many.
    pub fn skipped(&self) -> impl Iterator<Item = (&'static str, usize)> {
        self.skipped.iter().map(|(why, count)| (*why, *count))
    }
}

/// Returns the component of a tensor and its mapping; `None` for a tensor outside of the components. The mapping is
/// `None` for an unexpected tensor.
fn map_tensor(
    name: &str,
    shape: &[usize],
    unet: &unet::BlockNames,
    vae: &vae::BlockNames,
) -> Option<(Component, Option<Mapping>)> {
    if let Some(own) = name.strip_prefix(UNET) {
        return Some((Component::Unet, unet.map_tensor(own, shape)));
    }
    if let Some(own) = name.strip_prefix(VAE) {
        return Some((Component::Vae, vae.map_tensor(own, shape)));
    }
    if let Some(own) = name.strip_prefix(CLIP) {
        return Some((Component::TextEncoder, clip::map_tensor(own, shape)));
    }
    let own = name.strip_prefix(OPEN_CLIP)?;
    Some((Component::TextEncoder, clip::map_open_clip_tensor(own, shape)))
}

fn entry(name: &str, info: &TensorInfo, target: TargetTensor) -> Entry {
    let bytes = (info.data_offsets.1 - info.data_offsets.0) as u64;
    let (part, parts) = target.part;
    Entry {
        name: target.name,
        shape: target.shape,
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
    // Quantized files have integers and 8-bit floats.
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

/// Returns why a tensor outside of the components is skipped.
fn skip_reason(name: &str) -> &'static str {
    if name.starts_with("model_ema.") {
        "running means from training (model_ema)"
    } else {
        "from training, or from other programs"
    }
}
