//! Weights that stay in half precision where they are computed with in float32.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::weights::WeightPath;
use diffusion_core::Result;

/// Where weights are widened: as many tensors as were at work at once, each as long as the largest weight that it has met. They are shared
/// between all models, since idle ones need none.
static SCRATCH: Mutex<Vec<Tensor>> = Mutex::new(Vec::new());

/// Frees the buffers in which no weight is being upcast now. The next use allocates one again.
pub fn free_upcast_buffers() {
    let idle = std::mem::take(&mut *scratch());
    drop(idle);
}

fn scratch() -> MutexGuard<'static, Vec<Tensor>> {
    SCRATCH.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The matrix of a product or the kernel of a convolution.
///
/// On the CPU a large one lies in its file in half precision, which takes half of the memory and nothing of a load (see
/// [`WeightPath::stored`]); it is widened each time that it is used. Every half-precision number is a float32 one too, so that
/// the results are those of a weight that was widened at load.
pub struct Weight(Tensor);

impl Weight {
    /// `weight` below `path`.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn new(path: &WeightPath<'_>, shape: &[i64]) -> Result<Self> {
        Ok(Self(path.stored("weight", shape)?))
    }

    /// `f` with the weight as `kind`. `f` must not keep it: another weight may be written over it later.
    ///
    /// # Errors
    /// What `f` says, or out of memory.
    pub fn with<R>(&self, kind: Kind, f: impl FnOnce(&Tensor) -> Result<R>) -> Result<R> {
        if self.0.kind() == kind || self.0.device() != Device::Cpu {
            return f(&self.0);
        }
        let kept = scratch().pop();
        let own = match kept {
            Some(own) if own.kind() == kind && own.numel() >= self.0.numel() => own,
            smaller => {
                drop(smaller);
                Tensor::f_empty([self.0.numel() as i64], (kind, self.0.device()))?
            }
        };
        let result = widened(&self.0, &own).and_then(|wide| f(&wide));
        scratch().push(own);
        result
    }
}

/// `narrow` in the beginning of `scratch`.
fn widened(narrow: &Tensor, scratch: &Tensor) -> Result<Tensor> {
    let count = narrow.numel() as i64;
    let mut wide = scratch.f_narrow(0, 0, count)?.f_view(&narrow.size()[..])?;
    wide.f_copy_(narrow)?;
    Ok(wide)
}

#[cfg(test)]
impl From<Tensor> for Weight {
    fn from(tensor: Tensor) -> Self {
        Self(tensor)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use std::path::Path;

    use super::*;
    use crate::models::clip::ClipTextModel;
    use crate::models::layers::Rows;
    use crate::models::unet::{UNet2DConditionModel, UNetInput};
    use crate::weights::{Loader, read_json};

    fn noise(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    #[test]
    fn a_narrow_weight_is_the_widened_one() {
        // One after the other in the same scratch: the larger makes it grow, the smaller leaves a rest.
        for (kind, shape) in [(Kind::Half, [3, 4]), (Kind::BFloat16, [17, 9]), (Kind::Half, [2, 5])] {
            let narrow = noise(&shape).to_kind(kind);
            let expected = narrow.to_kind(Kind::Float);
            let weight = Weight::from(narrow);
            weight
                .with(Kind::Float, |wide| {
                    assert_eq!(wide.data_ptr() as usize % 64, 0);
                    assert_eq!(wide, &expected);
                    Ok(())
                })
                .unwrap();
        }
    }

    #[test]
    fn a_use_within_a_use_does_not_disturb_it() {
        let (one, two) = (noise(&[4, 4]), noise(&[4, 4]));
        let half = |tensor: &Tensor| Weight::from(tensor.to_kind(Kind::Half));
        let (first, second) = (half(&one), half(&two));
        first
            .with(Kind::Float, |outer| {
                let before = outer.copy();
                second.with(Kind::Float, |inner| {
                    assert_ne!(inner, outer);
                    Ok(())
                })?;
                assert_eq!(outer, &before);
                Ok(())
            })
            .unwrap();
    }

    /// A text encoder and a UNet whose matrices all stay narrow, and the same widened at load.
    #[test]
    fn models_over_narrow_weights_give_the_same_bytes() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoints/sd2_base");
        let _no_grad = tch::no_grad_guard();
        let outputs = [0, u64::MAX].map(|least| {
            let mut loader = Loader::new(Device::Cpu).min_lazy_upcast_bytes(least);
            let [text, unet] = [("text_encoder", "model"), ("unet", "diffusion_pytorch_model")]
                .map(|(name, stem)| loader.open(&folder.join(name), stem, Kind::Float).unwrap());
            let mut loaded = loader.load(&|_| {}).unwrap();
            let bytes = loaded.memory.total;
            let config = |name: &str| folder.join(name).join("config.json");
            let text =
                ClipTextModel::new(read_json(&config("text_encoder")).unwrap(), loaded.take(text).unwrap()).unwrap();
            let unet =
                UNet2DConditionModel::new(read_json(&config("unet")).unwrap(), loaded.take(unet).unwrap()).unwrap();
            let tokens = Tensor::arange(77, (Kind::Int64, Device::Cpu)).reshape([1, 77]);
            let hidden = text.forward(&tokens, 0).unwrap();
            let input = UNetInput {
                sample: &(Tensor::arange(256, (Kind::Float, Device::Cpu)).reshape([1, 4, 8, 8]) / 99.0),
                timesteps: &Tensor::from_slice(&[500i64]),
                encoder_hidden_states: &hidden,
                class_labels: None,
                timestep_cond: None,
            };
            let sample = unet.forward(&input, Rows::WHOLE).unwrap();
            (bytes, hidden.copy(), sample)
        });
        let [narrow, wide] = outputs;
        assert!(narrow.0 < wide.0, "{} bytes, {} bytes", narrow.0, wide.0);
        assert_eq!(narrow.1, wide.1);
        assert_eq!(narrow.2, wide.2);
    }

    #[test]
    fn a_weight_in_the_asked_dtype_is_used_where_it_is() {
        let tensor = noise(&[4, 4]);
        let address = tensor.data_ptr();
        let weight = Weight::from(tensor);
        weight
            .with(Kind::Float, |same| {
                assert_eq!(same.data_ptr(), address);
                Ok(())
            })
            .unwrap();
    }
}
