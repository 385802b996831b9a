//! A LoRA file, checked against the layers of a model.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tch::{Device, Kind, Tensor};

use super::equal_matrices::{MatricesKey, once};
use super::keys::{AdaptedComponent, AdapterKey, KeyPart};
use super::scaling::{LayerScale, Scaling};
use crate::models::layers::{Delta, LayerDeltas, LowRank};
use crate::weights::{LayerShapes, SharedModel, TensorFile, in_parallel};
use diffusion_core::{Context, Error, Result};

/// Largest rank of an adapter. Published ones have at most 256, and full ranks of Stable Diffusion 2 at most 1280.
const MAX_RANK: i64 = 1280;

/// The layers of a model that adapters can change, where they are, and what they compute in.
#[derive(Debug)]
pub struct AdaptableLayers {
    unet: LayerShapes,
    text_encoder: LayerShapes,
    /// The layers by their names with underscores in place of dots.
    underscored: BTreeMap<(AdaptedComponent, String), Arc<str>>,
    kinds: [Kind; 2],
    device: Device,
}

impl AdaptableLayers {
    /// Takes the layers of the UNet and of the text encoder, and the dtypes that they compute in.
    pub fn new(unet: (&LayerShapes, Kind), text_encoder: (&LayerShapes, Kind), device: Device) -> Self {
        let mut underscored = BTreeMap::new();
        for (component, layers) in [
            (AdaptedComponent::Unet, unet.0),
            (AdaptedComponent::TextEncoder, text_encoder.0),
        ] {
            for name in layers.keys() {
                underscored.insert((component, name.replace('.', "_")), Arc::clone(name));
            }
        }
        Self {
            unet: unet.0.clone(),
            text_encoder: text_encoder.0.clone(),
            underscored,
            kinds: [unet.1, text_encoder.1],
            device,
        }
    }

    /// Takes the layers of a model that is not loaded, to check files.
    pub fn of_shapes(unet: &LayerShapes, text_encoder: &LayerShapes) -> Self {
        Self::new((unet, Kind::Float), (text_encoder, Kind::Float), Device::Cpu)
    }

    /// Returns the layers of a component.
    pub fn shapes(&self, component: AdaptedComponent) -> &LayerShapes {
        match component {
            AdaptedComponent::Unet => &self.unet,
            AdaptedComponent::TextEncoder => &self.text_encoder,
        }
    }

    fn kind(&self, component: AdaptedComponent) -> Kind {
        let [unet, text_encoder] = self.kinds;
        match component {
            AdaptedComponent::Unet => unet,
            AdaptedComponent::TextEncoder => text_encoder,
        }
    }

    /// Finds the layer of a key. A name without a component is of the first component that has the layer.
    fn find(&self, key: &AdapterKey) -> Option<(AdaptedComponent, &Arc<str>)> {
        let both = [AdaptedComponent::Unet, AdaptedComponent::TextEncoder];
        both.into_iter()
            .filter(|component| key.component.is_none_or(|named| named == *component))
            .find_map(|component| {
                let dotted = self.shapes(component).get_key_value(key.layer.as_str());
                let layer = dotted.map(|(layer, _)| layer);
                let underscored = || self.underscored.get(&(component, key.layer.clone()));
                Some((component, layer.or_else(underscored)?))
            })
    }
}

/// A layer's matrices, and how their product is scaled.
#[derive(Debug)]
struct LoraLayer {
    name: Arc<str>,
    matrices: SharedModel<LowRank>,
    scale: LayerScale,
    key: MatricesKey,
}

impl LoraLayer {
    /// Reads the matrices of a layer, and hashes them.
    fn read(file: &TensorFile, found: &FileLayer, layers: &AdaptableLayers) -> Result<Self> {
        let kind = layers.kind(found.component);
        let matrices = LowRank {
            down: matrix(file, &found.down, kind)?.f_to_device(layers.device)?,
            up: matrix(file, &found.up, kind)?.f_to_device(layers.device)?,
        };
        Ok(Self {
            key: MatricesKey {
                digest: digest(file, [&found.down.tensor, &found.up.tensor])?,
                shapes: [found.down.shape.clone(), found.up.shape.clone()],
                kind,
                device: layers.device,
            },
            name: Arc::clone(&found.name),
            matrices: SharedModel::new(matrices),
            scale: found.scale,
        })
    }

    /// Returns the memory of the matrices in bytes.
    fn bytes(&self) -> u64 {
        let matrices = [&self.matrices.down, &self.matrices.up];
        let sizes = matrices.map(|tensor| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64);
        sizes.iter().sum()
    }
}

/// A loaded LoRA.
#[derive(Debug)]
pub struct Lora {
    id: u64,
    unet: Vec<LoraLayer>,
    text_encoder: Vec<LoraLayer>,
    bytes: u64,
}

/// The tensors of one layer in a file.
#[derive(Default)]
struct LayerKeys {
    down: Option<String>,
    up: Option<String>,
    alpha: Option<String>,
}

