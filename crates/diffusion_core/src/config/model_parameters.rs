//! The `parameters` of a model's `config.pbtxt`, read when the model loads.
//!
//! An unknown key is a warning, because other tools use the same table. A bad value of a known key fails the load; the
//! error names the allowed values.

use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::Base;
use crate::error::{Error, Result};
use crate::quote::is_plain_name;
use crate::suggest::did_you_mean;

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

/// A known key: the allowed values, in words, and a function that parses a value into a field. The function returns
/// false if the value is not allowed.
struct Parameter {
    name: &'static str,
    allowed: &'static str,
    read: fn(&mut ModelParameters, &str) -> Option<()>,
}

const LORA_SCALE: RangeInclusive<f64> = -10.0..=10.0;
const LORA_CACHE_BYTES: RangeInclusive<u64> = 0..=1 << 40;
const MAX_UNET_BATCH_SIZE: RangeInclusive<u64> = 1..=256;
const MAX_PIXELS: RangeInclusive<u64> = 64..=1 << 26;
const MAX_STEPS: RangeInclusive<u64> = 1..=1000;
const MAX_WORK: RangeInclusive<u64> = 1..=1 << 53;
const MAX_SECONDS: RangeInclusive<u64> = 1..=86_400;
const MAX_WAITING_REQUESTS: RangeInclusive<u64> = 1..=4096;
const GPU_MEMORY_RESERVE_MIB: RangeInclusive<u64> = 0..=1 << 20;
const INTRA_OP_THREADS: RangeInclusive<u64> = 1..=1024;

