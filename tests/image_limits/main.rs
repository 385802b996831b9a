//! Files that are made to be expensive: each is rejected or decoded within 100 ms and 50 MB, and the next image is decoded
//! as usual. The test measures its process, so it is alone in it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::time::{Duration, Instant};

use diffusion_core::{Error, Result};
use diffusion_image::{EncodedImage, ImageLimits, RgbImage, to_base64};
use image::{DynamicImage, ImageFormat};
use test_support::peak_memory;

const MAX_TIME: Duration = Duration::from_millis(100);
const MAX_MEMORY: u64 = 50 << 20;

/// Generous limits: they alone do not reject the files.
const LIMITS: ImageLimits = ImageLimits {
    max_base64_bytes: 32 << 20,
    max_pixels: 4096 * 4096,
    max_side: 16_384,
};

/// The expected outcome of a file.
enum Outcome {
    Rejected,
    Decoded,
}
use Outcome::{Decoded, Rejected};

#[test]
fn decode_hostile_file_is_cheap() {
    let honest = to_base64(&file(ImageFormat::Png));
    let mut cases = texts();
    cases.extend(truncated());
    cases.extend(bombs());
    for (name, text, expected) in cases {
        let (result, time, memory) = measured(&text);
        assert!(time < MAX_TIME, "{name}: {time:?}");
        assert!(memory < MAX_MEMORY, "{name}: {memory} bytes");
        match (expected, result) {
            (Rejected, Err(Error::InvalidArgument(text))) => println!("{name}: {text}"),
            (Decoded, Ok(_)) => println!("{name}: decoded"),
            (_, other) => unreachable!("{name}: {other:?}"),
        }
        let next = decode(honest.as_bytes()).unwrap();
        assert_eq!(next.rgb(), image().as_raw());
    }
}

/// Decodes three times; returns the result, the shortest time and the largest growth of the process's memory.
fn measured(text: &[u8]) -> (Result<RgbImage>, Duration, u64) {
    let mut least = Duration::MAX;
    let mut most = 0;
    let mut result = Err(Error::internal("not run"));
    for _ in 0..3 {
        // 5 resets the high-water mark; see proc(5).
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = peak_memory();
        let start = Instant::now();
        result = decode(text);
        least = least.min(start.elapsed());
        most = most.max(peak_memory() - before);
    }
    (result, least, most)
}

type Case = (String, Vec<u8>, Outcome);

fn decode(text: &[u8]) -> Result<RgbImage> {
    EncodedImage::new("image", text, &LIMITS)?.rgb()
}

fn case(name: &str, file: &[u8], expected: Outcome) -> Case {
    (name.to_owned(), to_base64(file).into_bytes(), expected)
}