/// A layer of a LoRA file, and the layer of a model that it belongs to.
#[derive(Clone, Debug)]
pub struct FileLayer {
    /// The model.
    pub component: AdaptedComponent,
    /// The layer's name in the model; in the text encoder, below `text_model`.
    pub name: Arc<str>,
    /// The rank.
    pub rank: i64,
    /// How the product of the matrices is scaled.
    pub scale: LayerScale,
    /// The first matrix, of shape `[rank, inputs]` or `[rank, inputs, kernel, kernel]`.
    pub down: FileMatrix,
    /// The second matrix, of shape `[outputs, rank]` or `[outputs, rank, 1, 1]`.
    pub up: FileMatrix,
}

/// A matrix in a LoRA file.
#[derive(Clone, Debug)]
pub struct FileMatrix {
    /// The name of its tensor.
    pub tensor: String,
    /// The shape that the layer needs. The tensor may have a 1x1 kernel as a matrix, and the other way round.
    pub shape: Vec<i64>,
}

impl FileLayer {
    /// Finds the layers of a file, in the order of their components and names. The shapes and numbers of the matrices are
    /// not checked; [`Lora::load`] does.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported` that names the tensor.
    pub fn all(file: &TensorFile, scaling: &Scaling, layers: &AdaptableLayers) -> Result<Vec<Self>> {
        let found = layer_keys(file, layers)?;
        if found.is_empty() {
            return Err(Error::invalid_argument("the file has no tensors"));
        }
        let found = found.into_iter().map(|((component, name), keys)| {
            let (Some(down), Some(up)) = (keys.down, keys.up) else {
                return Err(Error::invalid_argument(format!(
                    "layer {name} has one of two matrices; both are needed"
                )));
            };
            let shape = layers.shapes(component).get(&name).map(Vec::as_slice);
            let shape = shape.ok_or_else(|| Error::internal("an adapter's layer is gone"))?;
            let rank = rank(file, &down)?;
            let (outputs, inputs) = (shape.first().copied().unwrap_or(0), shape.get(1..).unwrap_or_default());
            let mut down_shape = vec![rank];
            down_shape.extend(inputs);
            let mut up_shape = vec![outputs, rank];
            up_shape.resize(shape.len(), 1);
            let alpha = keys.alpha.map(|key| number(file, &key)).transpose()?;
            Ok(Self {
                component,
                rank,
                scale: scaling.of(component, &name, rank, alpha),
                name,
                down: FileMatrix {
                    tensor: down,
                    shape: down_shape,
                },
                up: FileMatrix {
                    tensor: up,
                    shape: up_shape,
                },
            })
        });
        found.collect()
    }
}

impl Lora {
    /// Loads a file for a model.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported` that names the file and the tensor; `Unavailable` if the file changes meanwhile.
    pub fn load(file: &TensorFile, scaling: &Scaling, layers: &AdaptableLayers) -> Result<Self> {
        let lora = Self::read(file, scaling, layers).and_then(|mut lora| {
            // A process may have written to the file meanwhile, or have shortened it, which reads as zeros.
            let mapped = file.mapped();
            if mapped.is_lost() || mapped.identity_now().as_ref() != Some(file.identity()) {
                return Err(Error::unavailable(
                    "the file changed while it was read; send the request again",
                ));
            }
            // Only now is it certain that the matrices are those of the hashes.
            for layer in lora.unet.iter_mut().chain(&mut lora.text_encoder) {
                layer.matrices = once(layer.key.clone(), layer.matrices.clone());
            }
            Ok(lora)
        });
        lora.context(|| file.path().display().to_string())
    }

    fn read(file: &TensorFile, scaling: &Scaling, layers: &AdaptableLayers) -> Result<Self> {
        let mut lora = Self {
            id: next_id(),
            unet: Vec::new(),
            text_encoder: Vec::new(),
            bytes: 0,
        };
        let found = FileLayer::all(file, scaling, layers)?;
        let read = |found: &FileLayer| LoraLayer::read(file, found, layers);
        // The threads of a load know no stream of a GPU.
        let loaded = if layers.device == Device::Cpu {
            in_parallel(&found, read)?
        } else {
            found.iter().map(read).collect::<Result<_>>()?
        };
        for (found, layer) in std::iter::zip(found, loaded) {
            lora.bytes += layer.bytes();
            match found.component {
                AdaptedComponent::Unet => lora.unet.push(layer),
                AdaptedComponent::TextEncoder => lora.text_encoder.push(layer),
            }
        }
        Ok(lora)
    }

    /// Returns the memory of the matrices in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns whether the adapter changes a layer of the component.
    pub fn adapts(&self, component: AdaptedComponent) -> bool {
        !self.layers(component).is_empty()
    }

    /// Returns the matrices of the UNet's layers.
    #[cfg(test)]
    pub(super) fn unet_matrices(&self) -> impl Iterator<Item = &SharedModel<LowRank>> {
        self.unet.iter().map(|layer| &layer.matrices)
    }

