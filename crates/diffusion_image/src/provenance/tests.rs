#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use std::io::Cursor;

use image::codecs::{jpeg::JpegDecoder, png::PngDecoder, webp::WebPDecoder};
use image::{ColorType, ImageDecoder};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{OutputFormat, RgbImage, encode};

const JPEG: OutputFormat = OutputFormat::Jpeg { quality: 75 };
const WEBP: OutputFormat = OutputFormat::Webp { quality: 80 };

/// Sizes that are odd, equal to and one above the blocks of the formats.
const SIZES: [(u32, u32); 5] = [(1, 1), (3, 7), (16, 16), (17, 300), (257, 8)];

fn image(width: u32, height: u32) -> RgbImage {
    let rgb = (0..width * height * 3).map(|i| (i * 37 % 251) as u8).collect();
    RgbImage::new(width, height, rgb).unwrap()
}

fn hostile() -> Value {
    json!({
        "prompt": "]]></x:xmpmeta><?xpacket end='w'?>&lt;\"'\0\u{1}\u{7f}\u{feff}\u{ffff}\r\n猫 \u{1f600} Exif\0\0 XMP ",
        "negative_prompt": "<!--",
        "gen_args": { "seed": 11 },
    })
}

/// A decoder of the `image` crate, which has another reader of the containers.
fn decoder<'a>(file: &'a [u8], output: &OutputFormat) -> Box<dyn ImageDecoder + 'a> {
    let file = Cursor::new(file);
    match output {
        OutputFormat::Png => Box::new(PngDecoder::new(file).unwrap()),
        OutputFormat::Jpeg { .. } => Box::new(JpegDecoder::new(file).unwrap()),
        OutputFormat::Webp { .. } => Box::new(WebPDecoder::new(file).unwrap()),
    }
}

fn decode(file: &[u8], output: &OutputFormat) -> ((u32, u32), Vec<u8>) {
    let decoder = decoder(file, output);
    assert_eq!(decoder.color_type(), ColorType::Rgb8);
    let size = decoder.dimensions();
    let mut rgb = vec![0; decoder.total_bytes() as usize];
    decoder.read_image_boxed(&mut rgb).unwrap();
    (size, rgb)
}

/// The text of `UserComment`.
fn comment(file: &[u8]) -> String {
    let exif = exif::Reader::new().read_from_container(&mut Cursor::new(file)).unwrap();
    let field = exif.get_field(exif::Tag::UserComment, exif::In::PRIMARY).unwrap();
    let exif::Value::Undefined(bytes, _) = &field.value else {
        unreachable!("UserComment is UNDEFINED");
    };
    assert_eq!(exif.fields().count(), 1);
    assert!(!exif.little_endian());
    let (code, text) = bytes.split_at(8);
    assert_eq!(code, b"UNICODE\0");
    let units: Vec<u16> = text
        .chunks(2)
        .map(|unit| u16::from_be_bytes(unit.try_into().unwrap()))
        .collect();
    String::from_utf16(&units).unwrap()
}

/// The chunks of a PNG: type, data.
fn png_chunks(mut file: &[u8]) -> Vec<(&[u8], &[u8])> {
    file = file.strip_prefix(b"\x89PNG\r\n\x1a\n").unwrap();
    let mut chunks = Vec::new();
    while !file.is_empty() {
        let length = u32::from_be_bytes(file[..4].try_into().unwrap()) as usize;
        chunks.push((&file[4..8], &file[8..8 + length]));
        file = &file[12 + length..];
    }
    chunks
}

/// The segments of a JPEG in front of the scan: marker, contents. And the rest.
fn jpeg_segments(mut file: &[u8]) -> (Vec<(u8, &[u8])>, &[u8]) {
    file = file.strip_prefix(b"\xff\xd8").unwrap();
    let mut segments = Vec::new();
    while file[1] != 0xda {
        assert_eq!(file[0], 0xff);
        let length = usize::from(u16::from_be_bytes([file[2], file[3]]));
        segments.push((file[1], &file[4..2 + length]));
        file = &file[2 + length..];
    }
    (segments, file)
}

