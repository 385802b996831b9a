#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgba, RgbaImage};
use proptest::prelude::*;

use super::*;
use crate::to_base64;

const LIMITS: ImageLimits = ImageLimits {
    max_base64_bytes: 1 << 20,
    max_pixels: 10_000,
    max_side: 400,
};

const FORMATS: [ImageFormat; 6] = [
    ImageFormat::Png,
    ImageFormat::Jpeg,
    ImageFormat::WebP,
    ImageFormat::Bmp,
    ImageFormat::Gif,
    ImageFormat::Tiff,
];

/// Eight colors, which a GIF keeps, too.
fn image() -> image::RgbImage {
    image::RgbImage::from_fn(12, 9, |x, y| {
        let on = |bit: u32| {
            if (x / 3 + y / 2) >> bit & 1 == 1 { 250 } else { 5 }
        };
        image::Rgb([on(0), on(1), on(2)])
    })
}

fn file(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut file = Vec::new();
    let image: DynamicImage = image.into();
    image.write_to(&mut std::io::Cursor::new(&mut file), format).unwrap();
    file
}

fn rgb(text: &[u8], limits: &ImageLimits) -> Result<RgbImage> {
    EncodedImage::new("image", text, limits)?.rgb()
}

fn mask(file: &[u8]) -> Mask {
    encoded(file).unwrap().mask().unwrap()
}

fn encoded(file: &[u8]) -> Result<EncodedImage> {
    EncodedImage::new("image", to_base64(file).as_bytes(), &LIMITS)
}

fn read(file: &[u8]) -> Result<RgbImage> {
    rgb(to_base64(file).as_bytes(), &LIMITS)
}

/// The text of an InvalidArgument.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>) -> String {
    match result.unwrap_err() {
        Error::InvalidArgument(text) => text,
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn lossless_formats_keep_every_pixel() {
    for format in FORMATS.into_iter().filter(|format| *format != ImageFormat::Jpeg) {
        let result = read(&file(image(), format)).unwrap();
        assert_eq!((result.width(), result.height()), (12, 9));
        assert_eq!(result.rgb(), image().as_raw(), "{format:?}");
    }
}

#[test]
fn jpeg_of_high_quality_is_close() {
    let rgb: Vec<u8> = (0..64 * 48 * 3).map(|index| (index / 97) as u8).collect();
    let image = RgbImage::new(64, 48, rgb).unwrap();
    let mut jpeg = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 95)
        .encode(image.rgb(), 64, 48, image::ExtendedColorType::Rgb8)
        .unwrap();
    let result = read(&jpeg).unwrap();
    assert_eq!((result.width(), result.height()), (64, 48));
    for (a, b) in result.rgb().iter().zip(image.rgb()) {
        assert!(a.abs_diff(*b) < 25, "{a} {b}");
    }
}

#[test]
fn format_is_detected_from_the_content() {
    let text = format!("data:image/jpeg;base64,{}", to_base64(&file(image(), ImageFormat::Png)));
    assert_eq!(rgb(text.as_bytes(), &LIMITS).unwrap().rgb(), image().as_raw());
    for content in [
        &b"<svg xmlns='http://www.w3.org/2000/svg'/>"[..],
        b"P6 1 1 255 abc",
        b"%PDF-1.7",
        b"\0",
        b"out of memory",
    ] {
        let error = refused(read(content));
        for name in ["PNG", "JPEG", "WebP", "BMP", "GIF", "TIFF"] {
            assert!(error.contains(name), "{error}");
        }
        assert!(!error.contains("memory"), "{error}");
    }
}

