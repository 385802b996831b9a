//! Marks in image files that say that a model generated the image, and with which arguments.
//!
//! Each file holds an XMP packet with IPTC's digital source type. The packet holds no text of a user. The arguments are
//! in a text chunk in PNG, and in EXIF's `UserComment` in JPEG and WebP, where stable-diffusion-webui and the programs
//! that follow it write and read them.
//!
//! Sources:
//! - XMP Specification Part 1 (ISO 16684-1): packet and namespaces. Part 3: PNG, JPEG and WebP.
//! - IPTC Photo Metadata Standard 2025.1, Digital Source Type: `Iptc4xmpExt:DigitalSourceType` holds a URI of the
//!   vocabulary <http://cv.iptc.org/newscodes/digitalsourcetype/>. The namespace is that of the IPTC Extension schema.
//! - Regulation (EU) 2024/1689 (AI Act), Article 50(2), which asks for marks in a machine-readable format.
//! - Exif 2.32 (CIPA DC-008): `UserComment`, tag 0x9286. TIFF 6.0: header and fields.
//! - WebP Container Specification (RFC 9649, section 2.7): `VP8X`, and `EXIF` before `XMP `.

use img_parts::jpeg::{Jpeg, JpegSegment, markers};
use img_parts::riff::{RiffChunk, RiffContent};
use img_parts::webp::{CHUNK_EXIF, CHUNK_VP8X, CHUNK_XMP, WebP};
use img_parts::{Bytes, ImageEXIF as _, ImageICC as _};
use serde_json::Value;

/// Keyword of the PNG text chunk that holds the XMP packet.
pub(crate) const PNG_XMP_KEYWORD: &str = "XML:com.adobe.xmp";

/// Start of the JPEG segment APP1 that holds the XMP packet.
const JPEG_XMP_HEADER: &str = "http://ns.adobe.com/xap/1.0/\0";

/// The XMP packet. It is marked as read-only, as PNG demands: a program that does not know the format of the file would
/// make the checksum of the chunk wrong.
pub(crate) const XMP: &str = concat!(
    "<?xpacket begin=\"\u{feff}\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>\n",
    "<x:xmpmeta xmlns:x=\"adobe:ns:meta/\">\n",
    " <rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">\n",
    "  <rdf:Description rdf:about=\"\"\n",
    "    xmlns:xmp=\"http://ns.adobe.com/xap/1.0/\"\n",
    "    xmlns:Iptc4xmpExt=\"http://iptc.org/std/Iptc4xmpExt/2008-02-29/\">\n",
    "   <Iptc4xmpExt:DigitalSourceType>",
    "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
    "</Iptc4xmpExt:DigitalSourceType>\n",
    "   <xmp:CreatorTool>triton-diffusion ",
    env!("CARGO_PKG_VERSION"),
    "</xmp:CreatorTool>\n",
    "  </rdf:Description>\n",
    " </rdf:RDF>\n",
    "</x:xmpmeta>\n",
    "<?xpacket end=\"r\"?>",
);

/// Start of the EXIF data: a TIFF header and two directories with one field each. The number of bytes of `UserComment`
/// follows, then [`EXIF_OFFSET`].
const EXIF_START: &[u8] = &[
    b'M', b'M', 0, 42, 0, 0, 0, 8, // Big-endian; the first directory is at byte 8.
    0, 1, 0x87, 0x69, 0, 4, 0, 0, 0, 1, 0, 0, 0, 26, // One field: a LONG, the EXIF directory is at byte 26.
    0, 0, 0, 0, // No directory follows.
    0, 1, 0x92, 0x86, 0, 7, // One field: UserComment, of type UNDEFINED.
];

/// The offset of `UserComment`, byte 44, and the end of its directory.
const EXIF_OFFSET: &[u8] = &[0, 0, 0, 44, 0, 0, 0, 0];

/// The code of UTF-16 in `UserComment`.
const UNICODE: &[u8] = b"UNICODE\0";

/// UTF-16 code units of a `UserComment` that fit into a segment of JPEG: 65,533 bytes less 6 of `Exif\0\0`, 44 of the
/// directories and 8 of [`UNICODE`].
pub(crate) const JPEG_COMMENT_UNITS: usize = (65_533 - 6 - 44 - 8) / 2;

/// Adds the XMP packet and the arguments to a JPEG, in two segments APP1. What does not fit of the arguments is left
/// out as [`without_longest`] says.
pub(crate) fn mark_jpeg(file: Vec<u8>, metadata: &Value) -> Result<Vec<u8>, String> {
    let mut jpeg = Jpeg::from_bytes(file.into()).map_err(|error| error.to_string())?;
    let packet = Bytes::from([JPEG_XMP_HEADER, XMP].concat());
    let segments = jpeg.segments_mut();
    // JFIF's APP0 stays first, because JFIF demands it.
    let place = segments.iter().take_while(|s| s.marker() == markers::APP0).count();
    segments.insert(place, JpegSegment::new_with_contents(markers::APP1, packet));
    // This segment goes in front of the other one.
    jpeg.set_exif(Some(exif(&without_longest(metadata, JPEG_COMMENT_UNITS))?.into()));
    Ok(jpeg.encoder().bytes().into())
}

/// Adds the XMP packet and the arguments to a WebP file. A simple file becomes an extended one.
pub(crate) fn mark_webp(file: Vec<u8>, metadata: &Value) -> Result<Vec<u8>, String> {
    let mut webp = WebP::from_bytes(file.into()).map_err(|error| error.to_string())?;
    let chunk = |id, data| RiffChunk::new(id, RiffContent::Data(data));
    let exif = exif(&metadata.to_string())?;
    webp.chunks_mut().push(chunk(CHUNK_EXIF, exif.into()));
    webp.chunks_mut()
        .push(chunk(CHUNK_XMP, Bytes::from_static(XMP.as_bytes())));
    // `img_parts` adds the VP8X chunk when a profile is set, also if there is none.
    webp.set_icc_profile(None);
    if !webp.has_chunk(CHUNK_VP8X) {
        return Err("the file has no size".to_owned());
    }
    Ok(webp.encoder().bytes().into())
}

/// Returns EXIF data with `text` as `UserComment`.
fn exif(text: &str) -> Result<Vec<u8>, String> {
    let units = text.encode_utf16().flat_map(u16::to_be_bytes);
    let comment: Vec<u8> = UNICODE.iter().copied().chain(units).collect();
    let count = u32::try_from(comment.len()).map_err(|_| "the arguments are too long for EXIF".to_owned())?;
    Ok([EXIF_START, &count.to_be_bytes(), EXIF_OFFSET, &comment].concat())
}

/// Returns the JSON text of the object `metadata` without its longest entries: as few as are needed for at most `limit`
/// UTF-16 code units.
fn without_longest(metadata: &Value, limit: usize) -> String {
    let mut text = metadata.to_string();
    let mut rest = metadata.as_object().cloned().unwrap_or_default();
    while text.encode_utf16().count() > limit {
        let longest = rest.iter().max_by_key(|(_, value)| value.to_string().len());
        let Some(key) = longest.map(|(key, _)| key.clone()) else {
            return "{}".to_owned();
        };
        rest.remove(&key);
        text = Value::Object(rest.clone()).to_string();
    }
    text
}

#[cfg(test)]
mod tests;
