//! The depth channel of the UNet of depth-to-image.
//!
//! Source: diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion_depth2img.py`
//! (`prepare_depth_map`).

use tch::{Kind, Tensor};

use crate::torch::Stream;
use crate::torch::numbers::NumberOperators;
use diffusion_core::{Error, Result};

/// Resizes depth maps to the latents and scales each map to -1 (its minimum) to 1 (its maximum).
///
/// `predicted_depth` is `[images, any height, any width]` of a floating dtype, which is the dtype of the result; `height`
/// and `width` are those of the latents, at least 1. The result is `[images, 1, height, width]`.
///
/// A constant map becomes zeros. diffusers computes 0/0, or scales the rounding errors of the interpolation to the whole
/// range.
pub fn depth_map(predicted_depth: &Tensor, height: i64, width: i64) -> Result<Tensor> {
    let all: &[i64] = &[1, 2, 3];
    let depth = predicted_depth.f_unsqueeze(1)?;
    let flat_before = depth.f_amax(all, true)?.f_eq_tensor(&depth.f_amin(all, true)?)?;
    let depth = depth.f_upsample_bicubic2d([height, width], false, None, None)?;
    let (least, most) = (depth.f_amin(all, true)?, depth.f_amax(all, true)?);
    let range = most.f_sub(&least)?;
    let flat = range.eq_number(0.0)?.f_logical_or(&flat_before)?;
    let normalized = depth.f_sub(&least)?.mul_number(2.0)?.f_div(&range)?.sub_number(1.0)?;
    normalized.masked_fill_number(&flat, 0.0)
}

/// Applies [`depth_map`] to a map of the request, `[any height, any width]`: larger is nearer, in any unit.
///
/// The map is first converted to the model's `kind` and copied to the device of `stream`, as in diffusers. The result is
/// `[1, 1, height, width]`.
///
/// # Errors
/// `InvalidArgument` if it is not two-dimensional, empty, or holds a number that is not finite in
/// `kind`.
pub fn given_depth_map(map: &Tensor, height: i64, width: i64, kind: Kind, stream: &Stream) -> Result<Tensor> {
    let [lines, columns] = map.size()[..] else {
        return Err(Error::invalid_argument(format!(
            "depth_map: expected 2 dimensions (height and width), got {}",
            map.dim()
        )));
    };
    if lines == 0 || columns == 0 {
        return Err(Error::invalid_argument(format!(
            "depth_map is empty: {columns}x{lines} pixels"
        )));
    }
    let map = map.f_to_kind(kind)?;
    if map.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
        return Err(Error::invalid_argument(
            "depth_map has a value that is not finite in the model's dtype",
        ));
    }
    depth_map(&stream.to_device(&map)?.f_unsqueeze(0)?, height, width)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use diffusion_core::ErrorKind;

    fn given(map: &Tensor) -> Result<Tensor> {
        given_depth_map(map, 3, 4, Kind::Float, &Stream::cpu())
    }

    #[test]
    fn depth_maps_are_scaled_one_by_one() {
        let maps = Tensor::arange(2 * 5 * 7, tch::kind::FLOAT_CPU).view([2, 5, 7]);
        let result = depth_map(&maps, 3, 4).unwrap();
        assert_eq!(result.size(), [2, 1, 3, 4]);
        for map in 0..2 {
            let map = result.get(map);
            assert_eq!(map.min().double_value(&[]), -1.0);
            assert_eq!(map.max().double_value(&[]), 1.0);
        }
    }

    #[test]
    fn constant_map_is_zero_and_its_neighbor_is_not() {
        // With 0.1 the bicubic weights do not add up to 1 everywhere.
        let flat = Tensor::full([1, 5, 7], 0.1, tch::kind::FLOAT_CPU);
        let slope = Tensor::arange(35, tch::kind::FLOAT_CPU).view([1, 5, 7]);
        let result = depth_map(&Tensor::cat(&[&flat, &slope], 0), 16, 24).unwrap();
        assert_eq!(result.get(0).abs().max().double_value(&[]), 0.0);
        assert_eq!(result.get(1), depth_map(&slope, 16, 24).unwrap().get(0));
        // One latent has no range either.
        let one = depth_map(&slope, 1, 1).unwrap();
        assert_eq!(one.double_value(&[0, 0, 0, 0]), 0.0);
    }

    #[test]
    fn given_map_is_checked() {
        let map = Tensor::arange(12, tch::kind::FLOAT_CPU).view([3, 4]);
        assert_eq!(given(&map).unwrap().size(), [1, 1, 3, 4]);
        let half = given_depth_map(&map, 3, 4, Kind::Half, &Stream::cpu()).unwrap();
        assert_eq!(half.kind(), Kind::Half);
        let wrong = [
            map.unsqueeze(0),
            Tensor::zeros([0, 4], tch::kind::FLOAT_CPU),
            Tensor::from_slice(&[0.0f32, f32::NAN]).view([1, 2]),
            Tensor::from_slice(&[0.0f32, f32::INFINITY]).view([1, 2]),
        ];
        for map in wrong {
            assert_eq!(given(&map).unwrap_err().kind(), ErrorKind::InvalidArgument);
        }
        // Beyond half precision.
        let wide = Tensor::from_slice(&[0.0f32, 1e6]).view([1, 2]);
        assert!(given(&wide).is_ok());
        assert!(given_depth_map(&wide, 3, 4, Kind::Half, &Stream::cpu()).is_err());
    }
}
