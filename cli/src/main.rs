//! The command `triton-diffusion`: inspects, packs and converts checkpoints, generates images, and serves the gateway.
//!
//! The program calls the library of the server to check folders and to generate images.

mod backend_directory;
mod benchmark;
mod check;
mod checkpoint;
mod completions;
mod convert;
mod device;
mod dtype;
mod files;
mod gateway;
mod generate;
mod inputs;
mod inspect;
mod invoke;
mod man;
mod model_config;
mod output;
mod pack;
mod progress;
mod repo;
mod tensors;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Inspects, packs and converts Stable Diffusion checkpoints for Triton's backend `diffusion`, and generates images.
#[derive(Parser)]
#[command(name = "triton-diffusion", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Inspect(inspect::Arguments),
    Pack(pack::Arguments),
    Repo(repo::Arguments),
    Generate(generate::Arguments),
    Invoke(invoke::Arguments),
    Convert(convert::Arguments),
    Benchmark(benchmark::Arguments),
    Gateway(gateway::Arguments),
    BackendDirectory(backend_directory::Arguments),
    Completions(completions::Arguments),
    Man(man::Arguments),
}

fn main() -> ExitCode {
    triton_diffusion::pipelines::initialize_libtorch();
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            output::status(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Inspect(arguments) => return Ok(inspect::run(&arguments)?),
        Command::Pack(arguments) => pack::run(&arguments)?,
        Command::Repo(arguments) => repo::run(&arguments)?,
        Command::Generate(arguments) => generate::run(&arguments)?,
        Command::Invoke(arguments) => invoke::run(&arguments)?,
        Command::Convert(arguments) => convert::run(&arguments)?,
        Command::Benchmark(arguments) => benchmark::run(&arguments)?,
        Command::Gateway(arguments) => gateway::run(arguments)?,
        Command::BackendDirectory(_) => backend_directory::run()?,
        Command::Completions(arguments) => completions::run(&arguments, Arguments::command()),
        Command::Man(arguments) => man::run(&arguments, Arguments::command())?,
    }
    Ok(ExitCode::SUCCESS)
}
