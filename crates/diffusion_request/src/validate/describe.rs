//! The description of a model: its pipelines, with the arguments that each takes.

use serde_json::{Map, Value, json};

use super::{ElementInputs, PipelineRules, RequestValidator};
use crate::gen_args::{GenArgs, KEYS};
use crate::preview::Preview;
use diffusion_core::{Context, Result};

impl RequestValidator {
    /// Returns whether a batch element asks for the description of the model: `describe` is true, and there is no other
    /// argument. Anything else is for [`RequestValidator::validate`].
    ///
    /// # Errors
    /// InvalidArgument for `gen_args` that cannot be read.
    pub fn asks_for_description(&self, gen_args: Option<&[u8]>) -> Result<bool> {
        let Some(text) = gen_args else {
            return Ok(false);
        };
        let args = GenArgs::parse(text, self.limits().max_gen_args_bytes).context(|| "gen_args")?;
        let asks = GenArgs {
            describe: Some(true),
            ..GenArgs::default()
        };
        Ok(args == asks)
    }

    /// Describes the pipelines of the model and its limits. `scheduler` is the class name of the model's scheduler.
    ///
    /// `pipelines` has diffusers' class names as keys. The `arguments` of a pipeline have JSON schemas, with `default` where
    /// there is one value that an absent argument has.
    ///
    /// # Errors
    /// None for a validator that [`RequestValidator::new`] has checked.
    pub fn describe(&self, scheduler: &str) -> Result<Map<String, Value>> {
        let mut pipelines = Map::new();
        for rules in &self.rules {
            let arguments = self.arguments(rules, scheduler)?;
            pipelines.insert(rules.class().name().to_owned(), json!({ "arguments": arguments }));
        }
        let limits = self.limits();
        let mut description = Map::new();
        description.insert("pipelines".into(), pipelines.into());
        description.insert("max_pixels".into(), limits.max_pixels.into());
        description.insert("max_unet_batch_size".into(), limits.max_unet_batch_size.into());
        Ok(description)
    }

    fn arguments(&self, rules: &PipelineRules, scheduler: &str) -> Result<Map<String, Value>> {
        let defaults = self.defaults(rules, scheduler)?;
        let mut arguments = Map::new();
        for key in KEYS.iter().filter(|key| key.is_supported_by(rules.class())) {
            let mut schema = key.schema();
            self.narrow(key.name, rules, &mut schema);
            if let Some(default) = defaults.get(key.name) {
                schema.insert("default".into(), default.clone());
            }
            arguments.insert(key.name.to_owned(), schema.into());
        }
        if self.model.safety_checker {
            arguments.remove("preview");
        }
        Ok(arguments)
    }

    /// Returns the arguments of a request that gives none.
    fn defaults(&self, rules: &PipelineRules, scheduler: &str) -> Result<Map<String, Value>> {
        let image = self.white_image()?;
        let inputs = ElementInputs {
            image: Some(image.as_bytes()),
            mask_image: Some(image.as_bytes()),
            ..ElementInputs::default()
        };
        let request = self.validate_for(rules, &inputs)?;
        let mut defaults = request.gen_args();
        // Drawn for each request.
        defaults.remove("seed");
        defaults.insert("deep_cache".into(), request.deep_cache.into());
        defaults.insert("decoder".into(), request.decoder.name().into());
        if let Some((name, _)) = Preview::ALL
            .iter()
            .find(|(_, kind)| rules.model_args.preview == Some(*kind))
        {
            defaults.insert("preview".into(), (*name).into());
        }
        defaults.insert("progress_every".into(), request.progress_every.unwrap_or(0).into());
        defaults.insert(
            "scheduler".into(),
            request.scheduler.as_deref().unwrap_or(scheduler).into(),
        );
        Ok(defaults)
    }

    /// Puts the limits of the model into the schema of an argument.
    fn narrow(&self, name: &str, rules: &PipelineRules, schema: &mut Map<String, Value>) {
        let limits = rules.limits();
        let (limit, value): (&str, Value) = match name {
            "num_inference_steps" => ("maximum", limits.max_steps.into()),
            "num_images_per_prompt" => ("maximum", limits.max_unet_batch_size.into()),
            "noise_level" => ("maximum", self.model.max_noise_level.into()),
            "clip_skip" => ("maximum", self.model.num_text_layers.into()),
            "height" | "width" => ("multipleOf", self.model.vae_scale_factor.into()),
            "scheduler" => ("enum", self.model.schedulers.into()),
            "decoder" if !self.model.tiny_decoder => ("enum", json!(["vae"])),
            "preview" => ("enum", self.previews().into()),
            _ => return,
        };
        schema.insert(limit.to_owned(), value);
    }

    /// Returns the kinds of previews that the model has.
    fn previews(&self) -> Vec<&'static str> {
        let has = |kind: &Preview| *kind != Preview::Tiny || self.model.tiny_decoder;
        let all = Preview::ALL.into_iter();
        all.filter(|(_, kind)| has(kind)).map(|(name, _)| name).collect()
    }
}
