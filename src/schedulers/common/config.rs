//! `scheduler/scheduler_config.json`.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use diffusion_core::config::PipelineClass;
use diffusion_core::{Error, Result};

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

/// How the training timesteps are thinned out to the steps of one run (Lin et al., "Common Diffusion
/// Noise Schedules and Sample Steps are Flawed", 2023, table 2).
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
    /// From an exponential, capped at 0.999. Of `HeunDiscreteScheduler` alone.
    Exp,
}

/// The keys of a scheduler's configuration, not yet read as any class.
///
/// diffusers makes one scheduler from another's configuration (`from_config`): keys that are there
/// carry over, keys that are not take the defaults of the new class. So the keys are kept as they are
/// and read by the class that is wanted.
#[derive(Clone, Debug)]
pub struct RawConfig {
    keys: Map<String, Value>,
}

impl RawConfig {
    /// The keys of `scheduler_config.json`.
    ///
    /// # Errors
    /// `InvalidArgument` if `text` is no JSON object.
    pub fn parse(text: &str) -> Result<Self> {
        // Python writes an infinite `lambda_min_clipped` as a word that is no JSON.
        let text = text.replace(": -Infinity", ": -1.7976931348623157e308");
        match serde_json::from_str(&text) {
            Ok(Value::Object(keys)) => Ok(Self { keys }),
            Ok(_) => Err(Error::invalid_argument("scheduler_config.json: not an object")),
            Err(error) => Err(Error::invalid_argument(format!("scheduler_config.json: {error}"))),
        }
    }

    /// `_class_name`.
    pub fn class_name(&self) -> Option<&str> {
        self.keys.get("_class_name").and_then(Value::as_str)
    }

    /// The keys as another class gets them: those that the file's class had only by default
    /// (`_use_default_values`) are left to the new class's defaults.
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

    /// The keys as a pipeline of that class changes them when it is made of a folder with an outdated file:
    /// `steps_offset` becomes 1, samples are not clipped, and the Runge-Kutta steps of PNDM are skipped
    /// (the constructors of `pipeline_stable_diffusion.py`, `_img2img.py` and `_inpaint.py`).
    #[must_use]
    pub fn brought_up_to_date(&self, pipeline: PipelineClass) -> Self {
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

    /// The keys that are in `other` too.
    #[must_use]
    pub fn shared_with(&self, other: &Self) -> Self {
        let keys = self
            .keys
            .iter()
            .filter(|(key, _)| other.keys.contains_key(*key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        Self { keys }
    }

    /// The keys with others for those that are missing, where a class's defaults are not those of the
    /// part that reads them.
    #[must_use]
    pub fn with_defaults(&self, defaults: &[(&str, Value)]) -> Self {
        let mut keys = self.keys.clone();
        for (key, value) in defaults {
            keys.entry(*key).or_insert_with(|| value.clone());
        }
        Self { keys }
    }

    /// The keys but for some, which a class does not know and a part that reads them does.
    #[must_use]
    pub fn without(&self, unknown: &[&str]) -> Self {
        let mut keys = self.keys.clone();
        for key in unknown {
            keys.remove(*key);
        }
        Self { keys }
    }

    /// Reads the keys that `T` names; `T`'s defaults stand in for those that are missing.
    ///
    /// # Errors
    /// `InvalidArgument` for a value of the wrong type.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_value(Value::Object(self.keys.clone()))
            .map_err(|error| Error::invalid_argument(format!("scheduler_config.json: {error}")))
    }

    /// Refuses switches that a class does not do.
    ///
    /// `off` lists keys and the value beside null that leaves them off.
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

    /// Refuses values of a key that a class does not do.
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
    use super::*;
    use crate::schedulers::{Plan, SchedulerConfig};

    fn timesteps(text: &str, pipeline: PipelineClass, class: Option<&str>) -> Vec<f64> {
        let config = SchedulerConfig::of_pipeline(text, pipeline, class).unwrap();
        let plan = Plan {
            num_inference_steps: 4,
            timesteps: None,
            sigmas: None,
            eta: 0.0,
        };
        config.build(&plan).unwrap().timesteps().to_vec()
    }

    /// What diffusers 0.36 makes of these files when it loads a pipeline.
    #[test]
    fn outdated_files_are_read_as_pipelines_correct_them() {
        use PipelineClass::{Depth2Img, Inpaint, StableDiffusion};
        let ddim = r#"{"_class_name": "DDIMScheduler", "steps_offset": 0}"#;
        let corrected = [751.0, 501.0, 251.0, 1.0];
        let plain = [750.0, 500.0, 250.0, 0.0];
        assert_eq!(timesteps(ddim, StableDiffusion, None), corrected);
        assert_eq!(timesteps(ddim, Depth2Img, None), plain);
        // A key of the file carries over as it was corrected, one that it lacks does not.
        let another = Some("DDPMScheduler");
        assert_eq!(timesteps(ddim, StableDiffusion, another), corrected);
        let bare = r#"{"_class_name": "DDIMScheduler"}"#;
        assert_eq!(timesteps(bare, StableDiffusion, None), corrected);
        assert_eq!(timesteps(bare, StableDiffusion, another), plain);
        // Without its Runge-Kutta steps PNDM takes one step more than asked for; with them thirteen for four.
        let pndm = r#"{"_class_name": "PNDMScheduler", "skip_prk_steps": false}"#;
        assert_eq!(timesteps(pndm, Inpaint, None).len(), 5);
        assert_eq!(timesteps(pndm, StableDiffusion, None).len(), 13);
    }

    #[test]
    fn samples_are_not_clipped_where_a_pipeline_says_so() {
        let clips = |text: &str, pipeline| {
            let raw = RawConfig::parse(text).unwrap().brought_up_to_date(pipeline);
            raw.keys.get("clip_sample").cloned()
        };
        use PipelineClass::{Inpaint, StableDiffusion};
        for text in [
            r#"{"_class_name": "DDIMScheduler"}"#,
            r#"{"_class_name": "LCMScheduler", "clip_sample": true}"#,
        ] {
            assert_eq!(clips(text, StableDiffusion), Some(false.into()));
            assert_ne!(clips(text, Inpaint), Some(false.into()));
        }
        assert_eq!(clips(r#"{"_class_name": "PNDMScheduler"}"#, StableDiffusion), None);
    }
}
