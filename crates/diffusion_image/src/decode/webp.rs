//! Checks of a WebP that its decoder does not make before it allocates.
//!
//! A WebP states the size of the canvas and the size of each lossy frame. The decoder allocates for the frame: a canvas of
//! 16x16 could cost the memory of 16383x16383 pixels.

use super::ImageLimits;
use super::format::{Format, check_frames};
use diffusion_core::Result;

/// Bytes of a chunk's name and length.
const CHUNK_HEADER: usize = 8;
/// Bytes before the chunks of a file: `RIFF`, the length, `WEBP`.
const FILE_HEADER: usize = 12;
/// Bytes before the chunks of an animation's frame: position, size, duration and flags.
const FRAME_HEADER: usize = 16;

/// Checks the length of the file, the number of frames and the size of every lossy frame.
///
/// Source: RFC 9649, sections 2.3 to 2.7, and RFC 6386, section 9.1.
///
/// # Errors
/// InvalidArgument for a truncated file and for one beyond the limits.
pub(super) fn check(file: &[u8], limits: &ImageLimits) -> Result<()> {
    let length = file.get(4..8).and_then(|bytes| bytes.try_into().ok());
    let is_whole =
        length.is_some_and(|bytes| u64::from(u32::from_le_bytes(bytes)) + CHUNK_HEADER as u64 <= file.len() as u64);
    if !is_whole {
        // The decoder would read missing bytes as zeros.
        return Err(Format::WebP.damaged());
    }
    let mut frames = 0;
    for (name, chunk) in chunks(file.get(FILE_HEADER..).unwrap_or_default()) {
        match &name {
            b"VP8 " => check_frame(chunk, limits)?,
            b"ANMF" => {
                frames += 1;
                check_frames(Format::WebP, frames)?;
                let inner = chunks(chunk.get(FRAME_HEADER..).unwrap_or_default());
                for (_, chunk) in inner.filter(|(name, _)| name == b"VP8 ") {
                    check_frame(chunk, limits)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Iterates over the names and contents of consecutive chunks; the last chunk may be truncated.
fn chunks(mut bytes: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let (header, rest) = bytes.split_at_checked(CHUNK_HEADER)?;
        let &[a, b, c, d, ref length @ ..] = header else {
            return None;
        };
        let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
        let chunk = rest.get(..length).unwrap_or(rest);
        // A chunk of odd length has a byte of padding.
        bytes = rest.get(length.saturating_add(length % 2)..).unwrap_or_default();
        Some(([a, b, c, d], chunk))
    })
}

/// Checks the size in the header of a VP8 key frame, 14 bits a side.
fn check_frame(frame: &[u8], limits: &ImageLimits) -> Result<()> {
    let side = |at: usize| match frame.get(at..at + 2) {
        Some(&[low, high]) => Ok(u32::from(u16::from_le_bytes([low, high]) & 0x3FFF)),
        _ => Err(Format::WebP.damaged()),
    };
    limits.check_size(side(6)?, side(8)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use diffusion_core::Error;

    const LIMITS: ImageLimits = ImageLimits {
        max_base64_bytes: 0,
        max_pixels: 1000,
        max_side: 100,
    };

    fn chunk(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
        let length = (content.len() as u32).to_le_bytes();
        let padding = &[0][..content.len() % 2];
        [&name[..], &length, content, padding].concat()
    }

    fn file(chunks: &[Vec<u8>]) -> Vec<u8> {
        let content = [b"WEBP".to_vec(), chunks.concat()].concat();
        chunk(b"RIFF", &content)
    }

    /// Flags, start code, and a size.
    fn frame(width: u16, height: u16) -> Vec<u8> {
        let mut frame = vec![0x10, 0, 0, 0x9D, 0x01, 0x2A];
        frame.extend(width.to_le_bytes());
        frame.extend(height.to_le_bytes());
        frame.push(0);
        chunk(b"VP8 ", &frame)
    }

    fn animation(frames: &[Vec<u8>]) -> Vec<u8> {
        chunk(b"ANMF", &[vec![0; FRAME_HEADER], frames.concat()].concat())
    }

    #[test]
    fn frames_beyond_the_limits_are_refused() {
        let odd = chunk(b"ALPH", &[1]);
        let small = frame(20, 30);
        let scaled = frame(20 | 0x4000, 30 | 0x8000);
        for (chunks, expected) in [
            (vec![odd.clone(), small.clone()], None),
            (vec![scaled], None),
            (vec![animation(&[odd.clone(), small.clone()])], None),
            (vec![odd.clone(), frame(101, 1)], Some("100 a side")),
            (vec![small.clone(), frame(40, 40)], Some("1000 pixels")),
            (vec![animation(&[odd, frame(40, 40)])], Some("1000 pixels")),
            (vec![frame(0, 4)], Some("empty")),
            (vec![chunk(b"VP8 ", &[0; 9])], Some("damaged")),
        ] {
            let checked = check(&file(&chunks), &LIMITS);
            let Some(expected) = expected else {
                assert_eq!(checked, Ok(()));
                continue;
            };
            let error = checked.map_or_else(|error| error, |()| Error::internal("accepted"));
            assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn too_many_frames_are_refused() {
        let frames = vec![animation(&[frame(2, 2)]); 1001];
        assert_eq!(check(&file(&frames[1..]), &LIMITS), Ok(()));
        assert!(check(&file(&frames), &LIMITS).is_err());
    }

    #[test]
    fn truncated_file_is_refused() {
        let whole = file(&[frame(20, 30)]);
        assert_eq!(check(&whole, &LIMITS), Ok(()));
        assert_eq!(check(&[&whole[..], b"more"].concat(), &LIMITS), Ok(()));
        for length in 0..whole.len() {
            assert!(check(&whole[..length], &LIMITS).is_err(), "{length}");
        }
    }
}