#[test]
fn cheap_checks_come_first() {
    let tight = |bytes, pixels, side| ImageLimits {
        max_base64_bytes: bytes,
        max_pixels: pixels,
        max_side: side,
    };
    let text = |limits: ImageLimits| refused(rgb(b"!!! not base64 !!!", &limits));
    assert!(text(tight(5, 1, 1)).contains("the limit of 5"));
    assert!(text(tight(50, 1, 1)).contains("not base64"));
    assert!(refused(rgb(b" \n", &LIMITS)).contains("empty"));
    for format in FORMATS {
        let file = file(image(), format);
        let text = to_base64(&file);
        let refused = |limits| refused(rgb(text.as_bytes(), &limits));
        let side = refused(tight(text.len(), 1 << 20, 11));
        assert!(
            side.contains("12x9 pixels is too large: the limit is 11 a side"),
            "{side}"
        );
        let pixels = refused(tight(text.len(), 107, 12));
        assert!(
            pixels.contains("12x9 pixels is too large: the limit is 107 pixels"),
            "{pixels}"
        );
        assert!(rgb(text.as_bytes(), &tight(text.len(), 108, 12)).is_ok());
    }
}

#[test]
fn truncated_file_is_refused() {
    for format in FORMATS {
        let file = file(image(), format);
        // The last bytes of some formats only mark the end.
        for length in 1..file.len() - 5 {
            refused(read(&file[..length]));
        }
    }
}

#[test]
fn truncated_pixels_behind_a_whole_header_fail_when_decoded() {
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Bmp] {
        let file = file(image(), format);
        let image = encoded(&file[..file.len() - 20]).unwrap();
        assert_eq!((image.width(), image.height()), (12, 9));
        let error = refused(image.rgb());
        assert!(error.starts_with("input `image`: the "), "{error}");
        assert!(error.ends_with(" is damaged or truncated"), "{error}");
    }
}

#[test]
fn clones_share_the_file() {
    let image = encoded(&file(image(), ImageFormat::Png)).unwrap();
    assert!(Arc::ptr_eq(&image.file, &image.clone().file));
}

#[test]
fn floating_point_pixels_are_refused() {
    let floats = image::Rgb32FImage::from_pixel(3, 3, image::Rgb([0.5; 3]));
    let error = refused(read(&file(floats, ImageFormat::Tiff)));
    assert!(error.contains("floating-point"), "{error}");
}

/// A JPEG with an orientation in it.
fn oriented(value: u8) -> Vec<u8> {
    // White in the left upper corner only.
    let image = GrayImage::from_fn(32, 16, |x, y| Luma([u8::from(x < 8 && y < 8) * 255]));
    let jpeg = file(image, ImageFormat::Jpeg);
    let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    exif.extend([value, 0, 0, 0, 0, 0, 0]);
    let length = (exif.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &[0xFF, 0xE1], &length, &exif, &jpeg[2..]].concat()
}

#[test]
fn orientation_turns_images_upright() {
    // Where the white corner goes, and whether the sides are exchanged. Source: Exif 2.3, tag 0x0112.
    for (value, right, bottom, turned) in [
        (1, false, false, false),
        (2, true, false, false),
        (3, true, true, false),
        (4, false, true, false),
        (5, false, false, true),
        (6, true, false, true),
        (7, true, true, true),
        (8, false, true, true),
        // No such orientation.
        (9, false, false, false),
        (0, false, false, false),
    ] {
        let result = mask(&oriented(value));
        let (width, height) = if turned { (16, 32) } else { (32, 16) };
        assert_eq!((result.width(), result.height()), (width, height), "{value}");
        let header = encoded(&oriented(value)).unwrap();
        assert_eq!((header.width(), header.height()), (width, height), "{value}");
        let x = if right { width - 4 } else { 3 };
        let y = if bottom { height - 4 } else { 3 };
        let at = |x: u32, y: u32| result.values()[(y * width + x) as usize];
        assert!(at(x, y) > 200, "{value}");
        assert!(at(width - 1 - x, height - 1 - y) < 50, "{value}");
        assert!(at(width - 1 - x, y) < 50 && at(x, height - 1 - y) < 50, "{value}");
    }
}

