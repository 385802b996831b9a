//! The report about a LoRA file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use diffusion_core::Result;
use indicatif::HumanBytes;
use serde::Serialize;
use triton_diffusion::adapters::{AdaptedComponent, AdapterKey, KeyPart};
use triton_diffusion::weights::TensorFile;

/// Names without a component are of the UNet in almost all files.
const UNNAMED: AdaptedComponent = AdaptedComponent::Unet;

/// What a LoRA file changes.
#[derive(Debug, Serialize)]
pub struct LoraReport {
    /// The file.
    pub file: PathBuf,
    /// The bytes of its tensors.
    pub bytes: usize,
    /// The dtypes of its tensors.
    pub dtypes: BTreeSet<String>,
    /// The layers of each component, `unet` or `text_encoder`.
    pub components: BTreeMap<&'static str, LoraLayers>,
    /// Tensors for which the server refuses the file.
    pub problems: Vec<String>,
}

/// The layers of a component that a LoRA changes.
#[derive(Debug, Default, Serialize)]
pub struct LoraLayers {
    /// Their number.
    pub layers: usize,
    /// How many of them are convolutions with a kernel larger than 1x1.
    pub convolutions: usize,
    /// The ranks.
    pub ranks: BTreeSet<usize>,
}

impl LoraReport {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// Those of [`TensorFile::open`].
    pub fn of(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let mut report = Self {
            file: path.to_owned(),
            bytes: 0,
            dtypes: BTreeSet::new(),
            components: BTreeMap::new(),
            problems: Vec::new(),
        };
        for name in file.names() {
            let Some(info) = file.info(&name) else {
                continue;
            };
            report.bytes += file.range(info).len();
            report.dtypes.insert(format!("{:?}", info.dtype));
            match AdapterKey::parse(&name) {
                Ok(key) if key.part == KeyPart::Down => {
                    let component = match key.component.unwrap_or(UNNAMED) {
                        AdaptedComponent::Unet => "unet",
                        AdaptedComponent::TextEncoder => "text_encoder",
                    };
                    let layers = report.components.entry(component).or_default();
                    layers.layers += 1;
                    layers.convolutions += usize::from(info.shape.get(2).is_some_and(|&side| side > 1));
                    layers.ranks.extend(info.shape.first());
                }
                Ok(_) => {}
                Err(error) => report.problems.push(format!("tensor {name}: {error}")),
            }
        }
        Ok(report)
    }

    /// Formats the report.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let dtypes: Vec<&str> = self.dtypes.iter().map(String::as_str).collect();
        writeln!(text, "{}", self.file.display())?;
        writeln!(
            text,
            "  LoRA, {}, {}",
            HumanBytes(self.bytes as u64),
            dtypes.join(" and ")
        )?;
        for (component, layers) in &self.components {
            let ranks: Vec<String> = layers.ranks.iter().map(usize::to_string).collect();
            write!(
                text,
                "  {component:13} {} layers of rank {}",
                layers.layers,
                ranks.join(", ")
            )?;
            if layers.convolutions > 0 {
                write!(text, ", {} of them convolutions", layers.convolutions)?;
            }
            writeln!(text)?;
        }
        for problem in &self.problems {
            writeln!(text, "problem: {problem}")?;
        }
        Ok(())
    }
}