/// The chunks of a WebP file: name, data.
fn webp_chunks(file: &[u8]) -> Vec<(&[u8], &[u8])> {
    let length = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap()) as usize;
    assert_eq!((&file[..4], &file[8..12]), (&b"RIFF"[..], &b"WEBP"[..]));
    assert_eq!(length(&file[4..8]), file.len() - 8);
    let mut rest = &file[12..];
    let mut chunks = Vec::new();
    while !rest.is_empty() {
        let length = length(&rest[4..8]);
        chunks.push((&rest[..4], &rest[8..8 + length]));
        assert!(rest[8 + length..8 + length.next_multiple_of(2)].iter().all(|b| *b == 0));
        rest = &rest[8 + length.next_multiple_of(2)..];
    }
    chunks
}

#[test]
fn marked_files_have_the_packet_and_the_pixels_of_unmarked_ones() {
    for (width, height) in SIZES {
        let image = image(width, height);
        for output in [OutputFormat::Png, JPEG, WEBP] {
            let marked = encode(&image, &output, &hostile(), true).unwrap();
            let unmarked = encode(&image, &output, &hostile(), false).unwrap();
            let packet = decoder(&marked, &output).xmp_metadata().unwrap();
            assert_eq!(packet.as_deref(), Some(XMP.as_bytes()), "{output:?}");
            assert_eq!(decoder(&unmarked, &output).xmp_metadata().unwrap(), None, "{output:?}");
            let (size, pixels) = decode(&marked, &output);
            assert_eq!(size, (width, height));
            assert_eq!((size, pixels), decode(&unmarked, &output), "{output:?}");
        }
    }
}

#[test]
fn packet_names_the_source_type_and_the_program() {
    assert!(XMP.starts_with("<?xpacket begin=\"\u{feff}\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>"));
    assert!(XMP.contains(">http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia</Iptc4xmpExt:"));
    assert!(XMP.contains(concat!(
        ">triton-diffusion ",
        env!("CARGO_PKG_VERSION"),
        "</xmp:CreatorTool>"
    )));
}

#[test]
fn png_gets_one_chunk_in_front_of_the_pixels() {
    let file = |provenance| encode(&image(24, 16), &OutputFormat::Png, &hostile(), provenance).unwrap();
    let (marked, unmarked) = (file(true), file(false));
    let mut chunks = png_chunks(&marked);
    let place = chunks
        .iter()
        .position(|(_, data)| data.starts_with(b"XML:com.adobe.xmp\0"))
        .unwrap();
    assert!(chunks[place..].iter().any(|(name, _)| *name == b"IDAT"));
    let (name, data) = chunks.remove(place);
    assert_eq!(name, b"iTXt");
    // No compression, no language, no translated keyword.
    assert_eq!(
        data["XML:com.adobe.xmp".len()..],
        [b"\0\0\0\0\0", XMP.as_bytes()].concat()
    );
    assert_eq!(chunks, png_chunks(&unmarked));
}

#[test]
fn jpeg_gets_two_segments_behind_that_of_jfif() {
    let file = |provenance| encode(&image(24, 16), &JPEG, &hostile(), provenance).unwrap();
    let (marked, unmarked) = (file(true), file(false));
    let (mut segments, rest) = jpeg_segments(&marked);
    let added: Vec<_> = segments.drain(1..3).collect();
    assert!(added[0].0 == 0xe1 && added[0].1.starts_with(b"Exif\0\0MM\0*"));
    assert_eq!(
        added[1],
        (0xe1, &[b"http://ns.adobe.com/xap/1.0/\0", XMP.as_bytes()].concat()[..])
    );
    assert_eq!((segments, rest), jpeg_segments(&unmarked));
}

