//! The names of tensors in LoRA files of diffusers, peft, kohya-ss and LoCon.
//!
//! Sources: diffusers `loaders/lora_conversion_utils.py`, `utils/state_dict_utils.py`; peft `utils/save_and_load.py`;
//! kohya-ss sd-scripts `networks/lora.py`; LyCORIS `lycoris/modules/locon.py`.

use diffusion_core::{Error, Result};

/// A model that adapters can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AdaptedComponent {
    /// `unet`.
    Unet,
    /// `text_encoder`.
    TextEncoder,
}

impl AdaptedComponent {
    /// Returns the name in files of diffusers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::TextEncoder => "text_encoder",
        }
    }

    /// Returns the name of a layer of the component in diffusers and transformers. Our names of the text encoder's layers
    /// begin below `text_model`.
    pub fn module_name(self, layer: &str) -> String {
        match self {
            Self::Unet => layer.to_owned(),
            Self::TextEncoder => format!("text_model.{layer}"),
        }
    }
}

/// What a tensor is to its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyPart {
    /// The first matrix, from the inputs to the rank.
    Down,
    /// The second matrix, from the rank to the outputs.
    Up,
    /// One number: the products are scaled by it, divided by the rank.
    Alpha,
}

/// A tensor's name in an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterKey {
    /// The component that the name tells, if it tells one.
    pub component: Option<AdaptedComponent>,
    /// The name of the layer: with dots as in a checkpoint, or with underscores in their place.
    pub layer: String,
    /// What the tensor is.
    pub part: KeyPart,
}

/// How the name of a tensor ends.
const ENDINGS: [(&str, KeyPart); 13] = [
    (".lora_A.weight", KeyPart::Down),
    (".lora_B.weight", KeyPart::Up),
    (".lora_A.default.weight", KeyPart::Down),
    (".lora_B.default.weight", KeyPart::Up),
    (".lora.down.weight", KeyPart::Down),
    (".lora.up.weight", KeyPart::Up),
    (".lora_linear_layer.down.weight", KeyPart::Down),
    (".lora_linear_layer.up.weight", KeyPart::Up),
    ("_lora.down.weight", KeyPart::Down),
    ("_lora.up.weight", KeyPart::Up),
    (".lora_down.weight", KeyPart::Down),
    (".lora_up.weight", KeyPart::Up),
    (".alpha", KeyPart::Alpha),
];

/// Parts of names of adapters that are no LoRA, and what these are called.
const OTHER_ADAPTERS: [(&str, &str); 10] = [
    (".dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    (".hada_w", "LoHa"),
    (".hada_t", "LoHa"),
    (".lokr_w", "LoKr"),
    (".lokr_t", "LoKr"),
    (".lora_mid.", "LoCon with a Tucker decomposition"),
    (".oft_", "OFT"),
    (".diff", "a full difference of weights"),
    (".lora_B.bias", "LoRA with a bias"),
];

/// How the name of a component begins.
const COMPONENTS: [(&str, AdaptedComponent); 6] = [
    ("unet.", AdaptedComponent::Unet),
    ("text_encoder.", AdaptedComponent::TextEncoder),
    ("lora_unet_", AdaptedComponent::Unet),
    ("lora_te_", AdaptedComponent::TextEncoder),
    ("text_model.", AdaptedComponent::TextEncoder),
    ("text_model_", AdaptedComponent::TextEncoder),
];

/// How the names of components begin that Stable Diffusion 1 and 2 do not have.
const OTHER_FAMILIES: [(&str, &str); 5] = [
    ("lora_te1_", "Stable Diffusion XL"),
    ("lora_te2_", "Stable Diffusion XL"),
    ("text_encoder_2.", "Stable Diffusion XL"),
    ("transformer.", "a transformer model"),
    ("lora_transformer_", "a transformer model"),
];

/// Names of the attention's layers before diffusers 0.18, in the UNet and in the text encoder.
const ATTENTION_PROCESSORS: [(&str, &str, &str); 4] = [
    ("to_q", "to_q", "q_proj"),
    ("to_k", "to_k", "k_proj"),
    ("to_v", "to_v", "v_proj"),
    ("to_out", "to_out.0", "out_proj"),
];

impl AdapterKey {
    /// Parses the name of a tensor.
    ///
    /// # Errors
    /// `Unsupported` for another kind of adapter or another family of models, `InvalidArgument` for any other name.
    pub fn parse(name: &str) -> Result<Self> {
        if let Some((_, kind)) = OTHER_ADAPTERS.iter().find(|(part, _)| name.contains(part)) {
            return Err(Error::unsupported(format!("{kind} is not supported; LoRA is")));
        }
        let ending = ENDINGS
            .iter()
            .find_map(|&(ending, part)| Some((name.strip_suffix(ending)?, part, ending)));
        let Some((layer, part, ending)) = ending else {
            return Err(Error::invalid_argument("not the name of a LoRA's tensor"));
        };
        let layer = layer.strip_prefix("base_model.model.").unwrap_or(layer);
        if let Some((_, family)) = OTHER_FAMILIES.iter().find(|(prefix, _)| layer.starts_with(prefix)) {
            return Err(Error::unsupported(format!(
                "the adapter is for {family}, the model is Stable Diffusion 1 or 2"
            )));
        }
        let (component, layer) = component(layer);
        let layer = match component {
            // See `AdaptedComponent::module_name`.
            Some(AdaptedComponent::TextEncoder) => strip_any(layer, &["text_model.", "text_model_"]),
            Some(AdaptedComponent::Unet) | None => layer,
        };
        let layer = if ending.starts_with('_') {
            old_attention(component, layer)
        } else {
            layer.to_owned()
        };
        Ok(Self { component, layer, part })
    }
}

fn component(layer: &str) -> (Option<AdaptedComponent>, &str) {
    COMPONENTS
        .iter()
        .find_map(|&(prefix, component)| Some((Some(component), layer.strip_prefix(prefix)?)))
        .unwrap_or((None, layer))
}

fn strip_any<'a>(text: &'a str, prefixes: &[&str]) -> &'a str {
    prefixes
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))
        .unwrap_or(text)
}

