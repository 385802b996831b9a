//! The form of an edit.

use axum::body::Bytes;
use axum::extract::Multipart;
use axum::extract::multipart::MultipartRejection;
use axum::http::StatusCode;

use crate::error::{ApiError, Result};
use crate::fields::Fields;

/// Most parts of a form.
const MAX_PARTS: usize = 64;

/// A form with an image.
pub struct Form {
    /// The other arguments.
    pub fields: Fields,
    /// The image file.
    pub image: Bytes,
    /// The mask file.
    pub mask: Option<Bytes>,
}

impl Form {
    /// Reads the parts of a form.
    ///
    /// # Errors
    /// The body is no form, the image is missing, or a part is there twice or is not text.
    pub async fn read(form: Result<Multipart, MultipartRejection>) -> Result<Self> {
        let expected = "the body: expected multipart/form-data with its boundary";
        let mut form = form.map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, expected))?;
        let broken = || ApiError::new(StatusCode::BAD_REQUEST, "the body: the multipart form is broken");
        let (mut image, mut mask) = (None, None);
        let mut texts: Vec<(String, String)> = Vec::new();
        let mut parts = 0;
        while let Some(part) = form.next_field().await.map_err(|_| broken())? {
            parts += 1;
            if parts > MAX_PARTS {
                let message = format!("the body: the form has more than {MAX_PARTS} parts");
                return Err(ApiError::new(StatusCode::BAD_REQUEST, message));
            }
            let name = part.name().ok_or_else(broken)?.to_owned();
            let file = part.bytes().await.map_err(|_| broken())?;
            match name.as_str() {
                "image" | "image[]" => once("image", &mut image, file)?,
                "mask" => once("mask", &mut mask, file)?,
                _ => {
                    let text = String::from_utf8(file.into()).map_err(|_| {
                        ApiError::new(
                            StatusCode::BAD_REQUEST,
                            "the body: a part other than a file is not UTF-8",
                        )
                    })?;
                    if texts.iter().any(|(other, _)| *other == name) {
                        return Err(ApiError::new(
                            StatusCode::BAD_REQUEST,
                            "the body: a field is there twice",
                        ));
                    }
                    texts.push((name, text));
                }
            }
        }
        let image = image.ok_or_else(|| ApiError::argument("image", "expected a file, got none"))?;
        Ok(Self {
            fields: Fields::of_form(texts),
            image,
            mask,
        })
    }
}

fn once(name: &'static str, slot: &mut Option<Bytes>, file: Bytes) -> Result<()> {
    match slot.replace(file) {
        None => Ok(()),
        Some(_) => Err(ApiError::argument(name, "expected one file, got several")),
    }
}
