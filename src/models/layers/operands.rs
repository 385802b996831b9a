//! How the operands of a product lie in memory, as far as bytes depend on it.

use tch::Tensor;

use diffusion_core::Result;

/// Alignment in bytes of libtorch's CPU allocator (`c10/core/alignment.h`). Sums of MKL may depend on the alignment of
/// their input.
const ALIGNMENT: usize = 64;

/// Copies the tensor if its data is not aligned as a new tensor's would be. The layout stays.
pub(super) fn aligned(tensor: Tensor) -> Result<Tensor> {
    if (tensor.data_ptr() as usize).is_multiple_of(ALIGNMENT) {
        return Ok(tensor);
    }
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(&tensor)?;
    Ok(copy)
}

/// Computes one product for an input that is not contiguous.
///
/// For such an input libtorch computes one product, or one product for each batch entry, depending on whether the weight
/// could have a gradient (`should_fold` in `aten/src/ATen/native/LinearAlgebra.cpp`). The trained weights of diffusers can
/// have one, so diffusers gets a single product. The weights of this crate cannot.
pub(super) fn fold_strided(input: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let mut shape = input.size();
    let inputs = shape.pop().unwrap_or(1);
    shape.extend(weight.size().first());
    Ok(input
        .f_reshape([-1, inputs])?
        .f_mm(&weight.f_transpose(0, 1)?)?
        .f_view(&shape[..])?)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn aligned_misaligned_view_is_copied_with_its_layout() {
        let whole = Tensor::randn([3, 5, 4], tch::kind::FLOAT_CPU);
        let view = whole.narrow(0, 1, 2).transpose(1, 2);
        let copy = aligned(view.shallow_clone()).unwrap();
        assert_eq!(copy.data_ptr() as usize % ALIGNMENT, 0);
        assert_eq!(copy, view);
        assert_eq!(copy.stride(), view.stride());
    }
}
