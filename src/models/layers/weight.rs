//! Weights that are stored in half precision and computed with in float32.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::weights::WeightPath;
use diffusion_core::Result;

/// Buffers for upcast weights, shared by all models: as many as were in use at once, each as long as the largest weight
/// that it has held.
static UPCAST_BUFFERS: Mutex<Vec<Tensor>> = Mutex::new(Vec::new());

/// Frees the upcast buffers that are not in use. The next use allocates new ones.
pub fn free_upcast_buffers() {
    let idle = std::mem::take(&mut *upcast_buffers());
    drop(idle);
}

fn upcast_buffers() -> MutexGuard<'static, Vec<Tensor>> {
    UPCAST_BUFFERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The matrix of a linear layer or the kernel of a convolution.
///
/// On the CPU a large weight is mapped from its file in half precision (see [`WeightPath::stored`]), which needs half of
/// the memory and no work at load. It is upcast at each use. Every half-precision number is a float32 number too, so the
/// results equal those of a weight that was upcast at load.
pub struct Weight(Tensor);

impl Weight {
    /// Reads `weight` below `path`.
    pub fn new(path: &WeightPath<'_>, shape: &[i64]) -> Result<Self> {
        path.record_layer(shape);
        Ok(Self(path.stored("weight", shape)?))
    }

    /// Returns the weight in its stored dtype.
    pub fn stored(&self) -> &Tensor {
        &self.0
    }

    /// Calls `f` with the weight as `kind`. `f` must not keep the tensor: its memory is used for other weights later.
    pub fn with<R>(&self, kind: Kind, f: impl FnOnce(&Tensor) -> Result<R>) -> Result<R> {
        if self.0.kind() == kind || self.0.device() != Device::Cpu {
            return f(&self.0);
        }
        let idle = upcast_buffers().pop();
        let buffer = match idle {
            Some(buffer) if buffer.kind() == kind && buffer.numel() >= self.0.numel() => buffer,
            unfit => {
                drop(unfit);
                Tensor::f_empty([self.0.numel() as i64], (kind, self.0.device()))?
            }
        };
        let result = upcast(&self.0, &buffer).and_then(|weight| f(&weight));
        upcast_buffers().push(buffer);
        result
    }
}

/// Copies `weight` to the beginning of `buffer`.
fn upcast(weight: &Tensor, buffer: &Tensor) -> Result<Tensor> {
    let count = weight.numel() as i64;
    let mut upcast = buffer.f_narrow(0, 0, count)?.f_view(&weight.size()[..])?;
    upcast.f_copy_(weight)?;
    Ok(upcast)
}

#[cfg(test)]
impl From<Tensor> for Weight {
    fn from(tensor: Tensor) -> Self {
        Self(tensor)
    }
}

#[cfg(test)]
mod tests;
