//! The words of the conversion: components, target tensors and mappings.

/// A component of the folder that has weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// `unet/`
    Unet,
    /// `vae/`
    Vae,
    /// `text_encoder/`
    TextEncoder,
}

impl Component {
    /// All components.
    pub const ALL: [Self; 3] = [Self::Unet, Self::Vae, Self::TextEncoder];

    /// Returns the path of the weights in the folder.
    pub fn weights(self) -> &'static str {
        match self {
            Self::Unet => "unet/diffusion_pytorch_model.safetensors",
            Self::Vae => "vae/diffusion_pytorch_model.safetensors",
            Self::TextEncoder => "text_encoder/model.safetensors",
        }
    }
}

/// The generation of the checkpoint, which decides the text encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Stable Diffusion 1: OpenAI's CLIP ViT-L/14.
    Sd1,
    /// Stable Diffusion 2: OpenCLIP ViT-H/14 without its last layer.
    Sd2,
}

/// A tensor of the folder, and its part of a tensor of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetTensor {
    /// Its name in the component.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The index and the number of equal parts of the file's tensor, along the first dimension.
    pub part: (u64, u64),
}

impl TargetTensor {
    /// Makes a target that is the whole tensor.
    pub fn whole(name: impl Into<String>, shape: &[usize]) -> Self {
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            part: (0, 1),
        }
    }
}

/// The mapping of a tensor of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mapping {
    /// To one or several tensors of the folder.
    Mapped(Vec<TargetTensor>),
    /// Skipped, for this reason.
    Skipped(&'static str),
}

/// Splits an index off a name: `3.rest` gives 3 and `rest`.
pub fn strip_index(name: &str) -> Option<(usize, &str)> {
    let (index, rest) = name.split_once('.')?;
    Some((index.parse().ok()?, rest))
}
