//! A model folder whose components are being opened.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use tch::{Device, Kind};

use super::ModelIndex;
use crate::weights::{ComponentId, Loader, MAX_JSON_BYTES, read_json, read_text};
use diffusion_core::Result;
use diffusion_core::config::{Dtype, ModelParameters, PipelineClass};

/// The folder, and the loader that collects the weight files of its components.
pub(super) struct ModelFolder<'a> {
    path: &'a Path,
    /// The pipeline of the folder.
    pub class: PipelineClass,
    /// `model_index.json`.
    pub index: ModelIndex,
    /// The dtype that weights are held and computed in.
    pub kind: Kind,
    /// The opened weight files.
    pub loader: Loader,
}

impl<'a> ModelFolder<'a> {
    /// Reads `model_index.json` of the folder.
    pub fn open(path: &'a Path, device: Device, parameters: &ModelParameters) -> Result<Self> {
        let index = ModelIndex::read(path)?;
        let reserve = parameters.gpu_memory_reserve_mib.map(|mib| u64::from(mib) << 20);
        let kind = match parameters.dtype {
            Dtype::Float32 => Kind::Float,
            Dtype::Float16 => Kind::Half,
            Dtype::Bfloat16 => Kind::BFloat16,
            Dtype::Auto if device.is_cuda() => Kind::Half,
            Dtype::Auto => Kind::Float,
        };
        Ok(Self {
            path,
            class: index.pipeline_class()?,
            index,
            kind,
            loader: Loader::new(device)
                .gpu_memory_reserve(reserve)
                .placement(parameters.weights),
        })
    }

    /// The folder of a component.
    pub fn component(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Reads `config.json` of a component.
    pub fn config<T: DeserializeOwned>(&self, component: &str) -> Result<T> {
        read_json(&self.component(component).join("config.json"))
    }

    /// Reads `scheduler_config.json` of a component as text.
    pub fn scheduler_config(&self, component: &str) -> Result<String> {
        let path = self.component(component).join("scheduler_config.json");
        read_text(&path, MAX_JSON_BYTES)
    }

    /// Opens the weights of a transformers component, to be loaded in the model's dtype.
    pub fn transformers_weights(&mut self, component: &str) -> Result<ComponentId> {
        self.loader.open(&self.component(component), "model", self.kind)
    }

    /// Opens the weights of a diffusers component, to be loaded as `kind`.
    pub fn diffusers_weights(&mut self, component: &str, kind: Kind) -> Result<ComponentId> {
        self.loader
            .open(&self.component(component), "diffusion_pytorch_model", kind)
    }
}