#[test]
fn webp_becomes_an_extended_file() {
    for (width, height) in SIZES {
        let file = |provenance| encode(&image(width, height), &WEBP, &hostile(), provenance).unwrap();
        let (marked, unmarked) = (file(true), file(false));
        let chunks = webp_chunks(&marked);
        let names: Vec<&[u8]> = chunks.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, [b"VP8X", b"VP8 ", b"EXIF", b"XMP "]);
        let side = |pixels: u32| (pixels - 1).to_le_bytes()[..3].to_vec();
        // Flags for EXIF and XMP, none for alpha.
        let expected = [vec![0b0000_1100, 0, 0, 0], side(width), side(height)].concat();
        assert_eq!(chunks[0].1, expected);
        assert_eq!(chunks[1..2], webp_chunks(&unmarked));
    }
}

#[test]
fn webp_without_loss_keeps_its_alpha() {
    let rgba: Vec<u8> = (0..5 * 3 * 4).map(|i| i * 4).collect();
    for (file, flags) in [
        (webp::Encoder::from_rgba(&rgba, 5, 3).encode_lossless(), 0b0001_1100),
        (
            webp::Encoder::from_rgb(&rgba[..45], 5, 3).encode_lossless(),
            0b0000_1100,
        ),
    ] {
        let marked = mark_webp(file.to_vec(), &hostile()).unwrap();
        let chunks = webp_chunks(&marked);
        assert_eq!(chunks[0], (&b"VP8X"[..], &[flags, 0, 0, 0, 4, 0, 0, 2, 0, 0][..]));
        assert_eq!(chunks[1], webp_chunks(&file)[0]);
        assert_eq!(chunks[1].0, b"VP8L");
    }
}

#[test]
fn arguments_are_the_user_comment() {
    for output in [JPEG, WEBP] {
        let file = encode(&image(9, 9), &output, &hostile(), true).unwrap();
        assert_eq!(comment(&file), hostile().to_string());
    }
}

#[test]
fn jpeg_leaves_out_the_longest_entries_that_do_not_fit() {
    let long = "猫".repeat(20_000);
    let arguments = |prompt: &str, negative: &str| json!({ "prompt": prompt, "negative_prompt": negative, "seed": 7 });
    let image = image(8, 8);
    let written = |metadata: &Value| {
        let file = encode(&image, &JPEG, metadata, true).unwrap();
        assert_eq!(decode(&file, &JPEG).0, (8, 8));
        serde_json::from_str::<Value>(&comment(&file)).unwrap()
    };
    let one = arguments(&long, "fog");
    assert_eq!(written(&one), one);
    let two = arguments(&long, &"x".repeat(20_000));
    assert_eq!(
        written(&two),
        json!({ "negative_prompt": "x".repeat(20_000), "seed": 7 })
    );
    let three = arguments(&"\0".repeat(65_536), &"\u{1f600}".repeat(16_384));
    assert_eq!(written(&three), json!({ "seed": 7 }));
    // WebP has no such limit.
    let file = encode(&image, &WEBP, &three, true).unwrap();
    assert_eq!(comment(&file), three.to_string());
}

#[test]
fn jpeg_segment_takes_exactly_its_limit() {
    let of_length = |units: usize| json!({ "a": "x".repeat(units - r#"{"a":""}"#.len()) });
    let image = image(8, 8);
    let full = encode(&image, &JPEG, &of_length(JPEG_COMMENT_UNITS), true).unwrap();
    assert_eq!(comment(&full).len(), JPEG_COMMENT_UNITS);
    assert!(jpeg_segments(&full).0[1].1.len() >= 65_532);
    let beyond = encode(&image, &JPEG, &of_length(JPEG_COMMENT_UNITS + 1), true).unwrap();
    assert_eq!(comment(&beyond), "{}");
}

proptest! {
    #[test]
    fn any_text_is_kept(prompt: String, negative_prompt: String, width in 1_u32..40) {
        let metadata = json!({ "prompt": prompt, "negative_prompt": negative_prompt });
        for output in [JPEG, WEBP] {
            let file = encode(&image(width, 5), &output, &metadata, true).unwrap();
            prop_assert_eq!(comment(&file), metadata.to_string());
            prop_assert_eq!(decoder(&file, &output).xmp_metadata().unwrap(), Some(XMP.as_bytes().to_vec()));
        }
    }
}
