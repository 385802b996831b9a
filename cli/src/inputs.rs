//! The inputs of a request, from the command line of `generate` and `invoke`.

use std::fs;
use std::path::{Path, PathBuf};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use clap::Args;
use diffusion_core::config::Format;
use diffusion_core::{Context, Error, Result};
use diffusion_request::gen_args::JsonObject;
use serde_json::{Map, Value};

use crate::files;

/// Largest image file that is read, in bytes; the limit of a server is lower.
const MAX_IMAGE_BYTES: u64 = 256 << 20;

/// The inputs of a request and the output file.
#[derive(Args)]
pub struct RequestArguments {
    /// The prompt
    #[arg(long)]
    prompt: String,
    /// What the image should not show
    #[arg(long)]
    negative_prompt: Option<String>,
    /// The image to change, repaint or enlarge
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// The mask: white is repainted, black is kept
    #[arg(long, value_name = "FILE")]
    mask_image: Option<PathBuf>,
    /// The depth map to keep
    #[arg(long, value_name = "FILE")]
    depth_map: Option<PathBuf>,
    /// The gen_args, a JSON object such as {"num_inference_steps": 20}
    #[arg(long, value_name = "JSON")]
    gen_args: Option<String>,
    /// One key of gen_args, such as guidance_scale=9; wins over --gen-args; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The same as --set seed=N
    #[arg(long)]
    seed: Option<u64>,
    /// The output file. Its extension (png, jpg, jpeg, webp) sets output_format unless gen_args do. Several images get
    /// numbers: image-0.png
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// The inputs of one batch element. Images are in base64.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ElementInputs {
    /// The names of the inputs and their values, in the order of the options.
    pub inputs: Vec<(&'static str, String)>,
}

impl ElementInputs {
    /// Returns the value of an input.
    pub fn get(&self, name: &str) -> Option<&str> {
        let input = self.inputs.iter().find(|(own, _)| *own == name);
        input.map(|(_, element)| element.as_str())
    }
}

impl RequestArguments {
    /// Reads the files and returns all inputs.
    ///
    /// # Errors
    /// A file that cannot be read, `--gen-args` that are not a JSON object, a duplicate key.
    pub fn read(&self) -> Result<ElementInputs> {
        let mut inputs = vec![("prompt", self.prompt.clone())];
        inputs.extend(self.negative_prompt.clone().map(|text| ("negative_prompt", text)));
        for (name, path) in [
            ("image", &self.image),
            ("mask_image", &self.mask_image),
            ("depth_map", &self.depth_map),
        ] {
            if let Some(path) = path {
                inputs.push((name, image(path)?));
            }
        }
        inputs.extend(self.gen_args()?.map(|text| ("gen_args", text)));
        Ok(ElementInputs { inputs })
    }

    /// Returns the text of `gen_args`, unchanged if nothing is added.
    fn gen_args(&self) -> Result<Option<String>> {
        let mut own = Map::new();
        for set in &self.set {
            let (key, value) = set
                .split_once('=')
                .ok_or_else(|| Error::invalid_argument("--set: expected KEY=VALUE, such as guidance_scale=9"))?;
            // A value that is not JSON is a string: scheduler=DDIMScheduler.
            let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
            add(&mut own, key, value)?;
        }
        if let Some(seed) = self.seed {
            add(&mut own, "seed", seed.into())?;
        }
        let given = self.gen_args.as_deref().map(str::trim).filter(|text| !text.is_empty());
        let pairs = match given {
            Some(text) => serde_json::from_str::<JsonObject>(text)
                .map_err(|error| Error::invalid_argument(format!("--gen-args: expected one JSON object: {error}")))?,
            None => JsonObject(Vec::new()),
        };
        let has = |key: &str| own.contains_key(key) || pairs.0.iter().any(|(name, _)| name == key);
        let format = format_of(&self.out).filter(|_| !has("output_format"));
        if let Some(format) = format {
            own.insert("output_format".into(), format.name().into());
        }
        if own.is_empty() {
            return Ok(self.gen_args.clone());
        }
        let mut all = Map::new();
        for (key, value) in pairs.0 {
            if !own.contains_key(&key) {
                add(&mut all, &key, value).context(|| "--gen-args")?;
            }
        }
        all.extend(own);
        Ok(Some(Value::Object(all).to_string()))
    }