/// Returns the current name of a layer that was named after an attention processor: `attn1.processor.to_out` is
/// `attn1.to_out.0`.
fn old_attention(component: Option<AdaptedComponent>, layer: &str) -> String {
    let layer = layer.replace(".processor.", ".");
    let Some((path, last)) = layer.rsplit_once('.') else {
        return layer;
    };
    let renamed = ATTENTION_PROCESSORS.iter().find(|(old, ..)| *old == last);
    match (renamed, component) {
        (Some((.., name)), Some(AdaptedComponent::TextEncoder)) => format!("{path}.{name}"),
        (Some((_, name, _)), _) => format!("{path}.{name}"),
        (None, _) => layer,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use AdaptedComponent::{TextEncoder, Unet};

    #[test]
    fn names_of_every_format_are_known() {
        let down = KeyPart::Down;
        let attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn1";
        for (name, component, layer, part) in [
            (
                format!("unet.{attention}.to_q.lora_A.weight"),
                Some(Unet),
                format!("{attention}.to_q"),
                down,
            ),
            (
                format!("unet.{attention}.to_q.lora.up.weight"),
                Some(Unet),
                format!("{attention}.to_q"),
                KeyPart::Up,
            ),
            (
                format!("unet.{attention}.processor.to_q_lora.down.weight"),
                Some(Unet),
                format!("{attention}.to_q"),
                down,
            ),
            (
                format!("{attention}.processor.to_out_lora.down.weight"),
                None,
                format!("{attention}.to_out.0"),
                down,
            ),
            (
                format!("base_model.model.{attention}.to_q.lora_A.weight"),
                None,
                format!("{attention}.to_q"),
                down,
            ),
            (
                "lora_unet_mid_block_resnets_0_conv1.alpha".into(),
                Some(Unet),
                "mid_block_resnets_0_conv1".into(),
                KeyPart::Alpha,
            ),
            (
                "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight".into(),
                Some(TextEncoder),
                "encoder_layers_0_mlp_fc1".into(),
                down,
            ),
            (
                "text_encoder.text_model.encoder.layers.1.self_attn.q_proj.lora_linear_layer.up.weight".into(),
                Some(TextEncoder),
                "encoder.layers.1.self_attn.q_proj".into(),
                KeyPart::Up,
            ),
            (
                "text_encoder.text_model.encoder.layers.1.self_attn.to_out_lora.up.weight".into(),
                Some(TextEncoder),
                "encoder.layers.1.self_attn.out_proj".into(),
                KeyPart::Up,
            ),
            (
                "text_model.encoder.layers.1.self_attn.q_proj.lora_A.weight".into(),
                Some(TextEncoder),
                "encoder.layers.1.self_attn.q_proj".into(),
                down,
            ),
        ] {
            let expected = AdapterKey { component, layer, part };
            assert_eq!(AdapterKey::parse(&name).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn other_adapters_are_refused_by_name() {
        for (name, expected) in [
            ("lora_unet_a.dora_scale", "DoRA is not supported; LoRA is"),
            ("lora_unet_a.hada_w1_a", "LoHa is not supported; LoRA is"),
            ("lora_unet_a.lokr_w1", "LoKr is not supported; LoRA is"),
            (
                "lora_unet_a.lora_mid.weight",
                "LoCon with a Tucker decomposition is not supported; LoRA is",
            ),
            (
                "lora_te2_a.alpha",
                "the adapter is for Stable Diffusion XL, the model is Stable Diffusion 1 or 2",
            ),
            (
                "transformer.a.lora_A.weight",
                "the adapter is for a transformer model, the model is Stable Diffusion 1 or 2",
            ),
            ("conv_in.weight", "not the name of a LoRA's tensor"),
            ("", "not the name of a LoRA's tensor"),
        ] {
            assert_eq!(AdapterKey::parse(name).unwrap_err().to_string(), expected, "{name}");
        }
    }
}
