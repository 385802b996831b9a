//! `POST /v1/images/edits`.

use axum::extract::multipart::MultipartRejection;
use axum::extract::{Extension, Multipart, State};
use axum::response::Response;

use super::arguments::Arguments;
use super::form::Form;
use super::response::respond;
use super::stream::Route;
use crate::error::Result;
use crate::http::{RequestId, Shared};
use crate::image_request::ImageRequest;
use crate::images::{apart, of_alpha, resized, to_base64};
use crate::size::Size;

const ROUTE: Route = Route {
    path: "/v1/images/edits",
    events: "image_edit",
};

/// Inpainting with a mask, image to image without one.
///
/// # Errors
/// The form or an image is damaged, the arguments are wrong, and those of the backend.
pub async fn edits(
    State(gateway): State<Shared>,
    Extension(id): Extension<RequestId>,
    form: Result<Multipart, MultipartRejection>,
) -> Result<Response> {
    let Form { fields, image, mask } = Form::read(form).await?;
    let mut arguments = Arguments::take(fields)?;
    let size = arguments.size;
    let images = apart(move || match mask {
        Some(mask) => with_mask(&image, &mask, size),
        None => without_mask(&image, size),
    });
    let ImageRequest {
        image,
        mask_image,
        gen_args,
        ..
    } = images.await?;
    arguments.request.image = image;
    arguments.request.mask_image = mask_image;
    arguments.request.gen_args.extend(gen_args);
    respond(&gateway, arguments, ROUTE, &id).await
}

/// The backend resizes both images to `width` and `height`. Without a size, the result is as large as the image.
fn with_mask(image: &[u8], mask: &[u8], size: Option<Size>) -> Result<ImageRequest> {
    let image = to_base64(image);
    let size = size.map_or_else(|| Size::of_image(&image), Ok)?;
    let mut request = ImageRequest {
        image: Some(image),
        mask_image: Some(of_alpha(mask)?),
        ..ImageRequest::default()
    };
    request.set("width", Some(size.width));
    request.set("height", Some(size.height));
    Ok(request)
}

/// The result of image to image is as large as its image.
fn without_mask(image: &[u8], size: Option<Size>) -> Result<ImageRequest> {
    let image = to_base64(image);
    let image = match size {
        Some(size) => resized(image, size.width, size.height)?,
        None => image,
    };
    Ok(ImageRequest {
        image: Some(image),
        ..ImageRequest::default()
    })
}
