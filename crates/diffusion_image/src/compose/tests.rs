#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::*;

fn image(width: u32, height: u32) -> RgbImage {
    let rgb = (0..width * height * 3).map(|index| (index * 7 % 251) as u8).collect();
    RgbImage::new(width, height, rgb).unwrap()
}

fn plain(width: u32, height: u32, value: u8) -> Mask {
    Mask::new(width, height, vec![value; (width * height) as usize]).unwrap()
}

fn region(left: u32, top: u32, right: u32, bottom: u32) -> Region {
    Region {
        left,
        top,
        right,
        bottom,
    }
}

fn pixel(image: &RgbImage, x: u32, y: u32) -> &[u8] {
    let at = ((y * image.width() + x) * 3) as usize;
    &image.rgb()[at..at + 3]
}

#[test]
fn crop_beyond_the_image_is_black() {
    let source = image(6, 4);
    let cropped = crop(&source, region(4, 2, 8, 6)).unwrap();
    assert_eq!((cropped.width(), cropped.height()), (4, 4));
    assert_eq!(pixel(&cropped, 1, 1), pixel(&source, 5, 3));
    assert_eq!(pixel(&cropped, 2, 0), [0; 3]);
    assert_eq!(pixel(&cropped, 0, 2), [0; 3]);
    let all = crop(&source, region(0, 0, 6, 4)).unwrap();
    assert_eq!(all, source);
    assert!(crop(&source, region(3, 0, 3, 4)).is_err());
    let far = crop(&plain(3, 3, 9), region(10, 10, 12, 12)).unwrap();
    assert_eq!(far, plain(2, 2, 0));
}

#[test]
fn fill_leaves_black_only_an_odd_last_line() {
    // 8x4 into 8x8: two lines above and two below, of the color of the edge.
    let filled = resize_and_fill(&plain(8, 4, 200), 8, 8).unwrap();
    assert_eq!(filled, plain(8, 8, 200));
    let wide = resize_and_fill(&plain(4, 8, 200), 8, 8).unwrap();
    assert_eq!(wide, plain(8, 8, 200));
    // 8x4 into 8x9: the rest is odd.
    let odd = resize_and_fill(&plain(8, 4, 200), 8, 9).unwrap();
    assert_eq!(odd.values()[..64], [200; 64]);
    assert_eq!(odd.values()[64..], [0; 8]);
}

#[test]
fn fill_of_a_too_narrow_image_is_refused() {
    let line = image(1, 200);
    let error = resize_and_fill(&line, 64, 64).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
    let error = resize_and_fill(&line, 0, 64).unwrap_err();
    assert!(matches!(error, Error::Internal(_)), "{error:?}");
}

#[test]
fn resize_and_crop_keeps_the_middle() {
    let source = image(8, 4);
    let cropped = resize_and_crop(&source, 4, 4).unwrap();
    assert_eq!(cropped, crop(&source, region(2, 0, 6, 4)).unwrap());
    let tall = image(4, 8);
    let cropped = resize_and_crop(&tall, 4, 4).unwrap();
    assert_eq!(cropped, crop(&tall, region(0, 2, 4, 6)).unwrap());
}

#[test]
fn double_invert_is_identity() {
    let mask = Mask::new(2, 2, vec![0, 255, 100, 3]).unwrap();
    let inverted = invert(&mask);
    assert_eq!(inverted.values(), [255, 0, 155, 252]);
    assert_eq!(invert(&inverted), mask);
}

#[test]
fn overlay_is_pasted_into_the_region() {
    let init = image(16, 16);
    let generated = RgbImage::new(8, 8, vec![255; 192]).unwrap();
    let mut values = vec![0; 256];
    values[5 * 16 + 6] = 255;
    let mask = Mask::new(16, 16, values).unwrap();
    let region = region(4, 4, 8, 8);
    let result = apply_overlay(&mask, &init, &generated, Some(region)).unwrap();
    for y in 0..16 {
        for x in 0..16 {
            let expected = if (x, y) == (6, 5) {
                &[255; 3]
            } else {
                pixel(&init, x, y)
            };
            assert_eq!(pixel(&result, x, y), expected, "{x} {y}");
        }
    }
}

#[test]
fn images_of_different_sizes_are_refused() {
    let (large, small) = (image(4, 4), image(4, 3));
    let error = apply_overlay(&plain(4, 3, 0), &large, &large, None).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
    let error = apply_overlay(&plain(4, 4, 0), &large, &small, None).unwrap_err();
    assert!(matches!(error, Error::Internal(_)), "{error:?}");
    assert!(keep_unmasked(&large, &small, &plain(4, 4, 0)).is_err());
    assert!(keep_unmasked(&large, &large, &plain(3, 4, 0)).is_err());
    assert!(keep_unmasked(&small, &large, &plain(4, 4, 0)).is_err());
}

proptest! {
    #[test]
    fn kept_pixels_are_equal_to_the_byte(
        old in prop::collection::vec(any::<u8>(), 48), new in prop::collection::vec(any::<u8>(), 48),
        mask in prop::collection::vec(any::<u8>(), 16),
    ) {
        let (old, new) = (RgbImage::new(4, 4, old).unwrap(), RgbImage::new(4, 4, new).unwrap());
        let result = keep_unmasked(&new, &old, &Mask::new(4, 4, mask.clone()).unwrap()).unwrap();
        for (index, value) in mask.iter().enumerate() {
            let (x, y) = (index as u32 % 4, index as u32 / 4);
            let expected = if f32::from(*value) / 255.0 >= 0.5 { &new } else { &old };
            prop_assert_eq!(pixel(&result, x, y), pixel(expected, x, y));
        }
    }

    /// Black keeps, white replaces, and gray blends.
    #[test]
    fn overlay_is_between_its_images(old in any::<[u8; 3]>(), new in any::<[u8; 3]>(), mask in any::<u8>()) {
        let init = RgbImage::new(1, 1, old.to_vec()).unwrap();
        let image = RgbImage::new(1, 1, new.to_vec()).unwrap();
        let result = apply_overlay(&plain(1, 1, mask), &init, &image, None).unwrap();
        for channel in 0..3 {
            let (a, b) = (i32::from(old[channel]), i32::from(new[channel]));
            let value = i32::from(result.rgb()[channel]);
            let exact = (f64::from(a) * f64::from(255 - mask) + f64::from(b) * f64::from(mask)) / 255.0;
            // Premultiplied samples of a small alpha lose up to a unit, which the composition scales down again.
            prop_assert!((f64::from(value) - exact).abs() <= 1.5, "{} {} {} {}", a, b, mask, value);
            match mask {
                0 => prop_assert_eq!(value, a),
                255 => prop_assert_eq!(value, b),
                _ => {}
            }
        }
    }

    #[test]
    fn paste_clips_at_the_canvas(
        (w, h) in (1u32..9, 1u32..9), (left, top) in (-12i64..12, -12i64..12), (width, height) in (1u32..9, 1u32..9),
    ) {
        let source = image(w, h);
        let mut canvas = RgbImage::black(width, height).unwrap();
        canvas.paste(&source, left, top);
        let result = canvas;
        for y in 0..height {
            for x in 0..width {
                let (from_x, from_y) = (i64::from(x) - left, i64::from(y) - top);
                let inside = (0..i64::from(w)).contains(&from_x) && (0..i64::from(h)).contains(&from_y);
                let expected = if inside { pixel(&source, from_x as u32, from_y as u32) } else { &[0; 3] };
                prop_assert_eq!(pixel(&result, x, y), expected);
            }
        }
    }
}