const PARAMETERS: [Parameter; 22] = [
    Parameter {
        name: "checkpoint",
        allowed: "a relative path inside the version folder, without `..`",
        read: |p, text| {
            p.checkpoint = path_inside(text)?;
            Some(())
        },
    },
    Parameter {
        name: "base",
        allowed: "the name of a model, a path with a `/`, or `blake3:` and 64 hexadecimal digits",
        read: |p, text| {
            p.base = Some(Base::parse(text)?);
            Some(())
        },
    },
    Parameter {
        name: "lora",
        allowed: "a relative path inside the version folder, without `..`",
        read: |p, text| {
            p.lora = Some(path_inside(text)?);
            Some(())
        },
    },
    Parameter {
        name: "lora_scale",
        allowed: "a number from -10 to 10",
        read: |p, text| {
            p.lora_scale = text.parse().ok().filter(|scale| LORA_SCALE.contains(scale))?;
            Some(())
        },
    },
    Parameter {
        name: "dtype",
        allowed: "one of auto, float32, float16, bfloat16",
        read: |p, text| {
            p.dtype = match text {
                "auto" => Dtype::Auto,
                "float32" => Dtype::Float32,
                "float16" => Dtype::Float16,
                "bfloat16" => Dtype::Bfloat16,
                _ => return None,
            };
            Some(())
        },
    },
    Parameter {
        name: "scheduler",
        allowed: "the class name of a diffusers scheduler, letters and digits only",
        read: |p, text| {
            let name = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric());
            p.scheduler = Some(name.then(|| text.to_owned())?);
            Some(())
        },
    },
    Parameter {
        name: "numerics",
        allowed: "one of exact, fast",
        read: |p, text| {
            p.numerics = match text {
                "exact" => Numerics::Exact,
                "fast" => Numerics::Fast,
                _ => return None,
            };
            Some(())
        },
    },
    Parameter {
        name: "weights",
        allowed: "one of auto, map, copy",
        read: |p, text| {
            p.weights = match text {
                "auto" => Placement::Auto,
                "map" => Placement::Map,
                "copy" => Placement::Copy,
                _ => return None,
            };
            Some(())
        },
    },
    Parameter {
        name: "outside_links",
        allowed: "one of allow, refuse",
        read: |p, text| {
            p.outside_links = match text {
                "allow" => true,
                "refuse" => false,
                _ => return None,
            };
            Some(())
        },
    },
    Parameter {
        name: "loras",
        allowed: "a path",
        read: |p, text| {
            p.loras = (!text.is_empty() && !text.contains('\0')).then(|| PathBuf::from(text))?;
            Some(())
        },
    },
    Parameter {
        name: "lora_cache_bytes",
        allowed: "an integer from 0 to 1099511627776",
        read: |p, text| {
            p.lora_cache_bytes = Some(integer(text, &LORA_CACHE_BYTES)?);
            Some(())
        },
    },
    Parameter {
        name: "safety_checker",
        allowed: "one of on, off",
        read: |p, text| {
            p.safety_checker = switch(text)?;
            Some(())
        },
    },
    Parameter {
        name: "provenance",
        allowed: "one of on, off",
        read: |p, text| {
            p.provenance = switch(text)?;
            Some(())
        },
    },
    Parameter {
        name: "max_unet_batch_size",
        allowed: "an integer from 1 to 256",
        read: |p, text| {
            p.max_unet_batch_size = Some(integer(text, &MAX_UNET_BATCH_SIZE)?);
            Some(())
        },
    },
    Parameter {
        name: "max_pixels",
        allowed: "an integer from 64 to 67108864",
        read: |p, text| {
            p.max_pixels = Some(integer(text, &MAX_PIXELS)?);
            Some(())
        },
    },
    Parameter {
        name: "max_steps",
        allowed: "an integer from 1 to 1000",
        read: |p, text| {
            p.max_steps = Some(integer(text, &MAX_STEPS)?);
            Some(())
        },
    },
    Parameter {
        name: "max_work",
        allowed: "an integer from 1 to 9007199254740992",
        read: |p, text| {
            p.max_work = Some(integer(text, &MAX_WORK)?);
            Some(())
        },
    },
    Parameter {
        name: "max_seconds",
        allowed: "an integer from 1 to 86400",
        read: |p, text| {
            p.max_seconds = Some(integer(text, &MAX_SECONDS)?);
            Some(())
        },
    },
    Parameter {
        name: "max_waiting_requests",
        allowed: "an integer from 1 to 4096",
        read: |p, text| {
            p.max_waiting_requests = Some(integer(text, &MAX_WAITING_REQUESTS)?);
            Some(())
        },
    },
    Parameter {
        name: "gpu_memory_reserve_mib",
        allowed: "an integer from 0 to 1048576",
        read: |p, text| {
            p.gpu_memory_reserve_mib = Some(integer(text, &GPU_MEMORY_RESERVE_MIB)?);
            Some(())
        },
    },
    Parameter {
        name: "intra_op_threads",
        allowed: "an integer from 1 to 1024",
        read: |p, text| {
            p.intra_op_threads = Some(integer(text, &INTRA_OP_THREADS)?);
            Some(())
        },
    },
    Parameter {
        name: "default_gen_args",
        allowed: "a JSON object of gen_args",
        read: |p, text| {
            p.default_gen_args = text.to_owned();
            Some(())
        },
    },
];

