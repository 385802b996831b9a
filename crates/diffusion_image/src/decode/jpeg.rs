//! JPEG files, with the bytes that Pillow makes of them.
//!
//! The decoder is libjpeg's, in the version that mozjpeg ships, without assembly: its inverse DCT and its upsampling of
//! colours are the ones of libjpeg-turbo, which Pillow links. The decoder of the `image` crate rounds otherwise, by up to 5
//! units in smooth images and by up to 50 where single pixels have strong colours.

use std::io::{self, BufRead, Read};

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage};
use mozjpeg::{ColorSpace, Decompress, Marker};

use super::Limits;
use super::format::Format;
use diffusion_core::{Error, Result};

/// Scans of a progressive file. Each goes over the whole image and may take no more than a few bytes of the file, so that
/// thousands of them keep a processor busy for minutes. Encoders write about ten.
const MAX_SCANS: usize = 100;

/// What begins the marker that holds the orientation, before a TIFF header.
const EXIF: &[u8] = b"Exif\0\0";

/// The image of `file`, upright.
///
/// # Errors
/// InvalidArgument for a file with another number of channels than 1, 3 and 4, with too many scans, and for an image
/// beyond the limits.
///
/// # Panics
/// libjpeg's own errors unwind; the caller catches them.
pub(super) fn decode(file: &[u8], limits: &Limits) -> Result<DynamicImage> {
    let damaged = |_: io::Error| Format::Jpeg.damaged();
    let decoder = Decompress::with_markers(&[Marker::APP(1)])
        .from_reader(Whole(file))
        .map_err(damaged)?;
    let side = |n: usize| u32::try_from(n).map_err(|_| Format::Jpeg.damaged());
    let (width, height) = (side(decoder.width())?, side(decoder.height())?);
    limits.check_size(width, height)?;
    let scans = scans(file);
    if scans > MAX_SCANS {
        return Err(Error::invalid_argument(format!(
            "the JPEG has {scans} scans: the limit is {MAX_SCANS}"
        )));
    }
    let orientation = orientation(&decoder);
    // Pillow decides by the number of channels, too.
    let channels = decoder.components().len();
    let mut started = match channels {
        1 => decoder.grayscale(),
        3 => decoder.rgb(),
        4 => decoder.to_colorspace(ColorSpace::JCS_CMYK),
        _ => return Err(Format::Jpeg.unsupported()),
    }
    .map_err(damaged)?;
    let samples: Vec<u8> = started.read_scanlines().map_err(damaged)?;
    let image = match channels {
        1 => GrayImage::from_raw(width, height, samples).map(DynamicImage::from),
        3 => RgbImage::from_raw(width, height, samples).map(DynamicImage::from),
        _ => RgbImage::from_raw(width, height, rgb_of_inverted_cmyk(&samples)).map(DynamicImage::from),
    };
    let mut image = image.ok_or_else(|| Format::Jpeg.damaged())?;
    image.apply_orientation(orientation);
    Ok(image)
}

fn orientation<R>(decoder: &Decompress<R>) -> Orientation {
    decoder
        .markers()
        .find_map(|marker| marker.data.strip_prefix(EXIF))
        .and_then(Orientation::from_exif_chunk)
        .unwrap_or(Orientation::NoTransforms)
}

/// The whole of a file in one piece. libjpeg takes the end of a reader for the end of the image and fills the rest with
/// gray; an error ends it instead, as Pillow's does for a truncated file.
struct Whole<'a>(&'a [u8]);

impl Read for Whole<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Whole<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.0.is_empty() {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        Ok(self.0)
    }

    fn consume(&mut self, count: usize) {
        self.0 = self.0.get(count..).unwrap_or_default();
    }
}

/// How many scans `file` announces: markers FF DA outside of other segments.
fn scans(file: &[u8]) -> usize {
    let mut count = 0;
    let mut rest = file;
    while let Some(at) = rest.iter().position(|byte| *byte == 0xFF) {
        rest = &rest[at + 1..];
        let Some(marker) = rest.first() else { break };
        match marker {
            // Another FF may follow, which begins the marker; a stuffed FF, TEM, restarts, SOI and EOI have no length.
            0xFF => continue,
            0x00 | 0x01 | 0xD0..=0xD9 => {}
            marker => {
                count += usize::from(*marker == 0xDA);
                if let &[_, high, low, ..] = rest {
                    let length = usize::from(u16::from_be_bytes([high, low]));
                    rest = rest.get(length..).unwrap_or_default();
                }
            }
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    count
}

/// CMYK with 255 for no ink, as Adobe's programs write it and as Pillow takes all of them.
///
/// Source: Pillow, `src/libImaging/Convert.c` (`cmyk2rgb`).
fn rgb_of_inverted_cmyk(samples: &[u8]) -> Vec<u8> {
    samples
        .chunks_exact(4)
        .flat_map(|pixel| {
            let light = u32::from(pixel[3]);
            [pixel[0], pixel[1], pixel[2]].map(|inverted| {
                let product = (255 - u32::from(inverted)) * light + 128;
                (light - (((product >> 8) + product) >> 8)) as u8
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scans_are_counted_outside_of_segments() {
        let scan: &[u8] = &[0xFF, 0xDA, 0, 2, 1, 2, 0xFF, 0, 0xFF, 0xD0, 3];
        let thumbnail: &[u8] = &[0xFF, 0xE1, 0, 6, 0xFF, 0xDA, 0, 2];
        let fill: &[u8] = &[0xFF];
        let start: &[u8] = &[0xFF, 0xD8];
        let end: &[u8] = &[0xFF, 0xD9];
        assert_eq!(scans(&[start, thumbnail, scan, fill, scan, end].concat()), 2);
        assert_eq!(scans(&[start, scan, &[0xFF]].concat()), 1);
        assert_eq!(scans(&[start, &[0xFF, 0xDA, 0xFF]].concat()), 1);
        assert_eq!(scans(&[start, &[0xFF, 0xE1, 0xFF, 0xFF]].concat()), 0);
        assert_eq!(scans(b""), 0);
    }

    #[test]
    fn cmyk_of_known_colours() {
        for (cmyk, rgb) in [
            ([255, 255, 255, 255], [255, 255, 255]),
            ([255, 255, 255, 0], [0, 0, 0]),
            ([0, 255, 255, 255], [0, 255, 255]),
            ([0, 0, 0, 255], [0, 0, 0]),
            ([128, 255, 0, 128], [64, 128, 0]),
        ] {
            assert_eq!(rgb_of_inverted_cmyk(&cmyk), rgb, "{cmyk:?}");
        }
    }
}
