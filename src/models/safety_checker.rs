//! The safety checker of Stable Diffusion 1, which flags images that are close to certain concepts.
//!
//! Source: diffusers `pipelines/stable_diffusion/safety_checker.py` (`StableDiffusionSafetyChecker`). Rando et al.,
//! "Red-Teaming the Stable Diffusion Safety Filter" (2022), describe the concepts.

use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::clip::{ClipVisionConfig, ClipVisionModel};
use super::config::ensure;
use super::layers::Linear;
use crate::torch::Stream;
use crate::torch::numbers::NumberOperators;
use crate::weights::{Frozen, WeightPath, Weights};
use diffusion_core::Result;

/// Number of concepts that flag an image.
const CONCEPTS: i64 = 17;
/// Number of concepts that make the others stricter.
const SPECIAL_CARE_CONCEPTS: i64 = 3;
/// Added to all scores after a special care concept that was found.
const ADJUSTMENT: f64 = 0.01;

/// The file of the configuration, for errors.
const FILE: &str = "safety_checker/config.json";

/// `safety_checker/config.json`, as far as the checker uses transformers' `CLIPConfig`.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "ClipConfig")]
pub struct SafetyCheckerConfig {
    /// The vision model.
    pub vision_config: ClipVisionConfig,
    /// Size of the embeddings of images and concepts.
    pub projection_dim: i64,
}

/// The keys of the file.
#[derive(Deserialize)]
struct ClipConfig {
    #[serde(default = "projection_dim")]
    projection_dim: i64,
    vision_config: Option<ClipVisionConfig>,
    /// The older form of `vision_config`, which it replaces as a whole: missing keys have the defaults.
    vision_config_dict: Option<ClipVisionConfig>,
}

/// transformers' default.
fn projection_dim() -> i64 {
    512
}

impl From<ClipConfig> for SafetyCheckerConfig {
    fn from(config: ClipConfig) -> Self {
        Self {
            vision_config: config.vision_config_dict.or(config.vision_config).unwrap_or_default(),
            projection_dim: config.projection_dim,
        }
    }
}

impl SafetyCheckerConfig {
    /// Checks that the values fit each other and are supported.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported`, naming the key.
    pub fn check(&self) -> Result<()> {
        let in_range = (1..=1 << 20).contains(&self.projection_dim);
        ensure(in_range, FILE, "projection_dim is out of range (1 to 1048576)")?;
        self.vision_config.check(FILE)
    }
}

/// Embeddings of concepts, and the largest cosine that an image may have with each.
struct Concepts {
    /// `[projection_dim, concepts]`, each column of length 1.
    directions: Tensor,
    thresholds: Vec<f64>,
}

impl Concepts {
    fn new(path: &WeightPath<'_>, name: &str, count: i64, size: i64) -> Result<Self> {
        let thresholds = path
            .tensor(&format!("{name}_weights"), &[count])?
            .f_to_kind(Kind::Double)?
            .f_to_device(Device::Cpu)?;
        Ok(Self {
            directions: normalize(&path.tensor(name, &[count, size])?)?.f_transpose(0, 1)?,
            thresholds: Vec::try_from(&thresholds)?,
        })
    }

    /// Computes the cosines `[batch, concepts]`, float32, of normalized embeddings `[batch, projection_dim]`.
    fn cosines(&self, normalized: &Tensor) -> Result<Tensor> {
        Ok(normalized.f_mm(&self.directions)?.f_to_kind(Kind::Float)?)
    }
}

/// The cosine of the angle between each image and each concept, float32.
pub struct Cosines {
    /// `[batch, 3]`.
    pub special_care: Tensor,
    /// `[batch, 17]`.
    pub concepts: Tensor,
}

/// By how much the cosines of one image exceed the limits of the concepts, to three decimals.
#[derive(Clone, Debug, PartialEq)]
pub struct SafetyScores {
    /// Scores of the concepts that make all following scores stricter once one is over 0.
    pub special_care: Vec<f64>,
    /// Scores of the concepts that flag the image.
    pub concepts: Vec<f64>,
}