/// Texts that are no image file.
fn texts() -> Vec<Case> {
    let text = |name: &str, text: &[u8]| (name.to_owned(), text.to_vec(), Rejected);
    vec![
        text("empty", b""),
        text("white space", &b" \n".repeat(1 << 20)),
        text("wrong base64", b"this is not base64!"),
        text("too long", &vec![b'A'; LIMITS.max_base64_bytes + 1]),
        text("a URL without data", b"data:image/png;base64"),
        text("a URL of another encoding", b"data:image/svg+xml,%3Csvg/%3E"),
        case("SVG", b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>", Rejected),
        case("noise", &[0x5A; 1 << 20], Rejected),
    ]
}

fn image() -> image::RgbImage {
    image::RgbImage::from_fn(64, 48, |x, y| image::Rgb([(x * 4) as u8, (y * 5) as u8, (x * y) as u8]))
}

fn file(format: ImageFormat) -> Vec<u8> {
    let mut file = std::io::Cursor::new(Vec::new());
    DynamicImage::from(image()).write_to(&mut file, format).unwrap();
    file.into_inner()
}

fn truncated() -> Vec<Case> {
    let formats = [
        ImageFormat::Png,
        ImageFormat::Jpeg,
        ImageFormat::WebP,
        ImageFormat::Bmp,
        ImageFormat::Gif,
        ImageFormat::Tiff,
    ];
    let half = |format| {
        let file = file(format);
        case(&format!("half a {format:?}"), &file[..file.len() / 2], Rejected)
    };
    formats.into_iter().map(half).collect()
}

fn bombs() -> Vec<Case> {
    // 256 MB of zeros.
    let zeros = deflated_zeros(256);
    let pixels = deflated_zeros(0);
    let text = [b"k\0\0", &zeros[..]].concat();
    let mut cases = vec![
        case("PNG of 60000x60000", &png(60_000, 60_000, &[], &zeros), Rejected),
        case("PNG with more than its pixels", &png(64, 48, &[], &zeros), Decoded),
        case(
            "PNG with a huge text",
            &png(64, 48, &[(b"zTXt", &text)], &zeros),
            Decoded,
        ),
        case(
            "PNG with a huge profile",
            &png(64, 48, &[(b"iCCP", &text)], &zeros),
            Decoded,
        ),
        case("PNG without pixels", &png(4000, 4000, &[], &pixels), Rejected),
        case("GIF of 10000 frames", &gif(64, 48, 10_000), Rejected),
        case("GIF of 1000 frames", &gif(64, 48, 1000), Decoded),
        case("GIF of 65535x65535", &gif(65_535, 65_535, 1), Rejected),
        case("WebP of 10000 frames", &animated_webp(10_000), Rejected),
        case("BMP of 60000x60000", &bmp(60_000, 60_000), Rejected),
        case("BMP of a negative size", &bmp(-64, i32::MIN), Rejected),
        case("BMP without pixels", &bmp(4000, 4000), Rejected),
        case("JPEG of 65500x65500", &jpeg(65_500, 65_500, 0), Rejected),
        case("JPEG of 5000 scans", &jpeg(64, 48, 5000), Rejected),
    ];
    // A small canvas with a lossy frame whose header has a large size.
    let frame = [
        &[0x10, 0, 0, 0x9D, 0x01, 0x2A, 0xFF, 0x3F, 0xFF, 0x3F][..],
        &vec![0; 1 << 20],
    ];
    let frame = chunk(b"VP8 ", &frame.concat());
    let still = [webp_canvas(0), frame.clone()].concat();
    let moving = [webp_canvas(2), chunk(b"ANIM", &[0; 6]), webp_frame(&frame)].concat();
    for (name, chunks) in [("a WebP", still), ("an animated WebP", moving)] {
        cases.push(case(&format!("a large frame in {name}"), &riff(&chunks), Rejected));
    }
    // Lengths beyond the end of the file.
    for (name, tag) in [("chunk", 279), ("offset", 273), ("width", 256), ("height", 257)] {
        let mut file = file(ImageFormat::Tiff);
        patch_tiff(&mut file, tag, 0xFFFF_FFF0);
        cases.push(case(&format!("TIFF with a false {name}"), &file, Rejected));
    }
    // JPEG data inside, whose header may have any size.
    let mut file = file(ImageFormat::Tiff);
    patch_tiff(&mut file, 259, 7);
    cases.push(case("TIFF with JPEG", &file, Rejected));
    cases
}

/// Makes a zlib stream of `megabytes` of zeros.
fn deflated_zeros(megabytes: usize) -> Vec<u8> {
    // The pixels of a PNG are such a stream, with one byte before each line.
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, 1023, megabytes.max(1) as u32 * 1024);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_filter(png::Filter::NoFilter);
    let mut writer = encoder.write_header().unwrap();
    let mut stream = writer.stream_writer().unwrap();
    let line = [0; 1023];
    for _ in 0..megabytes.max(1) * 1024 {
        std::io::Write::write_all(&mut stream, &line).unwrap();
    }
    stream.finish().unwrap();
    drop(writer);
    let mut data = Vec::new();
    let mut rest = &file[8..];
    while let [a, b, c, d, name @ ..] = rest {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        if name.starts_with(b"IDAT") {
            data.extend_from_slice(&name[4..4 + length]);
        }
        rest = &rest[length + 12..];
    }
    data
}

fn png(width: u32, height: u32, chunks: &[(&[u8; 4], &[u8])], pixels: &[u8]) -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |name: &[u8; 4], content: &[u8]| {
        let checked = [&name[..], content].concat();
        file.extend((content.len() as u32).to_be_bytes());
        file.extend(&checked);
        file.extend(crc32(&checked).to_be_bytes());
    };
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    chunk(b"IHDR", &header);
    for (name, content) in chunks {
        chunk(name, content);
    }
    chunk(b"IDAT", pixels);
    chunk(b"IEND", b"");
    file
}

