//! `gateway`: an HTTP server in front of running Tritons.

use std::env;
use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use diffusion_gateway::{Settings, StartError};

use crate::output;

/// The environment variable with the API key. An argument would be seen by all users of the machine.
const KEY_VARIABLE: &str = "TRITON_DIFFUSION_API_KEY";

/// Serves OpenAI's image API and a part of stable-diffusion-webui's, and sends the requests to Triton over gRPC
///
/// The environment variable TRITON_DIFFUSION_API_KEY is the key that requests must have.
#[derive(Args)]
pub struct Arguments {
    /// The gRPC address of Triton, HOST:PORT (repeatable)
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8001")]
    triton: Vec<String>,
    /// The address that clients use
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The model of requests that name none [default: the only one, if there is one]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// The time limit of a request in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout_seconds: u64,
    /// The largest body of a request in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_body_mib: u16,
    /// The largest sum of the bodies that are read or served at one time, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    max_bodies_mib: u32,
    /// An origin whose web pages may send requests, or * (repeatable)
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,
    /// Serve no web page at /
    #[arg(long)]
    no_page: bool,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// A setting is wrong, or the address cannot be used.
pub fn run(arguments: Arguments) -> Result<(), StartError> {
    let api_key = env::var_os(KEY_VARIABLE).map(|key| key.to_string_lossy().into_owned());
    if api_key.is_none() && !arguments.listen.ip().is_loopback() {
        output::status(format_args!(
            "warning: without {KEY_VARIABLE}, everybody who reaches {} can send requests",
            arguments.listen
        ));
    }
    let settings = Settings {
        listen: arguments.listen,
        triton: arguments.triton,
        default_model: arguments.model,
        time_limit: Duration::from_secs(arguments.timeout_seconds),
        max_body_bytes: usize::from(arguments.max_body_mib) << 20,
        max_bodies_bytes: usize::try_from(arguments.max_bodies_mib).unwrap_or(usize::MAX >> 20) << 20,
        api_key,
        cors_origins: arguments.cors_origin,
        page: !arguments.no_page,
    };
    diffusion_gateway::run(settings, |address| {
        output::print(format_args!("listening on http://{address}"))
    })
}
