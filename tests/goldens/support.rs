//! Reads the goldens of a group and compares results with them.

use std::path::{Path, PathBuf};

use diffusion_core::config::{ModelParameters, Numerics};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor};
pub use test_support::{checkpoint, psnr};
use triton_diffusion::weights::{TensorFile, Weights, load_component, read_json};

/// Largest difference of one value of a component or a trajectory, relative to the largest value or 1, that another
/// processor's kernels may cause.
const TOLERANCE: f64 = 5e-4;
/// The same of sines and cosines of numbers up to 13000, of which the last bit is worth 10⁻³.
const SINE_TOLERANCE: f64 = 2e-2;
/// Largest difference of one byte of an image. At most one byte in a hundred may differ.
const BYTE_TOLERANCE: u8 = 2;

/// Returns the parameters of a model that computes as diffusers does.
pub fn exact() -> ModelParameters {
    ModelParameters {
        numerics: Numerics::Exact,
        ..ModelParameters::default()
    }
}

/// Returns the folder of this machine's goldens if every byte must be equal.
pub fn parity() -> Option<PathBuf> {
    std::env::var_os("TRITON_DIFFUSION_PARITY").map(PathBuf::from)
}

/// Returns whether a number is that of diffusers: equal, or for another processor's goldens nearly equal.
pub fn is_number(ours: f64, theirs: f64) -> bool {
    ours == theirs || (parity().is_none() && (ours - theirs).abs() <= 1e-6 * theirs.abs())
}

/// Returns the folder of this machine's goldens, or of the committed ones.
pub fn golden_folder() -> PathBuf {
    parity().unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/goldens"))
}

pub struct Goldens {
    pub folder: PathBuf,
    pub tensors: TensorFile,
    pub group: &'static str,
    pub compared: usize,
    /// Collected, so one run shows all failures.
    pub failures: Vec<String>,
}

impl Goldens {
    pub fn open(group: &'static str) -> Self {
        let folder = golden_folder();
        let tensors = TensorFile::open(&folder.join(format!("{group}.safetensors"))).unwrap();
        Self {
            folder,
            tensors,
            group,
            compared: 0,
            failures: Vec::new(),
        }
    }

    pub fn manifest<T: DeserializeOwned>(&self) -> T {
        manifest(&self.folder, self.group)
    }

    pub fn tensor(&self, name: &str) -> Tensor {
        self.tensors.tensor(name).unwrap()
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.tensor(name).is_ok()
    }

    /// Compares `ours` with the tensor `name`: every byte, or within the tolerance.
    pub fn compare(&mut self, name: &str, ours: &Tensor) {
        let theirs = self.tensor(name);
        assert_eq!(ours.kind(), theirs.kind(), "{name}: dtype");
        self.compare_values(name, ours, &theirs, TOLERANCE);
    }

    /// Compares sines and cosines of numbers in the thousands, whose last bit depends on the processor.
    pub fn compare_sines(&mut self, name: &str, ours: &Tensor) {
        let theirs = self.tensor(name);
        assert_eq!(ours.kind(), theirs.kind(), "{name}: dtype");
        self.compare_values(name, ours, &theirs, SINE_TOLERANCE);
    }

    /// Compares `ours` with the numbers `name`, of any dtype, as [`Goldens::compare`] does.
    pub fn compare_numbers(&mut self, name: &str, ours: &[f64]) {
        let theirs = self.tensor(name).to_kind(Kind::Double);
        self.compare_values(name, &Tensor::from_slice(ours), &theirs, TOLERANCE);
    }

    fn compare_values(&mut self, name: &str, ours: &Tensor, theirs: &Tensor, tolerance: f64) {
        assert_eq!(ours.size(), theirs.size(), "{name}: shape");
        self.compared += 1;
        if ours == theirs {
            return;
        }
        let largest = |tensor: Tensor| f64::try_from(tensor.abs().max()).unwrap();
        let exact = theirs.to_kind(Kind::Double);
        let scale = largest(exact.shallow_clone()).max(1.0);
        let difference = largest(ours.to_kind(Kind::Double) - exact) / scale;
        if parity().is_some() || difference.is_nan() || difference >= tolerance {
            self.failures.push(format!("{name}: differs by {difference:e}"));
        }
    }

    pub fn report(&self) {
        let how = if parity().is_some() {
            "equal to the byte"
        } else {
            "within the tolerance"
        };
        let good = self.compared - self.failures.len();
        println!("{}: {good} of {} {how}", self.group, self.compared);
        assert!(self.failures.is_empty(), "{}", self.failures.join("\n"));
        assert!(self.compared > 0, "{}: nothing was compared", self.group);
    }
}

pub fn manifest<T: DeserializeOwned>(folder: &Path, group: &str) -> T {
    read_json(&folder.join(format!("{group}.json"))).unwrap()
}

#[derive(Deserialize)]
pub struct Cases<T> {
    pub cases: Vec<T>,
}

pub fn weights(checkpoint_name: &str, component: &str, stem: &str) -> Weights {
    let folder = checkpoint(checkpoint_name).join(component);
    load_component(&folder, stem, Device::Cpu, Kind::Float).unwrap()
}

/// Returns whether all bytes are equal. The error describes a difference that is not allowed.
pub fn compare_bytes(ours: &[u8], theirs: &[u8]) -> Result<bool, String> {
    if ours == theirs {
        return Ok(true);
    }
    let differing = ours.iter().zip(theirs).filter(|(a, b)| a != b).count();
    let largest = ours.iter().zip(theirs).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
    let nearly = ours.len() == theirs.len() && largest <= BYTE_TOLERANCE && differing * 100 <= ours.len();
    if parity().is_none() && nearly {
        return Ok(false);
    }
    Err(format!(
        "{differing} of {} bytes differ, by up to {largest}",
        ours.len()
    ))
}
