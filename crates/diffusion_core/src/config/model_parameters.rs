//! The `parameters` of a model's `config.pbtxt`: read once, when the model loads.
//!
//! An unknown key is a warning, because other tools keep their own keys there; a bad value of a known key fails the
//! load and says what is allowed.

use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::quote::is_plain_name;
use crate::suggest::did_you_mean;

/// Arithmetic of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Dtype {
    /// float32 on the CPU, float16 on a GPU.
    #[default]
    Auto,
    /// 32-bit floats.
    Float32,
    /// 16-bit floats with 10 bits of fraction.
    Float16,
    /// 16-bit floats with 7 bits of fraction.
    Bfloat16,
}

/// How close to diffusers the numbers must stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Numerics {
    /// The same operations in the same order: on the CPU in float32, the same bytes.
    #[default]
    Exact,
    /// Layouts and algorithms may change; images stay above 50 dB PSNR of the exact ones.
    Fast,
}

/// The parameters that this backend reads from `config.pbtxt`. `Default` is a model that gives none.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelParameters {
    /// Folder of the checkpoint, relative to the version folder and inside it. Default `checkpoint`.
    pub checkpoint: PathBuf,
    /// Default auto.
    pub dtype: Dtype,
    /// A diffusers class name that replaces the checkpoint's scheduler. Whether it is supported is for the pipeline
    /// to say.
    pub scheduler: Option<String>,
    /// Default exact.
    pub numerics: Numerics,
    /// Whether images go through the safety checker, if the folder has one. Default true.
    pub safety_checker: bool,
    /// Most rows of one UNet call, 1 to 256; the pipeline's limit if absent.
    pub max_unet_batch_size: Option<u32>,
    /// Most pixels of one image, 64 to 2^26; the pipeline's limit if absent.
    pub max_pixels: Option<u64>,
    /// Most denoising steps, 1 to 1000; the pipeline's limit if absent.
    pub max_steps: Option<u32>,
    /// A JSON object of `gen_args` that a request does not have to repeat; empty if absent. It is text here, since
    /// `diffusion_request` knows the keys and checks them when a model instance is made.
    pub default_gen_args: String,
}

impl Default for ModelParameters {
    fn default() -> Self {
        Self {
            checkpoint: PathBuf::from("checkpoint"),
            dtype: Dtype::default(),
            scheduler: None,
            numerics: Numerics::default(),
            safety_checker: true,
            max_unet_batch_size: None,
            max_pixels: None,
            max_steps: None,
            default_gen_args: String::new(),
        }
    }
}

/// One known key: what it takes, in words, and how its text becomes a field. `Err` holds a more exact message than
/// "must be ...", if there is one.
struct Parameter {
    name: &'static str,
    takes: &'static str,
    read: fn(&mut ModelParameters, &str) -> std::result::Result<(), Option<Error>>,
}

const MAX_UNET_BATCH_SIZE: RangeInclusive<u64> = 1..=256;
const MAX_PIXELS: RangeInclusive<u64> = 64..=1 << 26;
const MAX_STEPS: RangeInclusive<u64> = 1..=1000;

const PARAMETERS: [Parameter; 9] = [
    Parameter {
        name: "checkpoint",
        takes: "a relative path inside the version folder, without `..`",
        read: |p, text| {
            let path = Path::new(text);
            let inside = path
                .components()
                .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
            if text.is_empty() || text.contains('\0') || !inside {
                return Err(None);
            }
            p.checkpoint = path.to_path_buf();
            Ok(())
        },
    },
    Parameter {
        name: "dtype",
        takes: "one of auto, float32, float16, bfloat16",
        read: |p, text| {
            p.dtype = match text {
                "auto" => Dtype::Auto,
                "float32" => Dtype::Float32,
                "float16" => Dtype::Float16,
                "bfloat16" => Dtype::Bfloat16,
                _ => return Err(None),
            };
            Ok(())
        },
    },
    Parameter {
        name: "scheduler",
        takes: "the class name of a diffusers scheduler, letters and digits only",
        read: |p, text| {
            let name = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric());
            p.scheduler = Some(name.then(|| text.to_owned()).ok_or(None)?);
            Ok(())
        },
    },
    Parameter {
        name: "numerics",
        takes: "one of exact, fast",
        read: |p, text| {
            p.numerics = match text {
                "exact" => Numerics::Exact,
                "fast" => Numerics::Fast,
                _ => return Err(None),
            };
            Ok(())
        },
    },
    Parameter {
        name: "safety_checker",
        takes: "one of on, off",
        read: |p, text| {
            p.safety_checker = match text {
                "on" => true,
                "off" => false,
                _ => return Err(None),
            };
            Ok(())
        },
    },
    Parameter {
        name: "max_unet_batch_size",
        takes: "an integer from 1 to 256",
        read: |p, text| {
            p.max_unet_batch_size = Some(integer(text, &MAX_UNET_BATCH_SIZE)?);
            Ok(())
        },
    },
    Parameter {
        name: "max_pixels",
        takes: "an integer from 64 to 67108864",
        read: |p, text| {
            p.max_pixels = Some(integer(text, &MAX_PIXELS)?);
            Ok(())
        },
    },
    Parameter {
        name: "max_steps",
        takes: "an integer from 1 to 1000",
        read: |p, text| {
            p.max_steps = Some(integer(text, &MAX_STEPS)?);
            Ok(())
        },
    },
    Parameter {
        name: "default_gen_args",
        takes: "a JSON object of gen_args",
        read: |p, text| {
            p.default_gen_args = text.to_owned();
            Ok(())
        },
    },
];

