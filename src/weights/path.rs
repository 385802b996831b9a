//! Tensors by name.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::component::Component;
use super::file::shape;
use super::store::Held;
use diffusion_core::{Error, Result};

/// The tensors of a component on a device in one dtype, handed out by name.
pub struct Weights {
    component: Component,
    /// By the name in the file.
    held: HashMap<String, Arc<Held>>,
    device: Device,
    kind: Kind,
    /// Our name (diffusers' current one) to the name in the file, where they differ.
    renamed: HashMap<String, String>,
    /// Names in the files that were asked for.
    used: RefCell<HashSet<String>>,
}

impl Weights {
    /// The dtype that the model computes in.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The tensors of `component`, which `held` has on `device` as `kind`.
    pub(super) fn new(component: Component, held: HashMap<String, Arc<Held>>, device: Device, kind: Kind) -> Self {
        Self {
            component,
            held,
            device,
            kind,
            renamed: HashMap::new(),
            used: RefCell::default(),
        }
    }

    /// Lets tensors go by newer names than the files use.
    ///
    /// `rename` gives the current name for a name of the file, or `None` where it stays.
    #[must_use]
    pub fn renamed(mut self, rename: impl Fn(&str) -> Option<String>) -> Self {
        self.renamed = self
            .component
            .names()
            .filter_map(|name| rename(name).map(|current| (current, name.to_owned())))
            .collect();
        self
    }

    /// Takes tensors that a checkpoint may carry and no model needs as used.
    #[must_use]
    pub fn ignoring(self, unneeded: impl Fn(&str) -> bool) -> Self {
        self.used
            .borrow_mut()
            .extend(self.component.names().filter(|name| unneeded(name)).map(str::to_owned));
        self
    }

    /// The place from which tensors are named.
    pub fn root(&self) -> WeightPath<'_> {
        WeightPath {
            weights: self,
            prefix: String::new(),
        }
    }

    /// Whether the files hold a tensor of this (current) name.
    pub fn contains(&self, name: &str) -> bool {
        self.component.file_of(self.name_in_file(name)).is_some()
    }

    /// To be called once the model is built.
    ///
    /// # Errors
    /// `InvalidArgument` naming the first tensors that the model has no place for.
    pub fn finish(self) -> Result<()> {
        let used = self.used.borrow();
        let mut left: Vec<&str> = self.component.names().filter(|name| !used.contains(*name)).collect();
        if left.is_empty() {
            return Ok(());
        }
        left.sort_unstable();
        let shown = left.iter().take(3).copied().collect::<Vec<_>>().join(", ");
        Err(Error::invalid_argument(format!(
            "{}: {} tensor(s) that the configured model has no place for: {shown}{}",
            self.component.folder().display(),
            left.len(),
            if left.len() > 3 { ", ..." } else { "" }
        )))
    }

    fn name_in_file<'a>(&'a self, name: &'a str) -> &'a str {
        self.renamed.get(name).map_or(name, String::as_str)
    }

    fn held(&self, name: &str, wanted: &[i64]) -> Result<Tensor> {
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
                    "{}: tensor {in_file} has shape {found:?}, the configuration asks for {wanted:?}",
                    file.path().display()
                )));
            }
        }
        self.used.borrow_mut().insert(in_file.to_owned());
        let held = self.held.get(in_file).ok_or_else(|| {
            Error::unsupported(format!(
                "{}: tensor {in_file} holds no floating-point numbers",
                file.path().display()
            ))
        })?;
        held.tensor()
    }
}

/// A prefix in the names of a component's tensors: `down_blocks.0.resnets.1`.
#[derive(Clone)]
pub struct WeightPath<'a> {
    weights: &'a Weights,
    prefix: String,
}

impl WeightPath<'_> {
    /// The path one level down.
    #[must_use]
    pub fn sub(&self, name: impl std::fmt::Display) -> Self {
        Self {
            weights: self.weights,
            prefix: self.name(name),
        }
    }

    /// The tensor `name` below this path.
    ///
    /// # Errors
    /// `NotFound` if it is missing, `InvalidArgument` if its shape is not `shape`; the message has
    /// the whole name.
    pub fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        Ok(self.held(name, shape)?.f_to_kind(self.kind())?)
    }

    /// As [`WeightPath::tensor`], but perhaps in half precision where that was asked in float32: a large matrix on the CPU stays as it
    /// lies in its file (see [`Loader`](super::Loader)), to be widened where it is used.
    ///
    /// # Errors
    /// Those of [`WeightPath::tensor`].
    pub fn held(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        self.weights.held(&self.name(name), shape)
    }

    /// The dtype that the model computes in.
    pub fn kind(&self) -> Kind {
        self.weights.kind
    }

    /// Whether there is a tensor `name` below this path.
    pub fn contains(&self, name: &str) -> bool {
        self.weights.contains(&self.name(name))
    }

    /// The device that tensors are placed on.
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