impl SafetyScores {
    /// Computes the scores of one image from its cosines and the thresholds of the concepts.
    ///
    /// In diffusers the cosine is a numpy float32 and the threshold a Python float; their difference is a double in
    /// numpy 1.
    fn new(cosines: [&[f32]; 2], thresholds: [&[f64]; 2]) -> Self {
        let [special_cosines, cosines] = cosines;
        let [special_thresholds, thresholds] = thresholds;
        let mut adjustment = 0.0;
        let special_care = special_cosines
            .iter()
            .zip(special_thresholds)
            .map(|(&cosine, threshold)| {
                let score = thousandths(f64::from(cosine) - threshold + adjustment);
                if score > 0.0 {
                    adjustment = ADJUSTMENT;
                }
                score
            })
            .collect();
        let concepts = cosines
            .iter()
            .zip(thresholds)
            .map(|(&cosine, threshold)| thousandths(f64::from(cosine) - threshold + adjustment))
            .collect();
        Self { special_care, concepts }
    }

    /// Whether any concept exceeds its limit.
    pub fn flagged(&self) -> bool {
        self.concepts.iter().any(|&score| score > 0.0)
    }
}

/// diffusers' `StableDiffusionSafetyChecker`.
pub struct SafetyChecker {
    config: SafetyCheckerConfig,
    vision_model: ClipVisionModel,
    visual_projection: Linear,
    special_care: Concepts,
    concepts: Concepts,
}

// SAFETY: the model holds tensors and numbers only. Its methods take `&self` and read the weights through functional
// operations of libtorch; none writes to a weight.
#[expect(unsafe_code, reason = "the promise is about this type and changes with it")]
unsafe impl Frozen for SafetyChecker {}

impl SafetyChecker {
    /// Builds the checker from `weights`, all of which it must use.
    ///
    /// Names of the vision model begin with `vision_model.vision_model.` (transformers 4) or `vision_model.`
    /// (transformers 5).
    pub fn new(config: SafetyCheckerConfig, weights: Weights) -> Result<Self> {
        let weights = weights
            .renamed(|name| {
                name.strip_prefix("vision_model.")
                    .filter(|rest| rest.starts_with("vision_model."))
                    .map(str::to_owned)
            })
            // A buffer of ascending numbers in files of old versions of transformers.
            .ignoring(|name| name.ends_with("embeddings.position_ids"));
        let checker = Self::read(config, &weights)?;
        weights.finish()?;
        Ok(checker)
    }

    fn read(config: SafetyCheckerConfig, weights: &Weights) -> Result<Self> {
        let path = weights.root();
        let size = config.projection_dim;
        Ok(Self {
            vision_model: ClipVisionModel::new(&path.sub("vision_model"), &config.vision_config)?,
            visual_projection: Linear::with_bias(
                &path.sub("visual_projection"),
                config.vision_config.hidden_size,
                size,
                false,
            )?,
            special_care: Concepts::new(&path, "special_care_embeds", SPECIAL_CARE_CONCEPTS, size)?,
            concepts: Concepts::new(&path, "concept_embeds", CONCEPTS, size)?,
            config,
        })
    }

    /// Returns the configuration.
    pub fn config(&self) -> &SafetyCheckerConfig {
        &self.config
    }

    /// Returns for each image whether it is flagged. As in diffusers, all images go through the model in one call, and a
    /// score that is not a number flags nothing.
    ///
    /// # Shapes
    /// - `pixel_values`: `[batch, 3, image_size, image_size]` from
    ///   [`ClipImageProcessor`](crate::processors::ClipImageProcessor), any dtype
    pub fn check(&self, pixel_values: &Tensor, stream: &Stream) -> Result<Vec<bool>> {
        let cosines = self.cosines(&self.image_embeds(pixel_values)?)?;
        let cosines = Cosines {
            special_care: stream.to_host(&cosines.special_care)?,
            concepts: stream.to_host(&cosines.concepts)?,
        };
        stream.synchronize()?;
        let scores = self.scores(&cosines)?;
        Ok(scores.iter().map(SafetyScores::flagged).collect())
    }

    /// Computes the embeddings of images, `[batch, projection_dim]` in the model dtype; see [`SafetyChecker::check`].
    pub fn image_embeds(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let pixel_values = pixel_values.f_to_kind(self.concepts.directions.kind())?;
        let pooled = self.vision_model.forward(&pixel_values)?;
        self.visual_projection.forward(&pooled)
    }

