#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::*;
use crate::{Mask, RgbImage};

const FILTERS: [Filter; 4] = [Filter::Nearest, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos];

fn side() -> impl Strategy<Value = u32> {
    1u32..40
}

fn filter() -> impl Strategy<Value = Filter> {
    prop::sample::select(FILTERS.to_vec())
}

fn image() -> impl Strategy<Value = RgbImage> {
    (side(), side()).prop_flat_map(|(width, height)| {
        prop::collection::vec(any::<u8>(), (width * height * 3) as usize)
            .prop_map(move |rgb| RgbImage::new(width, height, rgb).unwrap())
    })
}

/// One channel of an image.
fn channel(image: &RgbImage, number: usize) -> Mask {
    let values = image.rgb().iter().skip(number).step_by(3).copied().collect();
    Mask::new(image.width(), image.height(), values).unwrap()
}

/// Left and right exchanged.
fn mirrored(image: &RgbImage) -> RgbImage {
    let rgb = image
        .rgb()
        .chunks_exact(image.width() as usize * 3)
        .flat_map(|line| line.chunks_exact(3).rev().flatten().copied())
        .collect();
    RgbImage::new(image.width(), image.height(), rgb).unwrap()
}

/// Rows and columns exchanged.
fn transposed(image: &Mask) -> Mask {
    let (width, height) = size(image.width(), image.height());
    let values = (0..width)
        .flat_map(|x| (0..height).map(move |y| image.values()[y * width + x]))
        .collect();
    Mask::new(image.height(), image.width(), values).unwrap()
}

proptest! {
    #[test]
    fn resize_to_the_same_size_is_a_copy(image in image(), filter in filter()) {
        let result = resize(&image, image.width(), image.height(), filter).unwrap();
        prop_assert_eq!(result, image);
    }

    #[test]
    fn resize_keeps_a_single_color(
        color in any::<[u8; 3]>(), width in side(), height in side(), w in side(), h in side(), filter in filter(),
    ) {
        let source = RgbImage::new(width, height, color.repeat((width * height) as usize)).unwrap();
        let result = resize(&source, w, h, filter).unwrap();
        prop_assert_eq!(result.rgb(), color.repeat((w * h) as usize));
    }

    #[test]
    fn resize_does_not_mix_channels(image in image(), w in side(), h in side(), filter in filter()) {
        let result = resize(&image, w, h, filter).unwrap();
        for number in 0..3 {
            let alone = resize(&channel(&image, number), w, h, filter).unwrap();
            prop_assert_eq!(channel(&result, number), alone);
        }
    }

    /// The weights are symmetric; only their rounding may differ from left to right.
    #[test]
    fn resize_of_a_mirrored_image_is_mirrored(image in image(), w in side(), h in side()) {
        for filter in [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
            let result = mirrored(&resize(&image, w, h, filter).unwrap());
            let other = resize(&mirrored(&image), w, h, filter).unwrap();
            for (a, b) in result.rgb().iter().zip(other.rgb()) {
                prop_assert!(a.abs_diff(*b) <= 1);
            }
        }
    }

    /// Where only one axis changes, one pass does, whichever axis it is.
    #[test]
    fn passes_have_equal_weights(image in image(), w in side(), filter in filter()) {
        let source = channel(&image, 0);
        let along_rows = resize(&source, w, source.height(), filter).unwrap();
        let along_columns = resize(&transposed(&source), source.height(), w, filter).unwrap();
        prop_assert_eq!(transposed(&along_rows), along_columns);
    }

    /// The float path computes the same but for the two roundings and the clipping.
    #[test]
    fn resize_of_depth_agrees_with_bytes(image in image(), w in side(), h in side(), filter in filter()) {
        let source = channel(&image, 1);
        let values = source.values().iter().map(|value| f32::from(*value)).collect();
        let map = DepthMap::new(source.width(), source.height(), 8, values).unwrap();
        let result = depth(&map, w, h, filter).unwrap();
        prop_assert_eq!((result.width(), result.height(), result.bits()), (w, h, 8));
        // A single pass: no intermediate is clipped.
        let only_rows = depth(&map, w, map.height(), filter).unwrap();
        let bytes = resize(&source, w, map.height(), filter).unwrap();
        for (float, byte) in only_rows.values().iter().zip(bytes.values()) {
            prop_assert!((float.clamp(0.0, 255.0) - f32::from(*byte)).abs() <= 0.51);
        }
    }
}

#[test]
fn nearest_picks_the_pixel_under_the_center() {
    let source = Mask::new(4, 1, vec![10, 20, 30, 40]).unwrap();
    let resized = |width| resize(&source, width, 2, Filter::Nearest).unwrap();
    assert_eq!(resized(2).values(), [20, 40, 20, 40]);
    assert_eq!(resized(1).values(), [30, 30]);
    assert_eq!(resized(8).values(), [10, 10, 20, 20, 30, 30, 40, 40].repeat(2));
}

#[test]
fn bilinear_halves_as_expected() {
    let source = Mask::new(2, 1, vec![0, 100]).unwrap();
    let result = resize(&source, 4, 1, Filter::Bilinear).unwrap();
    assert_eq!(result.values(), [0, 25, 75, 100]);
    let back = resize(&result, 1, 1, Filter::Bilinear).unwrap();
    assert_eq!(back.values(), [50]);
}

#[test]
fn overshoot_is_clipped_except_in_depth_maps() {
    let step = [0u8, 0, 0, 255, 255, 255];
    let source = Mask::new(6, 1, step.to_vec()).unwrap();
    let result = resize(&source, 24, 1, Filter::Lanczos).unwrap();
    assert_eq!(*result.values().iter().min().unwrap(), 0);
    assert_eq!(*result.values().iter().max().unwrap(), 255);
    let map = DepthMap::new(6, 1, 8, step.map(f32::from).to_vec()).unwrap();
    let result = depth(&map, 24, 1, Filter::Bicubic).unwrap();
    assert!(result.values().iter().any(|value| *value < 0.0));
    assert!(result.values().iter().any(|value| *value > 255.0));
}

#[test]
fn edge_without_area_blends_its_neighbors() {
    let lines = [[0u8; 3], [100; 3], [200; 3]].concat();
    let source = RgbImage::new(1, 3, lines).unwrap();
    let part = |y| Part::whole((1, 3)).between_lines(y);
    let top = resize_part(&source, part(0), 1, 2, Filter::Bicubic).unwrap();
    // Weights 0.5625 and -0.0625 of the first two lines, normalized.
    assert_eq!(top.rgb(), [0; 6]);
    let bottom = resize_part(&source, part(3), 1, 2, Filter::Bicubic).unwrap();
    assert_eq!(bottom.rgb(), [213; 6]);
    let wide = RgbImage::new(3, 1, source.rgb().to_vec()).unwrap();
    let right = Part::whole((3, 1)).between_columns(3);
    let right = resize_part(&wide, right, 2, 1, Filter::Bicubic).unwrap();
    assert_eq!(right.rgb(), [213; 6]);
}

#[test]
fn empty_size_is_an_error() {
    let source = RgbImage::new(2, 2, vec![0; 12]).unwrap();
    for (width, height) in [(0, 2), (2, 0)] {
        let error = resize(&source, width, height, Filter::Bicubic).unwrap_err();
        assert!(matches!(error, Error::Internal(_)), "{error:?}");
    }
}
