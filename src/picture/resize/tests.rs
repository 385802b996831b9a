#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::*;

const FILTERS: [Filter; 4] = [
    Filter::Nearest,
    Filter::Bilinear,
    Filter::Bicubic,
    Filter::Lanczos,
];

fn side() -> impl Strategy<Value = u32> {
    1u32..40
}

fn filter() -> impl Strategy<Value = Filter> {
    prop::sample::select(FILTERS.to_vec())
}

fn picture() -> impl Strategy<Value = Picture> {
    (side(), side()).prop_flat_map(|(width, height)| {
        prop::collection::vec(any::<u8>(), (width * height * 3) as usize)
            .prop_map(move |rgb| Picture::new(width, height, rgb).unwrap())
    })
}

/// One channel of a picture.
fn channel(picture: &Picture, number: usize) -> Grey {
    let values = picture
        .rgb()
        .iter()
        .skip(number)
        .step_by(3)
        .copied()
        .collect();
    Grey::new(picture.width(), picture.height(), values).unwrap()
}

/// Left and right exchanged.
fn mirrored(picture: &Picture) -> Picture {
    let rgb = picture
        .rgb()
        .chunks_exact(picture.width() as usize * 3)
        .flat_map(|line| line.chunks_exact(3).rev().flatten().copied())
        .collect();
    Picture::new(picture.width(), picture.height(), rgb).unwrap()
}

/// Rows and columns exchanged.
fn transposed(picture: &Grey) -> Grey {
    let (width, height) = size(picture.width(), picture.height());
    let values = (0..width)
        .flat_map(|x| (0..height).map(move |y| picture.values()[y * width + x]))
        .collect();
    Grey::new(picture.height(), picture.width(), values).unwrap()
}

proptest! {
    #[test]
    fn the_same_size_is_a_copy(picture in picture(), filter in filter()) {
        let made = rgb(&picture, picture.width(), picture.height(), filter).unwrap();
        prop_assert_eq!(made, picture);
    }

    #[test]
    fn one_colour_stays(
        colour in any::<[u8; 3]>(), width in side(), height in side(), w in side(), h in side(), filter in filter(),
    ) {
        let source = Picture::new(width, height, colour.repeat((width * height) as usize)).unwrap();
        let made = rgb(&source, w, h, filter).unwrap();
        prop_assert_eq!(made.rgb(), colour.repeat((w * h) as usize));
    }

    #[test]
    fn channels_do_not_mix(picture in picture(), w in side(), h in side(), filter in filter()) {
        let made = rgb(&picture, w, h, filter).unwrap();
        for number in 0..3 {
            let alone = grey(&channel(&picture, number), w, h, filter).unwrap();
            prop_assert_eq!(channel(&made, number), alone);
        }
    }

    /// The weights are symmetric; only their rounding may differ from left to right.
    #[test]
    fn a_mirrored_picture_gives_a_mirrored_result(picture in picture(), w in side(), h in side()) {
        for filter in [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
            let made = mirrored(&rgb(&picture, w, h, filter).unwrap());
            let other = rgb(&mirrored(&picture), w, h, filter).unwrap();
            for (a, b) in made.rgb().iter().zip(other.rgb()) {
                prop_assert!(a.abs_diff(*b) <= 1);
            }
        }
    }

    /// Where only one axis changes, one pass does, whichever axis it is.
    #[test]
    fn both_passes_weigh_alike(picture in picture(), w in side(), filter in filter()) {
        let source = channel(&picture, 0);
        let along_rows = grey(&source, w, source.height(), filter).unwrap();
        let along_columns = grey(&transposed(&source), source.height(), w, filter).unwrap();
        prop_assert_eq!(transposed(&along_rows), along_columns);
    }

    /// The float path computes the same but for the two roundings and the clipping.
    #[test]
    fn depth_agrees_with_bytes(picture in picture(), w in side(), h in side(), filter in filter()) {
        let source = channel(&picture, 1);
        let values = source.values().iter().map(|value| f32::from(*value)).collect();
        let map = DepthMap::new(source.width(), source.height(), 8, values).unwrap();
        let made = depth(&map, w, h, filter).unwrap();
        prop_assert_eq!((made.width(), made.height(), made.bits()), (w, h, 8));
        // A single pass, so that no intermediate is clipped.
        let only_rows = depth(&map, w, map.height(), filter).unwrap();
        let bytes = grey(&source, w, map.height(), filter).unwrap();
        for (float, byte) in only_rows.values().iter().zip(bytes.values()) {
            prop_assert!((float.clamp(0.0, 255.0) - f32::from(*byte)).abs() <= 0.51);
        }
    }
}

#[test]
fn nearest_takes_the_pixel_under_the_centre() {
    let source = Grey::new(4, 1, vec![10, 20, 30, 40]).unwrap();
    let resized = |width| grey(&source, width, 2, Filter::Nearest).unwrap();
    assert_eq!(resized(2).values(), [20, 40, 20, 40]);
    assert_eq!(resized(1).values(), [30, 30]);
    assert_eq!(
        resized(8).values(),
        [10, 10, 20, 20, 30, 30, 40, 40].repeat(2)
    );
}

#[test]
fn bilinear_by_two() {
    let source = Grey::new(2, 1, vec![0, 100]).unwrap();
    let made = grey(&source, 4, 1, Filter::Bilinear).unwrap();
    assert_eq!(made.values(), [0, 25, 75, 100]);
    let back = grey(&made, 1, 1, Filter::Bilinear).unwrap();
    assert_eq!(back.values(), [50]);
}

#[test]
fn overshoot_is_clipped_and_in_a_depth_map_it_is_not() {
    let step = [0u8, 0, 0, 255, 255, 255];
    let source = Grey::new(6, 1, step.to_vec()).unwrap();
    let made = grey(&source, 24, 1, Filter::Lanczos).unwrap();
    assert_eq!(*made.values().iter().min().unwrap(), 0);
    assert_eq!(*made.values().iter().max().unwrap(), 255);
    let map = DepthMap::new(6, 1, 8, step.map(f32::from).to_vec()).unwrap();
    let made = depth(&map, 24, 1, Filter::Bicubic).unwrap();
    assert!(made.values().iter().any(|value| *value < 0.0));
    assert!(made.values().iter().any(|value| *value > 255.0));
}

#[test]
fn an_edge_without_area_is_a_blend_of_the_rows_beside_it() {
    let rows = [[0u8; 3], [100; 3], [200; 3]].concat();
    let source = Picture::new(1, 3, rows).unwrap();
    let part = |y| Part::whole((1, 3)).between_rows(y);
    let top = rgb_part(&source, part(0), 1, 2, Filter::Bicubic).unwrap();
    // Weights 0.5625 and -0.0625 of the first two rows, normalised.
    assert_eq!(top.rgb(), [0; 6]);
    let bottom = rgb_part(&source, part(3), 1, 2, Filter::Bicubic).unwrap();
    assert_eq!(bottom.rgb(), [213; 6]);
    let wide = Picture::new(3, 1, source.rgb().to_vec()).unwrap();
    let right = Part::whole((3, 1)).between_columns(3);
    let right = rgb_part(&wide, right, 2, 1, Filter::Bicubic).unwrap();
    assert_eq!(right.rgb(), [213; 6]);
}

#[test]
fn no_size_is_an_error() {
    let source = Picture::new(2, 2, vec![0; 12]).unwrap();
    for (width, height) in [(0, 2), (2, 0)] {
        let error = rgb(&source, width, height, Filter::Bicubic).unwrap_err();
        assert!(matches!(error, Error::Internal(_)), "{error:?}");
    }
}