fn integer<T: TryFrom<u64>>(text: &str, range: &RangeInclusive<u64>) -> std::result::Result<T, Option<Error>> {
    let number = text.bytes().all(|b| b.is_ascii_digit());
    number
        .then(|| text.parse::<u64>().ok())
        .flatten()
        .filter(|n| range.contains(n))
        .and_then(|n| T::try_from(n).ok())
        .ok_or(None)
}

impl ModelParameters {
    /// Reads the `parameters` object of the model configuration that Triton gives: `{key: {"string_value": text}}`,
    /// or null if there are none. The second part of the result holds one warning for each unknown key.
    ///
    /// # Errors
    /// InvalidArgument that names the key and what it takes; Unsupported for a `default_gen_args` that asks for what
    /// this version does not do.
    pub fn parse(parameters: &Value) -> Result<(Self, Vec<String>)> {
        let mut parsed = Self::default();
        let mut warnings = Vec::new();
        let entries = match parameters {
            Value::Null => return Ok((parsed, warnings)),
            Value::Object(entries) => entries,
            _ => {
                return Err(Error::invalid_argument(
                    "`parameters` of the model configuration must be an object",
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
            (parameter.read)(&mut parsed, text.trim()).map_err(|cause| match cause {
                Some(error) => error.context(format!("parameter `{}`", parameter.name)),
                None => Error::invalid_argument(format!("parameter `{}` must be {}", parameter.name, parameter.takes)),
            })?;
        }
        Ok((parsed, warnings))
    }
}

fn unknown(key: &str) -> String {
    let hint = did_you_mean(key, PARAMETERS.iter().map(|p| p.name));
    if is_plain_name(key) {
        format!("parameter `{key}` is not one that this backend reads{hint}")
    } else {
        format!("a parameter is not one that this backend reads{hint}")
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
    fn none_are_needed() {
        for empty in [Value::Null, json!({})] {
            let (parameters, warnings) = ModelParameters::parse(&empty).unwrap();
            assert_eq!(parameters, ModelParameters::default());
            assert!(warnings.is_empty());
        }
    }

    #[test]
    fn all_are_read() {
        let (parameters, warnings) = ModelParameters::parse(&json!({
            "checkpoint": {"string_value": "./weights/v2"},
            "dtype": {"string_value": "bfloat16"},
            "scheduler": {"string_value": "DDIMScheduler"},
            "numerics": {"string_value": "fast"},
            "safety_checker": {"string_value": "off"},
            "max_unet_batch_size": {"string_value": "8"},
            "max_pixels": {"string_value": "262144"},
            "max_steps": {"string_value": "100"},
            "default_gen_args": {"string_value": "{\"num_inference_steps\": 25}"},
        }))
        .unwrap();
        assert!(warnings.is_empty());
        let expected = ModelParameters {
            checkpoint: PathBuf::from("./weights/v2"),
            dtype: Dtype::Bfloat16,
            scheduler: Some("DDIMScheduler".into()),
            numerics: Numerics::Fast,
            safety_checker: false,
            max_unet_batch_size: Some(8),
            max_pixels: Some(262_144),
            max_steps: Some(100),
            default_gen_args: "{\"num_inference_steps\": 25}".to_owned(),
        };
        assert_eq!(parameters, expected);
    }

    #[test]
    fn a_bad_value_names_the_key_and_what_it_takes() {
        for (key, text) in [
            ("checkpoint", ""),
            ("checkpoint", "/models/sd"),
            ("checkpoint", "../sd"),
            ("checkpoint", "a/../../sd"),
            ("checkpoint", "a\0b"),
            ("dtype", "half"),
            ("dtype", "Float16"),
            ("scheduler", ""),
            ("scheduler", "DDIM Scheduler"),
            ("numerics", "quick"),
            ("safety_checker", "no"),
            ("safety_checker", ""),
            ("max_unet_batch_size", "0"),
            ("max_unet_batch_size", "257"),
            ("max_unet_batch_size", "+8"),
            ("max_unet_batch_size", "8.0"),
            ("max_unet_batch_size", ""),
            ("max_pixels", "63"),
            ("max_pixels", "99999999999999999999999"),
            ("max_steps", "-1"),
            ("max_steps", "1001"),
        ] {
            let error = one(key, text).unwrap_err();
            let takes = PARAMETERS.iter().find(|p| p.name == key).unwrap().takes;
            assert_eq!(
                error,
                Error::InvalidArgument(format!("parameter `{key}` must be {takes}")),
                "{text}"
            );
        }
    }

    #[test]
    fn the_ranges_that_are_told_are_the_ranges() {
        for (key, range) in [
            ("max_unet_batch_size", MAX_UNET_BATCH_SIZE),
            ("max_pixels", MAX_PIXELS),
            ("max_steps", MAX_STEPS),
        ] {
            let takes = PARAMETERS.iter().find(|p| p.name == key).unwrap().takes;
            let text = format!("an integer from {} to {}", range.start(), range.end());
            assert_eq!(takes, text);
            for edge in [range.start(), range.end()] {
                assert!(one(key, &edge.to_string()).is_ok());
            }
        }
    }

    #[test]
    fn a_value_that_is_no_string_is_an_error() {
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
    fn unknown_keys_are_warnings() {
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
        assert!(with("`EXECUTION_ENV_PATH` is not"));
        assert!(with("`FORCE_CPU_ONLY_INPUT_TENSORS` is not"));
        assert!(with(
            "a parameter is not one that this backend reads; did you mean `max_unet_batch_size`?"
        ));
        assert!(with(
            "`max_step` is not one that this backend reads; did you mean `max_steps`?"
        ));
        assert!(!with("conda"));
    }
}