#[test]
fn masks_are_converted_to_luma() {
    let image = image::RgbImage::from_fn(2, 1, |x, _| image::Rgb(if x == 0 { [255, 0, 0] } else { [9; 3] }));
    let result = mask(&file(image, ImageFormat::Png));
    assert_eq!(result.values(), [76, 9]);
    let image = RgbaImage::from_pixel(1, 1, Rgba([0, 0, 0, 0]));
    let result = mask(&file(image, ImageFormat::Png));
    assert_eq!(result.values(), [255]);
}

#[test]
fn depth_maps_of_8_and_16_bits_keep_their_values() {
    let read = |file: &[u8]| encoded(file)?.depth_map();
    let wide = image::ImageBuffer::<Luma<u16>, _>::from_raw(2, 1, vec![1_u16, 65_535]).unwrap();
    for format in [ImageFormat::Png, ImageFormat::Tiff] {
        let result = read(&file(wide.clone(), format)).unwrap();
        assert_eq!((result.bits(), result.values()), (16, &[1.0, 65_535.0][..]));
    }
    let narrow = GrayImage::from_raw(2, 1, vec![1, 255]).unwrap();
    for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::Tiff] {
        let result = read(&file(narrow.clone(), format)).unwrap();
        assert_eq!((result.bits(), result.values()), (8, &[1.0, 255.0][..]), "{format:?}");
    }
    assert!(refused(read(&file(image(), ImageFormat::Png))).contains("grayscale"));
}

/// The decoder of animated WebPs walks out of its buffer where a lossy frame is larger than its alpha. It panics, and the
/// panic stays here.
#[test]
fn decoder_panic_is_an_error() {
    let simple = ::webp::Encoder::from_rgb(&[99; 16 * 16 * 3], 16, 16)
        .encode(50.0)
        .to_vec();
    let chunk = |name: &[u8; 4], content: &[u8]| {
        let length = (content.len() as u32).to_le_bytes();
        [&name[..], &length, content, &[0][..content.len() % 2]].concat()
    };
    let canvas = chunk(b"VP8X", &[0x12, 0, 0, 0, 7, 0, 0, 7, 0, 0]);
    let animation = chunk(b"ANIM", &[0; 6]);
    let place = [0, 0, 0, 0, 0, 0, 7, 0, 0, 7, 0, 0, 1, 0, 0, 0];
    let alpha = chunk(b"ALPH", &[0; 65]);
    // The chunk of the image, as in the simple file.
    let frame = chunk(b"ANMF", &[&place[..], &alpha, &simple[12..]].concat());
    let file = chunk(b"RIFF", &[&b"WEBP"[..], &canvas, &animation, &frame].concat());
    let bare = || image::load_from_memory_with_format(&file, ImageFormat::WebP).is_ok();
    assert!(
        catch_unwind(bare).is_err(),
        "the decoder no longer panics: this test needs another file"
    );
    assert!(refused(read(&file)).contains("the WebP is damaged"));
}

proptest! {
    /// Whatever is wrong in a file, it is the sender's mistake.
    #[test]
    fn damage_is_an_invalid_argument(
        number in 0usize..FORMATS.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        kept in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = file(image(), FORMATS[number]);
        for (place, value) in changes {
            let place = place.index(file.len());
            file[place] = value;
        }
        if let Some(kept) = kept {
            file.truncate(kept.index(file.len()));
        }
        match read(&file) {
            Ok(result) => prop_assert!(result.width() <= LIMITS.max_side && result.height() <= LIMITS.max_side),
            Err(error) => prop_assert!(matches!(error, Error::InvalidArgument(_)), "{:?}", error),
        }
    }

    #[test]
    fn noise_behind_a_signature_is_an_invalid_argument(
        number in 0usize..FORMATS.len(), noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let start = &file(image(), FORMATS[number])[..16];
        if let Err(error) = read(&[start, &noise].concat()) {
            prop_assert!(matches!(error, Error::InvalidArgument(_)), "{:?}", error);
        }
    }
}