    /// A number that no other adapter of this process has.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    fn layers(&self, component: AdaptedComponent) -> &[LoraLayer] {
        match component {
            AdaptedComponent::Unet => &self.unet,
            AdaptedComponent::TextEncoder => &self.text_encoder,
        }
    }

    /// Adds the adapter's changes to the layers of a component.
    pub(super) fn add_to(&self, deltas: &mut LayerDeltas, component: AdaptedComponent, scale: f64) {
        for layer in self.layers(component) {
            let delta = Delta::new(layer.matrices.clone(), layer.scale.of(scale));
            deltas.push(&layer.name, delta);
        }
    }
}

/// Finds the layers of all tensors of the file.
fn layer_keys(
    file: &TensorFile,
    layers: &AdaptableLayers,
) -> Result<BTreeMap<(AdaptedComponent, Arc<str>), LayerKeys>> {
    let mut found: BTreeMap<(AdaptedComponent, Arc<str>), LayerKeys> = BTreeMap::new();
    for name in file.names() {
        let key = AdapterKey::parse(&name).context(|| format!("tensor {name}"))?;
        let Some((component, layer)) = layers.find(&key) else {
            return Err(Error::invalid_argument(format!(
                "tensor {name}: the model has no such layer"
            )));
        };
        let keys = found.entry((component, Arc::clone(layer))).or_default();
        let place = match key.part {
            KeyPart::Down => &mut keys.down,
            KeyPart::Up => &mut keys.up,
            KeyPart::Alpha => &mut keys.alpha,
        };
        if let Some(other) = place.replace(name.clone()) {
            return Err(Error::invalid_argument(format!(
                "tensors {other} and {name} are the same part of one layer"
            )));
        }
    }
    Ok(found)
}

/// Returns the rank: the first dimension of the first matrix.
fn rank(file: &TensorFile, down: &str) -> Result<i64> {
    let rank = file
        .info(down)
        .and_then(|info| info.shape.first().copied())
        .unwrap_or(0);
    let rank = i64::try_from(rank).unwrap_or(i64::MAX);
    if (1..=MAX_RANK).contains(&rank) {
        return Ok(rank);
    }
    Err(Error::invalid_argument(format!(
        "tensor {down}: the rank is {rank}, expected 1 to {MAX_RANK}"
    )))
}

/// Hashes the dtypes and bytes of tensors.
fn digest(file: &TensorFile, names: [&str; 2]) -> Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    for name in names {
        let info = file
            .info(name)
            .ok_or_else(|| Error::internal("a tensor that is not in its file"))?;
        hasher.update(format!("{:?}", info.dtype).as_bytes());
        hasher.update(file.bytes(info)?);
    }
    Ok(hasher.finalize())
}

/// Reads a matrix or a kernel. A 1x1 kernel may be written as a matrix, and the other way round.
fn matrix(file: &TensorFile, wanted: &FileMatrix, kind: Kind) -> Result<Tensor> {
    let (name, expected) = (wanted.tensor.as_str(), wanted.shape.as_slice());
    let stored: Vec<i64> = file
        .info(name)
        .map(|info| {
            info.shape
                .iter()
                .map(|&side| i64::try_from(side).unwrap_or(-1))
                .collect()
        })
        .unwrap_or_default();
    let without_ones = |shape: &[i64]| {
        let mut shape = shape.to_vec();
        while shape.len() > 2 && shape.last() == Some(&1) {
            shape.pop();
        }
        shape
    };
    if without_ones(&stored) != without_ones(expected) {
        return Err(Error::invalid_argument(format!(
            "tensor {name} has shape {stored:?}, the layer needs {expected:?}"
        )));
    }
    let tensor = file.tensor(name)?;
    if !tensor.is_floating_point() {
        return Err(Error::invalid_argument(format!("tensor {name} has no float dtype")));
    }
    let tensor = tensor.f_to_kind(kind)?.f_reshape(expected)?;
    let finite = tensor.f_isfinite()?.f_all()?.f_double_value(&[])?;
    if finite == 0.0 {
        return Err(Error::invalid_argument(format!(
            "tensor {name} has numbers that are not finite"
        )));
    }
    Ok(tensor)
}

/// Reads a tensor of one number.
fn number(file: &TensorFile, name: &str) -> Result<f64> {
    let elements: usize = file.info(name).map_or(0, |info| info.shape.iter().product());
    if elements != 1 {
        return Err(Error::invalid_argument(format!(
            "tensor {name} has {elements} numbers, expected 1"
        )));
    }
    let number = file.tensor(name)?.f_to_kind(Kind::Double)?.f_view([1])?;
    let number = number.f_double_value(&[0])?;
    if number.is_finite() {
        return Ok(number);
    }
    Err(Error::invalid_argument(format!("tensor {name} is not a finite number")))
}

/// Returns a number that no other adapter of this process has.
fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
