//! The weights of a component, by name.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::component::Component;
use super::file::shape;
use super::store::StoredTensor;
use diffusion_core::{Error, Result};

/// The layers of a model that multiply with a weight, by the name of the weight without `.weight`, and the weights' shapes:
/// `[outputs, inputs]`, or `[outputs, inputs, kernel, kernel]` of a convolution.
pub type LayerShapes = BTreeMap<Arc<str>, Vec<i64>>;

/// The loaded tensors of a component on one device.
pub struct Weights {
    component: Component,
    /// By the name in the file.
    stored: HashMap<String, Arc<StoredTensor>>,
    device: Device,
    kind: Kind,
    /// Whether the layers use the CPU kernels of this crate.
    fast: bool,
    /// The current name in diffusers to the name in the file, where they differ.
    renamed: HashMap<String, String>,
    /// The names in the files of the tensors that were read.
    used: RefCell<HashSet<String>>,
    /// The layers that were built.
    layers: RefCell<LayerShapes>,
}

impl Weights {
    /// Returns the dtype that the model computes in.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Makes the weights from the tensors of `component`.
    pub(super) fn new(
        component: Component,
        stored: HashMap<String, Arc<StoredTensor>>,
        device: Device,
        kind: Kind,
    ) -> Self {
        Self {
            component,
            stored,
            device,
            kind,
            fast: false,
            renamed: HashMap::new(),
            used: RefCell::default(),
            layers: RefCell::default(),
        }
    }

    /// Lets layers compute with [`torch::kernels`](crate::torch::kernels) if `fast`, the device is the CPU and the dtype
    /// float32.
    #[must_use]
    pub fn fast(mut self, fast: bool) -> Self {
        self.fast = fast && self.device == Device::Cpu && self.kind == Kind::Float;
        self
    }

    /// Renames tensors of old files.
    ///
    /// `rename` returns the current name for a name in the file, or `None` if it has not changed.
    #[must_use]
    pub fn renamed(mut self, rename: impl Fn(&str) -> Option<String>) -> Self {
        self.renamed = self
            .component
            .names()
            .filter_map(|name| rename(name).map(|current| (current, name.to_owned())))
            .collect();
        self
    }

    /// Marks tensors as used that a checkpoint may have and no model needs.
    #[must_use]
    pub fn ignoring(self, unneeded: impl Fn(&str) -> bool) -> Self {
        self.used
            .borrow_mut()
            .extend(self.component.names().filter(|name| unneeded(name)).map(str::to_owned));
        self
    }

    /// Returns the path without prefix.
    pub fn root(&self) -> WeightPath<'_> {
        WeightPath {
            weights: self,
            prefix: String::new(),
        }
    }

    /// Returns whether the files have a tensor of this (current) name.
    pub fn contains(&self, name: &str) -> bool {
        self.component.file_of(self.name_in_file(name)).is_some()
    }

    /// Returns the layers that were built so far.
    pub fn layers(&self) -> LayerShapes {
        self.layers.borrow().clone()
    }

    /// Checks that the model has read all tensors. Call it after the model is built.
    ///
    /// # Errors
    /// `InvalidArgument` that names the first unexpected tensors.
    pub fn finish(self) -> Result<()> {
        let used = self.used.borrow();
        let mut left: Vec<&str> = self.component.names().filter(|name| !used.contains(*name)).collect();
        if left.is_empty() {
            return Ok(());
        }
        left.sort_unstable();
        let shown = left.iter().take(3).copied().collect::<Vec<_>>().join(", ");
        Err(Error::invalid_argument(format!(
            "{}: {} unexpected tensors: {shown}{}",
            self.component.folder().display(),
            left.len(),
            if left.len() > 3 { ", ..." } else { "" }
        )))
    }

    fn name_in_file<'a>(&'a self, name: &'a str) -> &'a str {
        self.renamed.get(name).map_or(name, String::as_str)
    }

    fn stored(&self, name: &str, wanted: &[i64]) -> Result<Tensor> {
        let in_file = self.name_in_file(name);
        let Some(file) = self.component.file_of(in_file) else {
            return Err(Error::not_found(format!(
                "{}: tensor {name} is missing",
                self.component.folder().display()
            )));
        };
        if let Some(info) = file.info(in_file) {
            let found = shape(info)?;
            if found != wanted {
                return Err(Error::invalid_argument(format!(
                    "{}: tensor {in_file} has shape {found:?}, the configuration needs {wanted:?}",
                    file.path().display()
                )));
            }
        }
        self.used.borrow_mut().insert(in_file.to_owned());
        let stored = self.stored.get(in_file).ok_or_else(|| {
            Error::unsupported(format!(
                "{}: tensor {in_file} has no float dtype",
                file.path().display()
            ))
        })?;
        stored.tensor()
    }
}

/// A prefix in the names of a component's tensors: `down_blocks.0.resnets.1`.
#[derive(Clone)]
pub struct WeightPath<'a> {
    weights: &'a Weights,
    prefix: String,
}

impl WeightPath<'_> {
    /// Returns the path one level below.
    #[must_use]
    pub fn sub(&self, name: impl std::fmt::Display) -> Self {
        Self {
            weights: self.weights,
            prefix: self.name(name),
        }
    }

    /// Returns the names from the root to this path: `down_blocks.0.resnets.1`.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Records that a layer multiplies with the tensor `weight` below this path, of that shape.
    pub fn record_layer(&self, shape: &[i64]) {
        let mut layers = self.weights.layers.borrow_mut();
        layers.insert(self.prefix.as_str().into(), shape.to_vec());
    }

    /// Returns the tensor `name` below this path.
    ///
    /// # Errors
    /// `NotFound` for a missing tensor, `InvalidArgument` for another shape; the message has the whole name.
    pub fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        Ok(self.stored(name, shape)?.f_to_kind(self.kind())?)
    }

    /// Returns the tensor `name` in its stored dtype. A large matrix on the CPU may be stored in half precision though
    /// the model computes in float32, and is upcast at each use (see [`Loader`](super::Loader)).
    ///
    /// # Errors
    /// Those of [`WeightPath::tensor`].
    pub fn stored(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        self.weights.stored(&self.name(name), shape)
    }

    /// Returns the dtype that the model computes in.
    pub fn kind(&self) -> Kind {
        self.weights.kind
    }

    /// Returns whether layers compute with [`torch::kernels`](crate::torch::kernels).
    pub fn is_fast(&self) -> bool {
        self.weights.fast
    }

    /// Returns whether there is a tensor `name` below this path.
    pub fn contains(&self, name: &str) -> bool {
        self.weights.contains(&self.name(name))
    }

    /// Returns the device of the tensors.
    pub fn device(&self) -> Device {
        self.weights.device
    }

    fn name(&self, name: impl std::fmt::Display) -> String {
        if self.prefix.is_empty() {
            name.to_string()
        } else {
            format!("{}.{name}", self.prefix)
        }
    }
}
