//! The page at `/`: plain HTML, CSS and modules, which the program contains.
//!
//! The page sends requests to the routes of OpenAI's API, with the key that the user gives it. Its files need no key.

use axum::Router;
use axum::extract::{Path, Request};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY};
use axum::http::header::{HeaderName, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::error::{ApiError, Result};
use crate::http::Shared;

/// Nothing comes from elsewhere, and nothing goes elsewhere. Generated images are blobs.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// What every response of the page has, errors too.
const HEADERS: [(HeaderName, HeaderValue); 4] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    // A browser asks each time whether its copy is current: all files of a page are of one version.
    (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
];

/// Names of files in the folder `page`, each with its contents.
macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_bytes!(concat!("../page/", $name)))),*]
    };
}

const INDEX: &str = "index.html";

const FILES: [(&str, &[u8]); 31] = files![
    "adapters.js",
    "announce.js",
    "api.js",
    "ask.js",
    "controls.css",
    "description.js",
    "dialogs.css",
    "dom.js",
    "form.js",
    "gallery.js",
    "generation.js",
    "icon.svg",
    "index.html",
    "input_image.js",
    "input_mask.js",
    "main.js",
    "mask.js",
    "mask_editor.js",
    "models.js",
    "request.js",
    "size.js",
    "slider.js",
    "sse.js",
    "stage.js",
    "store.js",
    "style.css",
    "theme.js",
    "theme_switch.js",
    "tokens.css",
    "viewer.js",
    "words.js",
];

/// Returns the routes.
pub fn routes() -> Router<Shared> {
    Router::new()
        .route("/", get(async |headers: HeaderMap| file(INDEX, &headers)))
        .route(
            "/page/{name}",
            get(async |Path(name): Path<String>, headers: HeaderMap| file(&name, &headers)),
        )
        .layer(from_fn(add_headers))
}

async fn add_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().extend(HEADERS);
    response
}

fn file(name: &str, headers: &HeaderMap) -> Result<Response> {
    let found = FILES.iter().find(|(other, _)| *other == name);
    let (name, contents) = *found.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "the page has no such file"))?;
    let tag = format!("\"{}\"", blake3::hash(contents).to_hex());
    let known = headers.get(IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
    if known.is_some_and(|tags| tags.contains(&tag)) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response());
    }
    let headers = [(CONTENT_TYPE, content_type(name).to_owned()), (ETAG, tag)];
    Ok((headers, contents).into_response())
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, end)| end) {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_of_the_folder_is_in_the_program() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("page");
        let in_folder: BTreeSet<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let embedded: BTreeSet<_> = FILES.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(in_folder, embedded);
    }

    #[test]
    fn every_file_has_a_content_type_and_a_tag_by_which_it_is_not_sent_twice() {
        for (name, contents) in FILES {
            assert_ne!(content_type(name), "application/octet-stream", "{name}");
            let response = file(name, &HeaderMap::new()).unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(response.headers()[CONTENT_TYPE], content_type(name));
            assert!(!contents.is_empty(), "{name}");
            let mut again = HeaderMap::new();
            again.insert(IF_NONE_MATCH, response.headers()[ETAG].clone());
            assert_eq!(file(name, &again).unwrap().status(), StatusCode::NOT_MODIFIED);
            again.insert(IF_NONE_MATCH, HeaderValue::from_static("\"other\""));
            assert_eq!(file(name, &again).unwrap().status(), StatusCode::OK);
        }
        for name in ["", "index", "../Cargo.toml", "INDEX.HTML"] {
            assert_eq!(file(name, &HeaderMap::new()).unwrap_err().status, 404, "{name}");
        }
    }

    #[test]
    fn nothing_comes_from_elsewhere() {
        for (name, contents) in FILES {
            let text = std::str::from_utf8(contents).unwrap();
            for address in text.split("https://").skip(1).chain(text.split("http://").skip(1)) {
                // The names of SVG, and a comment that names the standard that a module follows.
                let is_name = address.starts_with("www.w3.org/2000/svg");
                let is_comment = address.starts_with("html.spec.whatwg.org/");
                assert!(
                    is_name || is_comment,
                    "{name} has an address: {}",
                    address.get(..40).unwrap_or(address)
                );
            }
            assert!(!text.contains("style=\""), "{name} has a style that the policy refuses");
        }
    }
}