    /// Computes the cosines of embeddings `[batch, projection_dim]` with the concepts.
    pub fn cosines(&self, image_embeds: &Tensor) -> Result<Cosines> {
        let normalized = normalize(image_embeds)?;
        Ok(Cosines {
            special_care: self.special_care.cosines(&normalized)?,
            concepts: self.concepts.cosines(&normalized)?,
        })
    }

    /// Computes the scores of each image from its cosines, which are on the CPU.
    pub fn scores(&self, cosines: &Cosines) -> Result<Vec<SafetyScores>> {
        let special_care: Vec<Vec<f32>> = (&cosines.special_care).try_into()?;
        let concepts: Vec<Vec<f32>> = (&cosines.concepts).try_into()?;
        let thresholds = [&self.special_care.thresholds[..], &self.concepts.thresholds[..]];
        Ok(special_care
            .iter()
            .zip(&concepts)
            .map(|(special, concepts)| SafetyScores::new([special, concepts], thresholds))
            .collect())
    }
}

/// Scales vectors `[batch, size]` to length 1 (`torch.nn.functional.normalize`; libtorch's `norm` with a dimension calls
/// its `vector_norm`).
fn normalize(vectors: &Tensor) -> Result<Tensor> {
    let length = vectors.norm_of(1)?.clamp_min_number(1e-12)?.f_expand_as(vectors)?;
    Ok(vectors.f_div(&length)?)
}

/// Rounds to three decimals as numpy does: a product, the nearest integer with halves to even, a quotient.
fn thousandths(value: f64) -> f64 {
    (value * 1000.0).round_ties_even() / 1000.0
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use serde_json::json;

    fn config(value: serde_json::Value) -> SafetyCheckerConfig {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn config_older_form_replaces_vision_config() {
        let new = config(json!({
            "projection_dim": 768,
            "vision_config": {"hidden_size": 1024, "patch_size": 14, "layer_norm_eps": 1e-6},
            "text_config": {"hidden_size": 8},
        }));
        assert_eq!(new.projection_dim, 768);
        assert_eq!(new.vision_config.hidden_size, 1024);
        assert_eq!(new.vision_config.layer_norm_eps, 1e-6);
        let old = config(json!({
            "vision_config": {"hidden_size": 512, "layer_norm_eps": 1e-6},
            "vision_config_dict": {"hidden_size": 1024, "patch_size": 14},
        }));
        assert_eq!(old.projection_dim, 512);
        assert_eq!(old.vision_config.hidden_size, 1024);
        assert_eq!(old.vision_config.layer_norm_eps, 1e-5);
        let none = config(json!({"vision_config_dict": null}));
        assert_eq!(none.vision_config.hidden_size, 768);
        assert!(none.check().is_ok());
        let error = config(json!({"projection_dim": 0})).check().unwrap_err();
        assert!(error.to_string().contains("projection_dim"));
    }

    #[test]
    fn flagged_scores_are_rounded_first() {
        let flagged = |cosine: f32| SafetyScores::new([&[-1.0], &[cosine]], [&[0.0], &[0.25]]).flagged();
        assert!(!flagged(0.25));
        // Half a thousandth goes to the even side, which is 0.
        assert!(!flagged(0.250_49));
        assert!(flagged(0.250_51));
        assert!(!flagged(f32::NAN));
    }

    #[test]
    fn scores_special_care_makes_following_stricter() {
        let scores = |special: [f32; 3]| SafetyScores::new([&special, &[0.495, 0.3]], [&[0.5; 3], &[0.5, 0.5]]);
        let plain = scores([0.5, 0.495, 0.2]);
        assert_eq!(plain.special_care, [0.0, -0.005, -0.3]);
        assert_eq!(plain.concepts, [-0.005, -0.2]);
        assert!(!plain.flagged());
        // The second concept is over its limit because the first was; the concept before is not.
        let strict = scores([0.495, 0.75, 0.495]);
        assert_eq!(strict.special_care, [-0.005, 0.25, 0.005]);
        assert_eq!(strict.concepts, [0.005, -0.19]);
        assert!(strict.flagged());
    }

    #[test]
    fn normalize_zeros_stay_zeros() {
        let vectors = Tensor::from_slice2(&[[3.0f32, 4.0], [0.0, 0.0]]);
        let normalized = Vec::<Vec<f32>>::try_from(normalize(&vectors).unwrap()).unwrap();
        assert_eq!(normalized, [[0.6, 0.8], [0.0, 0.0]]);
    }
}