/// Source: PNG specification, annex D.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 * (crc & 1)))
    })
}

fn gif(width: u16, height: u16, frames: usize) -> Vec<u8> {
    let sides = [width.to_le_bytes(), height.to_le_bytes()].concat();
    let header = [&b"GIF89a"[..], &sides, &[0x80, 0, 0], &[9; 6]].concat();
    // 8x6 pixels of color 0 in codes of 3 bits; the table is cleared before codes grow to 4 bits.
    let pairs = 8 * 6 / 2;
    let codes = (0..pairs).flat_map(|_| [4, 0, 0]).chain([5]);
    let mut bits = Vec::new();
    for code in codes {
        bits.extend((0..3).map(|bit| code >> bit & 1 == 1));
    }
    let data: Vec<u8> = bits
        .chunks(8)
        .map(|byte| byte.iter().rev().fold(0, |sum, bit| sum << 1 | u8::from(*bit)))
        .collect();
    let frame = [&b"\x2c\0\0\0\0\x08\0\x06\0\0\x02"[..], &[data.len() as u8], &data, &[0]].concat();
    [header, frame.repeat(frames), b";".to_vec()].concat()
}

fn chunk(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u32).to_le_bytes();
    [&name[..], &length, content, &[0][..content.len() % 2]].concat()
}

fn riff(chunks: &[u8]) -> Vec<u8> {
    chunk(b"RIFF", &[b"WEBP", chunks].concat())
}

/// 16x16 pixels.
fn webp_canvas(flags: u8) -> Vec<u8> {
    chunk(b"VP8X", &[flags, 0, 0, 0, 15, 0, 0, 15, 0, 0])
}

fn webp_frame(image: &[u8]) -> Vec<u8> {
    let header = [0, 0, 0, 0, 0, 0, 15, 0, 0, 15, 0, 0, 1, 0, 0, 0];
    chunk(b"ANMF", &[&header[..], image].concat())
}

fn animated_webp(frames: usize) -> Vec<u8> {
    let simple = webp::Encoder::from_rgb(&[99; 16 * 16 * 3], 16, 16).encode(50.0);
    let frame = webp_frame(&simple[12..]);
    riff(&[webp_canvas(2), chunk(b"ANIM", &[0; 6]), frame.repeat(frames)].concat())
}

/// Makes a BMP header without pixels.
fn bmp(width: i32, height: i32) -> Vec<u8> {
    let mut file = b"BM".to_vec();
    for field in [54u32, 0, 54, 40] {
        file.extend(field.to_le_bytes());
    }
    file.extend(width.to_le_bytes());
    file.extend(height.to_le_bytes());
    file.extend([1, 0, 24, 0]);
    file.extend([0; 24]);
    file
}

/// Makes a JPEG with this size in its header and further, empty scans.
fn jpeg(width: u16, height: u16, scans: usize) -> Vec<u8> {
    let mut file = file(ImageFormat::Jpeg);
    let start = file.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    file[start + 5..start + 7].copy_from_slice(&height.to_be_bytes());
    file[start + 7..start + 9].copy_from_slice(&width.to_be_bytes());
    file.truncate(file.len() - 2);
    file.extend(b"\xFF\xDA\0\x08\x01\x01\0\0\x3F\0\0".repeat(scans));
    file.extend([0xFF, 0xD9]);
    file
}

/// Sets an entry of the first directory to one 32-bit number.
fn patch_tiff(file: &mut [u8], tag: u16, value: u32) {
    let at = u32::from_le_bytes(file[4..8].try_into().unwrap()) as usize;
    let count = usize::from(u16::from_le_bytes([file[at], file[at + 1]]));
    let entries = file[at + 2..at + 2 + count * 12].chunks_exact_mut(12);
    let mut found = entries.filter(|entry| entry[..2] == tag.to_le_bytes());
    let entry = found.next().unwrap();
    entry[2..8].copy_from_slice(&[4, 0, 1, 0, 0, 0]);
    entry[8..].copy_from_slice(&value.to_le_bytes());
}
