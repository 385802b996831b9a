//! `scheduler/scheduler_config.json`.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use diffusion_core::config::PipelineClass;
use diffusion_core::{Error, Result};

/// Largest accepted number of lists and objects in a configuration. Known configurations have fewer than ten.
const MAX_BRACKETS: usize = 128;

/// What the network predicts.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// The noiseless sample.
    Sample,
    /// √ᾱ·noise − √(1−ᾱ)·sample (Salimans and Ho, "Progressive Distillation", 2022).
    VPrediction,
}

/// The selection of a run's timesteps from those of training (Lin et al., "Common Diffusion Noise Schedules and Sample
/// Steps are Flawed", 2023, table 2).
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Evenly from both ends.
    Linspace,
    /// Multiples of a whole ratio, from the clean end.
    Leading,
    /// Multiples of a ratio, from the noisy end.
    Trailing,
}

/// The shape of the betas over the training timesteps.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly from `beta_start` to `beta_end`.
    Linear,
    /// Squares of evenly spaced roots.
    ScaledLinear,
    /// From a squared cosine (Nichol and Dhariwal, 2021), capped at 0.999.
    SquaredcosCapV2,
    /// From an exponential, capped at 0.999. Only `HeunDiscreteScheduler` has it.
    Exp,
}

/// The keys of a scheduler's configuration, not yet read as a class.
///
/// diffusers makes a scheduler of one class from the configuration of another (`from_config`): a key of the
/// configuration carries over, a missing key takes the default of the new class.
#[derive(Clone, Debug)]
pub struct RawConfig {
    keys: Map<String, Value>,
}

impl RawConfig {
    /// Parses `scheduler_config.json`. A number that JSON does not have becomes null: Python writes `Infinity`,
    /// `-Infinity` and `NaN`.
    ///
    /// # Errors
    /// `InvalidArgument` if `text` is not an object, or too nested.
    pub fn parse(text: &str) -> Result<Self> {
        // The parser recurses into brackets without a limit.
        if text.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count() > MAX_BRACKETS {
            return Err(Error::invalid_argument(format!(
                "scheduler_config.json: more than {MAX_BRACKETS} lists and objects"
            )));
        }
        match json5::from_str(text) {
            Ok(Value::Object(keys)) => Ok(Self { keys }),
            Ok(_) => Err(Error::invalid_argument("scheduler_config.json: not an object")),
            Err(error) => Err(Error::invalid_argument(format!("scheduler_config.json: {error}"))),
        }
    }

    /// Returns `_class_name`.
    pub fn class_name(&self) -> Option<&str> {
        self.keys.get("_class_name").and_then(Value::as_str)
    }

    /// Returns the keys for another class: without the keys that are defaults of the file's class
    /// (`_use_default_values`).
    #[must_use]
    pub fn for_another_class(&self) -> Self {
        let mut keys = self.keys.clone();
        if let Some(Value::Array(defaulted)) = keys.remove("_use_default_values") {
            for key in defaulted.iter().filter_map(Value::as_str) {
                keys.remove(key);
            }
        }
        Self { keys }
    }

    /// Returns the keys with the corrections that a pipeline of that class makes to an outdated file: `steps_offset`
    /// becomes 1, samples are not clipped, and the Runge-Kutta steps of PNDM are skipped (the constructors of
    /// `pipeline_stable_diffusion.py`, `_img2img.py` and `_inpaint.py`).
    #[must_use]
    pub fn apply_deprecated_config_fixes(&self, pipeline: PipelineClass) -> Self {
        use PipelineClass::{Img2Img, Inpaint, StableDiffusion};
        let mut keys = self.keys.clone();
        let class = self.class_name().unwrap_or_default();
        let is = |key: &str, value: bool, by_default: bool| match self.keys.get(key) {
            Some(found) => found == &Value::Bool(value),
            None => by_default,
        };
        if matches!(pipeline, StableDiffusion | Img2Img | Inpaint) {
            keys.insert("steps_offset".to_owned(), 1.into());
        }
        let clips = matches!(class, "DDIMScheduler" | "DDPMScheduler");
        if matches!(pipeline, StableDiffusion | Img2Img) && is("clip_sample", true, clips) {
            keys.insert("clip_sample".to_owned(), false.into());
        }
        if pipeline == Inpaint && is("skip_prk_steps", false, class == "PNDMScheduler") {
            keys.insert("skip_prk_steps".to_owned(), true.into());
        }
        Self { keys }
    }