fn switch(text: &str) -> Option<bool> {
    match text {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

/// Reads a relative path that leads nowhere else.
fn path_inside(text: &str) -> Option<PathBuf> {
    let path = Path::new(text);
    let inside = path
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    (!text.is_empty() && !text.contains('\0') && inside).then(|| path.to_path_buf())
}

fn integer<T: TryFrom<u64>>(text: &str, range: &RangeInclusive<u64>) -> Option<T> {
    let number = text.bytes().all(|b| b.is_ascii_digit());
    number
        .then(|| text.parse::<u64>().ok())
        .flatten()
        .filter(|n| range.contains(n))
        .and_then(|n| T::try_from(n).ok())
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
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use serde_json::json;

    fn one(key: &str, text: &str) -> Result<(ModelParameters, Vec<String>)> {
        ModelParameters::parse(&json!({ key: { "string_value": text } }))
    }

    #[test]
    fn parse_without_parameters_returns_defaults() {
        for empty in [Value::Null, json!({})] {
            let (parameters, warnings) = ModelParameters::parse(&empty).unwrap();
            assert_eq!(parameters, ModelParameters::default());
            assert!(warnings.is_empty());
        }
    }

    #[test]
    fn parse_reads_every_parameter() {
        let (parameters, warnings) = ModelParameters::parse(&json!({
            "checkpoint": {"string_value": "./weights/v2"},
            "base": {"string_value": "sd_base"},
            "lora": {"string_value": "style.safetensors"},
            "lora_scale": {"string_value": "-0.5"},
            "dtype": {"string_value": "bfloat16"},
            "scheduler": {"string_value": "DDIMScheduler"},
            "numerics": {"string_value": "fast"},
            "weights": {"string_value": "copy"},
            "outside_links": {"string_value": "refuse"},
            "loras": {"string_value": "/models/loras"},
            "lora_cache_bytes": {"string_value": "1000000"},
            "safety_checker": {"string_value": "off"},
            "provenance": {"string_value": "off"},
            "max_unet_batch_size": {"string_value": "8"},
            "max_pixels": {"string_value": "262144"},
            "max_steps": {"string_value": "100"},
            "max_work": {"string_value": "1000000"},
            "max_seconds": {"string_value": "60"},
            "max_waiting_requests": {"string_value": "4"},
            "gpu_memory_reserve_mib": {"string_value": "512"},
            "intra_op_threads": {"string_value": "2"},
            "default_gen_args": {"string_value": "{\"num_inference_steps\": 25}"},
        }))
        .unwrap();
        assert!(warnings.is_empty());
        let expected = ModelParameters {
            checkpoint: PathBuf::from("./weights/v2"),
            base: Some(Base::Model("sd_base".to_owned())),
            lora: Some(PathBuf::from("style.safetensors")),
            lora_scale: -0.5,
            dtype: Dtype::Bfloat16,
            scheduler: Some("DDIMScheduler".into()),
            numerics: Numerics::Fast,
            weights: Placement::Copy,
            outside_links: false,
            loras: PathBuf::from("/models/loras"),
            lora_cache_bytes: Some(1_000_000),
            safety_checker: false,
            provenance: false,
            max_unet_batch_size: Some(8),
            max_pixels: Some(262_144),
            max_steps: Some(100),
            max_work: Some(1_000_000),
            max_seconds: Some(60),
            max_waiting_requests: Some(4),
            gpu_memory_reserve_mib: Some(512),
            intra_op_threads: Some(2),
            default_gen_args: "{\"num_inference_steps\": 25}".to_owned(),
        };
        assert_eq!(parameters, expected);
    }

    #[test]
    fn parse_bad_value_names_key_and_allowed_values() {
        for (key, text) in [
            ("checkpoint", ""),
            ("checkpoint", "/models/sd"),
            ("checkpoint", "../sd"),
            ("checkpoint", "a/../../sd"),
            ("checkpoint", "a\0b"),
            ("base", ""),
            ("base", ".."),
            ("base", "blake3:12"),
            ("base", "a b"),
            ("lora", "../style.safetensors"),
            ("lora", "/style.safetensors"),
            ("lora_scale", "11"),
            ("lora_scale", "NaN"),
            ("dtype", "half"),
            ("dtype", "Float16"),
            ("scheduler", ""),
            ("scheduler", "DDIM Scheduler"),
            ("numerics", "quick"),
            ("weights", "mapped"),
            ("outside_links", "false"),
            ("loras", ""),
            ("lora_cache_bytes", "-1"),
            ("safety_checker", "no"),
            ("safety_checker", ""),
            ("provenance", "true"),
            ("provenance", ""),
            ("max_unet_batch_size", "0"),
            ("max_unet_batch_size", "257"),
            ("max_unet_batch_size", "+8"),
            ("max_unet_batch_size", "8.0"),
            ("max_unet_batch_size", ""),
            ("max_pixels", "63"),
            ("max_pixels", "99999999999999999999999"),
            ("max_steps", "-1"),
            ("max_steps", "1001"),
            ("max_work", "0"),
            ("max_work", "9007199254740993"),
            ("max_seconds", "0"),
            ("max_seconds", "60.0"),
            ("max_waiting_requests", "0"),
            ("gpu_memory_reserve_mib", "-1"),
            ("gpu_memory_reserve_mib", "1048577"),
            ("intra_op_threads", "0"),
            ("intra_op_threads", "1025"),
        ] {
            let error = one(key, text).unwrap_err();
            let allowed = PARAMETERS.iter().find(|p| p.name == key).unwrap().allowed;
            assert_eq!(
                error,
                Error::InvalidArgument(format!("parameter `{key}` must be {allowed}")),
                "{text}"
            );
        }
    }

    #[test]
    fn allowed_range_text_matches_range() {
        for (key, range) in [
            ("lora_cache_bytes", LORA_CACHE_BYTES),
            ("max_unet_batch_size", MAX_UNET_BATCH_SIZE),
            ("max_pixels", MAX_PIXELS),
            ("max_steps", MAX_STEPS),
            ("max_work", MAX_WORK),
            ("max_seconds", MAX_SECONDS),
            ("max_waiting_requests", MAX_WAITING_REQUESTS),
            ("gpu_memory_reserve_mib", GPU_MEMORY_RESERVE_MIB),
            ("intra_op_threads", INTRA_OP_THREADS),
        ] {
            let allowed = PARAMETERS.iter().find(|p| p.name == key).unwrap().allowed;
            let text = format!("an integer from {} to {}", range.start(), range.end());
            assert_eq!(allowed, text);
            for edge in [range.start(), range.end()] {
                assert!(one(key, &edge.to_string()).is_ok());
            }
        }
    }

    #[test]
    fn engine_parameters_do_not_have_what_requests_alone_need() {
        for (key, text) in [("max_seconds", "60"), ("provenance", "off")] {
            let (parameters, _) = one(key, text).unwrap();
            assert_eq!(parameters.of_engine(), ModelParameters::default());
        }
        for (key, text) in [
            ("numerics", "exact"),
            ("dtype", "bfloat16"),
            ("max_unet_batch_size", "8"),
        ] {
            let (parameters, _) = one(key, text).unwrap();
            assert_eq!(parameters.of_engine(), parameters);
        }
    }

    #[test]
    fn parse_value_without_string_is_an_error() {
        for parameters in [
            json!({"dtype": "float16"}),
            json!({"dtype": {}}),
            json!({"dtype": {"string_value": 16}}),
            json!([1]),
        ] {
            assert!(matches!(
                ModelParameters::parse(&parameters),
                Err(Error::InvalidArgument(_))
            ));
        }
    }

    #[test]
    fn parse_unknown_key_is_a_warning() {
        let (parameters, warnings) = ModelParameters::parse(&json!({
            "EXECUTION_ENV_PATH": {"string_value": "conda/sd_env.tar.gz"},
            "FORCE_CPU_ONLY_INPUT_TENSORS": {"string_value": "no"},
            "Max-Unet-Batch-Sise": {"string_value": "4"},
            "max_step": {"string_value": "4"},
        }))
        .unwrap();
        assert_eq!(parameters, ModelParameters::default());
        assert_eq!(warnings.len(), 4, "{warnings:?}");
        let with = |part: &str| warnings.iter().any(|w| w.contains(part));
        assert!(with("unknown parameter `EXECUTION_ENV_PATH`"));
        assert!(with("unknown parameter `FORCE_CPU_ONLY_INPUT_TENSORS`"));
        assert!(with("unknown parameter; did you mean `max_unet_batch_size`?"));
        assert!(with("unknown parameter `max_step`; did you mean `max_steps`?"));
        assert!(!with("conda"));
    }
}
