//! `invoke`: sends a request to a running server.

mod error;
mod protocol;

use std::time::Duration;

use clap::Args;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::inputs::RequestArguments;
use crate::{output, progress};

pub use error::{InvokeError, Result};
use protocol::{Answer, body, ranks};

/// Largest response that is read, in bytes.
const MAX_ANSWER_BYTES: u64 = 1 << 30;
/// What is escaped in a segment of a URL's path: everything but the unreserved characters of RFC 3986.
const PATH_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Time limit for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends a request to a running Triton over HTTP and writes the images
#[derive(Args)]
pub struct Arguments {
    /// The model's name
    model: String,
    #[command(flatten)]
    request: RequestArguments,
    /// The HTTP address of Triton
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    url: String,
    /// The model's version [default: the server decides]
    #[arg(long)]
    model_version: Option<u64>,
    /// The time limit in seconds [default: none]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: Option<u64>,
}

/// Sends the request and prints the response's parameters.
///
/// # Errors
/// The server cannot be reached, refuses the request, or sends an invalid response.
pub fn run(arguments: &Arguments) -> Result<()> {
    arguments.request.check_out()?;
    let element = arguments.request.read()?;
    let client = Client::new(arguments);
    let ranks = ranks(&client.call(None, "")?)?;
    let body = body(&element, &ranks)?;
    let spinner = progress::spinner("waiting");
    let answer = client.call(Some(&body), "/infer");
    spinner.finish_and_clear();
    let answer = Answer::read(&answer?)?;
    for (name, value) in &answer.parameters {
        match value {
            Value::String(text) => output::print(format_args!("{name}: {text}")),
            other => output::print(format_args!("{name}: {other}")),
        }
    }
    for path in arguments.request.write(&answer.images)? {
        output::print(path.display());
    }
    Ok(())
}

/// A client of one model.
struct Client {
    agent: ureq::Agent,
    address: String,
}

impl Client {
    fn new(arguments: &Arguments) -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(arguments.timeout.map(Duration::from_secs))
            // The server is local or in the same network.
            .proxy(None)
            .user_agent(concat!("triton-diffusion/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        let version = arguments.model_version;
        let version = version.map_or_else(String::new, |n| format!("/versions/{n}"));
        Self {
            agent,
            address: format!(
                "{}/v2/models/{}{version}",
                arguments.url.trim_end_matches('/'),
                utf8_percent_encode(&arguments.model, PATH_SEGMENT)
            ),
        }
    }

    /// Sends a POST with the body, or a GET without one, and returns the body of the response.
    fn call(&self, body: Option<&[u8]>, path: &str) -> Result<Vec<u8>> {
        let url = format!("{}{path}", self.address);
        let outcome = match body {
            Some(body) => self
                .agent
                .post(&url)
                .header("content-type", "application/json")
                .send(body),
            None => self.agent.get(&url).call(),
        };
        let failed = |source: ureq::Error| InvokeError::Unreachable {
            url: url.clone(),
            source: Box::new(source),
        };
        let mut response = outcome.map_err(failed)?;
        let status = response.status().as_u16();
        let answer = response
            .body_mut()
            .with_config()
            .limit(MAX_ANSWER_BYTES)
            .read_to_vec()
            .map_err(failed)?;
        if status == 200 {
            return Ok(answer);
        }
        Err(InvokeError::refused(status, &answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_name_is_escaped_in_the_url() {
        let escaped = |name| utf8_percent_encode(name, PATH_SEGMENT).to_string();
        assert_eq!(escaped("sd_base.tar.gz"), "sd_base.tar.gz");
        assert_eq!(escaped("../a b?"), "..%2Fa%20b%3F");
    }
}
