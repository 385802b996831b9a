//! Weights that stay in half precision where they are computed with in float32.

use std::cell::Cell;

use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::weights::WeightPath;

thread_local! {
    /// Where this thread widens: as long as the largest weight that it has met, gone with the thread.
    static SCRATCH: Cell<Option<Tensor>> = const { Cell::new(None) };
}

/// The matrix of a product or the kernel of a convolution.
///
/// On the CPU a large one lies in its file in half precision, which takes half of the memory and nothing of a load (see
/// [`WeightPath::held`]); it is widened each time that it is used. Every half-precision number is a float32 one too, so that
/// the results are those of a weight that was widened at load.
pub struct Weight(Tensor);

impl Weight {
    /// `weight` below `path`.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape.
    pub fn new(path: &WeightPath<'_>, shape: &[i64]) -> Result<Self> {
        Ok(Self(path.held("weight", shape)?))
    }

    /// `f` with the weight as `kind`. `f` must not keep it: the next weight that this thread uses may be written over it.
    ///
    /// # Errors
    /// What `f` says, or out of memory.
    pub fn with<R>(&self, kind: Kind, f: impl FnOnce(&Tensor) -> Result<R>) -> Result<R> {
        if self.0.kind() == kind || self.0.device() != Device::Cpu {
            return f(&self.0);
        }
        // Taken, not borrowed: a use within a use gets memory of its own.
        let scratch = match SCRATCH.take() {
            Some(scratch) if scratch.kind() == kind && scratch.numel() >= self.0.numel() => scratch,
            smaller => {
                drop(smaller);
                Tensor::f_empty([self.0.numel() as i64], (kind, self.0.device()))?
            }
        };
        let result = widened(&self.0, &scratch).and_then(|wide| f(&wide));
        SCRATCH.set(Some(scratch));
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
    use super::*;

    fn noise(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    #[test]
    fn a_narrow_weight_is_the_widened_one() {
        // One after the other in the same scratch: the larger makes it grow, the smaller leaves a rest.
        for (kind, shape) in [
            (Kind::Half, [3, 4]),
            (Kind::BFloat16, [17, 9]),
            (Kind::Half, [2, 5]),
        ] {
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
