//! Decoding of JPEG files with Pillow's bytes.
//!
//! The decoder is mozjpeg's libjpeg without assembly: its inverse DCT and its color upsampling are those of libjpeg-turbo,
//! which Pillow links. The decoder of the `image` crate rounds differently, by up to 5 units in smooth images and by up to
//! 50 around single pixels of strong color.

use std::io::{self, BufRead, Read};

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage};
use mozjpeg::{ColorSpace, Decompress, Marker};

use super::format::Format;
use super::{Header, ImageLimits};
use diffusion_core::{Error, Result};

/// Most scans of a progressive file. Each scan costs a pass over the whole image and may need only a few bytes of the
/// file: thousands of scans would run for minutes. Encoders write about ten.
const MAX_SCANS: usize = 100;

/// First bytes of the EXIF marker; a TIFF header follows.
const EXIF: &[u8] = b"Exif\0\0";

/// Opens `file` and checks its header.
///
/// # Errors
/// InvalidArgument for a damaged header, for a number of channels other than 1, 3 and 4, for too many scans, and for an
/// image beyond the limits.
///
/// # Panics
/// libjpeg's errors unwind; the caller catches them.
pub(super) fn open<'a>(file: &'a [u8], limits: &ImageLimits) -> Result<(Decompress<WholeFile<'a>>, Header)> {
    let decoder = Decompress::with_markers(&[Marker::APP(1)])
        .from_reader(WholeFile(file))
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
    // Pillow decides by the number of channels, too.
    if !matches!(decoder.components().len(), 1 | 3 | 4) {
        return Err(Format::Jpeg.unsupported());
    }
    let orientation = decoder
        .markers()
        .find_map(|marker| marker.data.strip_prefix(EXIF))
        .and_then(Orientation::from_exif_chunk)
        .unwrap_or(Orientation::NoTransforms);
    Ok((decoder, (width, height, orientation)))
}

/// Decodes `file` and turns the image upright.
///
/// # Errors
/// Those of [`open`], and InvalidArgument for damaged or missing pixels.
///
/// # Panics
/// As [`open`].
pub(super) fn decode(file: &[u8], limits: &ImageLimits) -> Result<DynamicImage> {
    let (decoder, (width, height, orientation)) = open(file, limits)?;
    let channels = decoder.components().len();
    let mut started = match channels {
        1 => decoder.grayscale(),
        3 => decoder.rgb(),
        _ => decoder.to_colorspace(ColorSpace::JCS_CMYK),
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

fn damaged(_: io::Error) -> Error {
    Format::Jpeg.damaged()
}

/// A file in memory whose end is an error. libjpeg would take the end of a reader for the end of the image and fill the
/// rest with gray; Pillow refuses a truncated file.
pub(super) struct WholeFile<'a>(&'a [u8]);

impl Read for WholeFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for WholeFile<'_> {
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

/// Counts the scans of `file`: markers FF DA outside of other segments.
fn scans(file: &[u8]) -> usize {
    let mut count = 0;
    let mut rest = file;
    while let Some(at) = rest.iter().position(|byte| *byte == 0xFF) {
        rest = &rest[at + 1..];
        let Some(marker) = rest.first() else { break };
        match marker {
            // A second FF starts the marker anew. A stuffed FF, TEM, restarts, SOI and EOI have no length.
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

/// Converts CMYK with 255 for no ink (Adobe's convention, which Pillow assumes for every file) to RGB.
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
    fn cmyk_of_known_colors() {
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
