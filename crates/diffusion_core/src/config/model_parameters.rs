//! The `parameters` of a model's `config.pbtxt`, read when the model loads.
//!
//! An unknown key is a warning, because other tools use the same table. A bad value of a known key fails the load; the
//! error names the allowed values.

mod keys;
use std::path::PathBuf;

use serde_json::Value;

use super::Base;
use crate::error::{Error, Result};
use crate::quote::is_plain_name;
use crate::suggest::did_you_mean;
use keys::PARAMETERS;

/// The dtype of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Dtype {
    /// float32 on the CPU, float16 on a GPU.
    #[default]
    Auto,
    /// 32-bit floating point.
    Float32,
    /// 16-bit floating point, 10 of them fraction.
    Float16,
    /// 16-bit floating point, 7 of them fraction.
    Bfloat16,
}

/// How exactly results equal those of diffusers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Numerics {
    /// The same operations in the same order: equal bytes on the CPU in float32.
    Exact,
    /// Other layouts and algorithms are allowed; images stay above 50 dB PSNR of the exact ones.
    #[default]
    Fast,
}

/// Where the weights of a model on the CPU are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Placement {
    /// In the maps of their files where that is possible, but copied from file systems of other machines.
    #[default]
    Auto,
    /// In the maps of their files where that is possible.
    Map,
    /// Copied into memory.
    Copy,
}

/// The parameters of a model. `Default` is a `config.pbtxt` without parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelParameters {
    /// Folder of the checkpoint inside the version folder, as a relative path. Default `checkpoint`.
    pub checkpoint: PathBuf,
    /// The checkpoint that the model shares with others, instead of one in its folder.
    pub base: Option<Base>,
    /// A LoRA that is part of the model: a file or folder inside the version folder, as a relative path.
    pub lora: Option<PathBuf>,
    /// The scale of the LoRA, -10 to 10. Default 1.
    pub lora_scale: f64,
    /// Dtype of the weights and of the computation. Default auto.
    pub dtype: Dtype,
    /// A diffusers class name that replaces the checkpoint's scheduler. The pipeline checks that the class is
    /// supported.
    pub scheduler: Option<String>,
    /// How exactly results equal those of diffusers. Default fast.
    pub numerics: Numerics,
    /// Where weights on the CPU are. Default auto.
    pub weights: Placement,
    /// Whether links in the checkpoint may lead out of the version folder. Default true.
    pub outside_links: bool,
    /// The folder of the LoRAs, relative to the version folder or absolute. Default `loras`.
    pub loras: PathBuf,
    /// Bytes of LoRAs on a device that stay in memory, 0 to 2^40; 512 MiB if absent.
    pub lora_cache_bytes: Option<u64>,
    /// The folder of the textual inversions, relative to the version folder or absolute. Default `embeddings`.
    pub embeddings: PathBuf,
    /// Whether the safety checker runs, if the folder has one. Default true.
    pub safety_checker: bool,
    /// Whether image files say that a model generated them. Default true.
    pub provenance: bool,
    /// Batch entries of one UNet call, 1 to 256; the pipeline's limit if absent.
    pub max_unet_batch_size: Option<u32>,
    /// Height times width of an image, 64 to 2^26; the pipeline's limit if absent.
    pub max_pixels: Option<u64>,
    /// Denoising steps, 1 to 1000; the pipeline's limit if absent.
    pub max_steps: Option<u32>,
    /// UNet batch size times pixels times steps of a request, 1 to 2^53; no limit if absent.
    pub max_work: Option<u64>,
    /// Seconds until a request must be answered, 1 to 86400; no limit if absent.
    pub max_seconds: Option<u32>,
    /// Requests that wait inside an instance, 1 to 4096; 32 if absent.
    pub max_waiting_requests: Option<u32>,
    /// MiB of GPU memory that a load leaves free, 0 to 1048576; 1536 or 5 % of the GPU's memory if absent.
    pub gpu_memory_reserve_mib: Option<u32>,
    /// Threads that compute for an instance on the CPU, 1 to 1024; as many as the machine has if absent.
    pub intra_op_threads: Option<u32>,
    /// A JSON object with default `gen_args`; empty if absent. Text, because `diffusion_request` knows the keys and
    /// checks them when a model instance is created.
    pub default_gen_args: String,
}

impl Default for ModelParameters {
    fn default() -> Self {
        Self {
            checkpoint: PathBuf::from("checkpoint"),
            base: None,
            lora: None,
            lora_scale: 1.0,
            dtype: Dtype::default(),
            scheduler: None,
            numerics: Numerics::default(),
            weights: Placement::default(),
            outside_links: true,
            loras: PathBuf::from("loras"),
            embeddings: PathBuf::from("embeddings"),
            lora_cache_bytes: None,
            safety_checker: true,
            provenance: true,
            max_unet_batch_size: None,
            max_pixels: None,
            max_steps: None,
            max_work: None,
            max_seconds: None,
            max_waiting_requests: None,
            gpu_memory_reserve_mib: None,
            intra_op_threads: None,
            default_gen_args: String::new(),
        }
    }
}

impl ModelParameters {
    /// Reads the `parameters` object of Triton's model configuration: `{key: {"string_value": text}}`, or null.
    /// The second value has one warning for each unknown key.
    ///
    /// # Errors
    /// `InvalidArgument` with the key and its allowed values.
    pub fn parse(parameters: &Value) -> Result<(Self, Vec<String>)> {
        let mut parsed = Self::default();
        let mut warnings = Vec::new();
        let entries = match parameters {
            Value::Null => return Ok((parsed, warnings)),
            Value::Object(entries) => entries,
            _ => {
                return Err(Error::invalid_argument(
                    "expected an object as `parameters` of the model configuration",
                ));
            }
        };
        for (key, entry) in entries {
            let Some(parameter) = PARAMETERS.iter().find(|p| p.name == key) else {
                warnings.push(unknown(key));
                continue;
            };
            let text = entry
                .get("string_value")
                .and_then(Value::as_str)
                .ok_or_else(|| Error::invalid_argument(format!("parameter `{key}` needs a string_value")))?;
            (parameter.read)(&mut parsed, text.trim()).ok_or_else(|| {
                Error::invalid_argument(format!("parameter `{}` must be {}", parameter.name, parameter.allowed))
            })?;
        }
        Ok((parsed, warnings))
    }

    /// Returns the parameters that decide how an engine loads and computes; the others are defaults. Models with one
    /// checkpoint share an engine if these are equal.
    #[must_use]
    pub fn of_engine(&self) -> Self {
        let engine = self.clone();
        let default = Self::default();
        Self {
            checkpoint: default.checkpoint,
            base: default.base,
            lora: default.lora,
            lora_scale: default.lora_scale,
            outside_links: default.outside_links,
            loras: default.loras,
            embeddings: default.embeddings,
            lora_cache_bytes: default.lora_cache_bytes,
            provenance: default.provenance,
            max_steps: default.max_steps,
            max_work: default.max_work,
            max_seconds: default.max_seconds,
            max_waiting_requests: default.max_waiting_requests,
            default_gen_args: default.default_gen_args,
            ..engine
        }
    }
}

fn unknown(key: &str) -> String {
    let hint = did_you_mean(key, PARAMETERS.iter().map(|p| p.name));
    if is_plain_name(key) {
        format!("unknown parameter `{key}`{hint}")
    } else {
        format!("unknown parameter{hint}")
    }
}

#[cfg(test)]
mod tests;