    /// Writes the images and returns the paths.
    ///
    /// # Errors
    /// Errors of the file system.
    pub fn write(&self, images: &[Vec<u8>]) -> Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for (index, image) in images.iter().enumerate() {
            let path = match images {
                [_] => self.out.clone(),
                _ => numbered(&self.out, index),
            };
            files::write(&path, image)?;
            paths.push(path);
        }
        Ok(paths)
    }

    /// Checks early that the folder of the output file exists.
    ///
    /// # Errors
    /// `NotFound` with the folder's name.
    pub fn check_out(&self) -> Result<()> {
        let folder = files::folder_of(&self.out);
        if folder.is_dir() {
            return Ok(());
        }
        Err(Error::not_found(format!("{}: no such folder", folder.display())))
    }
}

fn add(args: &mut Map<String, Value>, key: &str, value: Value) -> Result<()> {
    match args.insert(key.to_owned(), value) {
        None => Ok(()),
        Some(_) => Err(Error::invalid_argument(format!("`{key}` is given twice"))),
    }
}

/// Reads an image file as base64.
fn image(path: &Path) -> Result<String> {
    let length = files::length(path)?;
    if length > MAX_IMAGE_BYTES {
        return Err(Error::invalid_argument(format!(
            "{}: the file has {length} bytes, the limit is {MAX_IMAGE_BYTES}",
            path.display()
        )));
    }
    let bytes = fs::read(path).map_err(|error| files::failed(path, &error))?;
    Ok(BASE64_STANDARD.encode(bytes))
}

/// Returns the format of a file's extension.
fn format_of(path: &Path) -> Option<Format> {
    let ending = path.extension()?.to_str()?.to_ascii_lowercase();
    match ending.as_str() {
        "png" => Some(Format::Png),
        "jpg" | "jpeg" => Some(Format::Jpeg),
        "webp" => Some(Format::Webp),
        _ => None,
    }
}

/// Adds a number to a path: `a/image.png` becomes `a/image-3.png`.
fn numbered(path: &Path, index: usize) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{index}"));
    if let Some(ending) = path.extension() {
        name.push(".");
        name.push(ending);
    }
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        request: RequestArguments,
    }

    fn gen_args(arguments: &[&str]) -> Result<Option<String>> {
        let line = ["test", "--prompt", "p"].iter().chain(arguments);
        Line::parse_from(line).request.gen_args()
    }

    #[test]
    fn gen_args_without_additions_do_not_change() {
        let text = r#"{ "seed":1,"seed":2 }"#;
        assert_eq!(gen_args(&["--out", "p", "--gen-args", text]).unwrap().unwrap(), text);
        assert_eq!(gen_args(&["--out", "p"]).unwrap(), None);
    }

    #[test]
    fn set_replaces_a_key_of_gen_args() {
        let given = r#"{"guidance_scale": 7.5, "num_inference_steps": 3}"#;
        let text = gen_args(&[
            "--out",
            "p",
            "--gen-args",
            given,
            "--set",
            "guidance_scale=9",
            "--set",
            "scheduler=DDIMScheduler",
            "--seed",
            "4",
        ]);
        assert_eq!(
            text.unwrap().unwrap(),
            r#"{"guidance_scale":9,"num_inference_steps":3,"scheduler":"DDIMScheduler","seed":4}"#
        );
    }

    #[test]
    fn gen_args_with_a_duplicate_key_are_refused() {
        for arguments in [
            ["--set", "seed=1", "--seed", "2"],
            ["--seed", "1", "--gen-args", r#"{"eta": 0, "eta": 1}"#],
            ["--seed", "1", "--gen-args", "[]"],
        ] {
            let line: Vec<&str> = ["--out", "p"].into_iter().chain(arguments).collect();
            assert!(gen_args(&line).is_err(), "{arguments:?}");
        }
    }

    #[test]
    fn output_format_follows_the_extension_unless_it_is_set() {
        assert_eq!(
            gen_args(&["--out", "a.JPG"]).unwrap().unwrap(),
            r#"{"output_format":"jpeg"}"#
        );
        assert_eq!(
            gen_args(&["--out", "a.jpg", "--set", "output_format=png"])
                .unwrap()
                .unwrap(),
            r#"{"output_format":"png"}"#
        );
    }

    #[test]
    fn numbered_adds_the_index_before_the_extension() {
        assert_eq!(numbered(Path::new("a/b.c.png"), 2), Path::new("a/b.c-2.png"));
        assert_eq!(numbered(Path::new("b"), 0), Path::new("b-0"));
    }
}
