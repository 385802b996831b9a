//! Weights from a recipe, `weights.json`. `tools/seeded_checkpoints.py` describes the format and writes the same bytes.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io;

use half::f16;
use safetensors::tensor::{Dtype, View, serialize};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::noise::Noise;

/// A file of weights.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the safetensors file.
    pub file: String,
    /// The file's digest in hexadecimal digits.
    pub sha256: String,
    /// First part of each tensor's seed.
    pub seed: String,
    /// The model's modules.
    pub tensors: Module,
}

/// What a module holds, by name.
pub type Module = BTreeMap<String, Node>;

/// A branch or leaf of the tree of modules.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Node {
    /// A module in a module.
    Module(Module),
    /// A tensor's shape and rule.
    Tensor(Vec<usize>, Rule),
}

/// What becomes a tensor's values.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// 1 + 0.1 noise.
    Norm,
    /// 0.1 noise.
    Bias,
    /// Noise times this gain.
    Embedding(f64),
    /// Noise times this gain, divided by the square root of the fan-in.
    Weight(f64),
    /// The values themselves.
    Values(Vec<f32>),
}

impl Recipe {
    /// Makes the safetensors file.
    ///
    /// # Errors
    /// If its digest is not the recipe's.
    pub fn weights(&self) -> io::Result<Vec<u8>> {
        let mut tensors = Vec::new();
        flatten(&self.tensors, "", &mut tensors);
        let views = tensors.into_iter().map(|(name, shape, rule)| {
            let values = tensor(&self.seed, &name, shape, rule);
            (name, Tensor { shape, values })
        });
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let file = serialize(views, Some(metadata)).map_err(io::Error::other)?;
        let digest = format!("{:x}", Sha256::digest(&file));
        if digest != self.sha256 {
            return Err(io::Error::other(format!(
                "weights of {}: expected sha256 {}, got {digest}",
                self.seed, self.sha256
            )));
        }
        Ok(file)
    }
}

/// Collects name, shape and rule of each tensor.
fn flatten<'a>(module: &'a Module, prefix: &str, tensors: &mut Vec<(String, &'a [usize], &'a Rule)>) {
    for (key, node) in module {
        match node {
            Node::Module(inner) => flatten(inner, &format!("{prefix}{key}."), tensors),
            Node::Tensor(shape, rule) => tensors.push((format!("{prefix}{key}"), shape, rule)),
        }
    }
}

/// A float16 tensor, to be written.
struct Tensor<'a> {
    shape: &'a [usize],
    values: Vec<u8>,
}

impl View for Tensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F16
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.values)
    }

    fn data_len(&self) -> usize {
        self.values.len()
    }
}

/// The bytes of a tensor's float16 values.
fn tensor(seed: &str, name: &str, shape: &[usize], rule: &Rule) -> Vec<u8> {
    let (scale, offset) = match rule {
        Rule::Values(values) => {
            let halves = values.iter().map(|&value| f16::from_f32(value));
            return halves.flat_map(f16::to_le_bytes).collect();
        }
        Rule::Norm => (0.1, 1.0),
        Rule::Bias => (0.1, 0.0),
        Rule::Embedding(gain) => (*gain, 0.0),
        Rule::Weight(gain) => {
            let fan_in: usize = shape.iter().skip(1).product();
            (gain / (fan_in.max(1) as f64).sqrt(), 0.0)
        }
    };
    // A parameter of the model itself has the stream of a module without a name.
    let module = if name.contains('.') { "" } else { "." };
    let digest = Sha256::digest(format!("{seed}/{module}{name}"));
    let first = digest.iter().take(8).rev();
    let mut noise = Noise::new(first.fold(0, |all, &byte| all << 8 | u64::from(byte)));
    let value = |_| f16::from_f32(noise.normal() as f32 * scale as f32 + offset);
    (0..shape.iter().product::<usize>())
        .map(value)
        .flat_map(f16::to_le_bytes)
        .collect()
}
