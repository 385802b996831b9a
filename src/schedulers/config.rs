//! `scheduler/scheduler_config.json`.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

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
            Ok(_) => Err(Error::invalid_argument(
                "scheduler_config.json: not an object",
            )),
            Err(error) => Err(Error::invalid_argument(format!(
                "scheduler_config.json: {error}"
            ))),
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
                    return Err(Error::unsupported(format!(
                        "scheduler_config.json: {key} is set to a value that is not supported"
                    )));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