    /// Returns the keys that are also in `other`.
    #[must_use]
    pub fn intersect_keys(&self, other: &Self) -> Self {
        let keys = self
            .keys
            .iter()
            .filter(|(key, _)| other.keys.contains_key(*key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        Self { keys }
    }

    /// Returns the keys with `defaults` for missing ones, for a class whose defaults differ from those of the shared
    /// code that reads the keys.
    #[must_use]
    pub fn with_defaults(&self, defaults: &[(&str, Value)]) -> Self {
        let mut keys = self.keys.clone();
        for (key, value) in defaults {
            keys.entry(*key).or_insert_with(|| value.clone());
        }
        Self { keys }
    }

    /// Returns the keys without `unknown`, for a class that lacks keys of the shared code.
    #[must_use]
    pub fn without(&self, unknown: &[&str]) -> Self {
        let mut keys = self.keys.clone();
        for key in unknown {
            keys.remove(*key);
        }
        Self { keys }
    }

    /// Reads the keys of `T`. Missing keys take the defaults of `T`.
    ///
    /// # Errors
    /// `InvalidArgument` for a value of the wrong type.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_value(Value::Object(self.keys.clone()))
            .map_err(|error| Error::invalid_argument(format!("scheduler_config.json: {error}")))
    }

    /// Refuses unsupported switches. `off` lists keys with the value that turns them off, as does null.
    ///
    /// # Errors
    /// `Unsupported`, naming the key.
    pub fn require_off(&self, off: &[(&str, Value)]) -> Result<()> {
        for (key, value) in off {
            match self.keys.get(*key) {
                Some(found) if !found.is_null() && found != value => {
                    return Err(not_supported(key));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Refuses unsupported values of a key.
    ///
    /// # Errors
    /// `Unsupported`, naming the key.
    pub fn refuse(&self, key: &str, values: &[&str]) -> Result<()> {
        match self.keys.get(key).and_then(Value::as_str) {
            Some(found) if values.contains(&found) => Err(not_supported(key)),
            _ => Ok(()),
        }
    }
}

fn not_supported(key: &str) -> Error {
    Error::unsupported(format!(
        "scheduler_config.json: {key} is set to a value that is not supported"
    ))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use serde_json::json;

    use super::*;

    #[test]
    fn deprecated_config_fixes_turn_off_clip_sample() {
        let clip_sample = |text: &str, pipeline| {
            let raw = RawConfig::parse(text).unwrap();
            let raw = raw.apply_deprecated_config_fixes(pipeline);
            raw.keys.get("clip_sample").cloned()
        };
        use PipelineClass::{Inpaint, StableDiffusion};
        for text in [
            r#"{"_class_name": "DDIMScheduler"}"#,
            r#"{"_class_name": "LCMScheduler", "clip_sample": true}"#,
        ] {
            assert_eq!(clip_sample(text, StableDiffusion), Some(false.into()));
            assert_ne!(clip_sample(text, Inpaint), Some(false.into()));
        }
        assert_eq!(
            clip_sample(r#"{"_class_name": "PNDMScheduler"}"#, StableDiffusion),
            None
        );
    }

    #[test]
    fn parse_keeps_strings_and_reads_infinities_as_null() {
        let text = r#"{"note": "from: -Infinity, to: NaN", "min":-Infinity, "ends": [-Infinity, Infinity, NaN]}"#;
        let raw = RawConfig::parse(text).unwrap();
        assert_eq!(raw.keys["note"], "from: -Infinity, to: NaN");
        assert_eq!(raw.keys["min"], Value::Null);
        assert_eq!(raw.keys["ends"], json!([null, null, null]));
    }

    #[test]
    fn parse_too_many_brackets_is_refused() {
        for opening in ["[", "{\"a\":"] {
            let error = RawConfig::parse(&opening.repeat(100_000)).unwrap_err();
            assert!(error.to_string().contains("more than 128"), "{error}");
        }
    }
}
