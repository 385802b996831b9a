//! Converts a LoRA of any format to that of diffusers with peft.

mod config;
mod published;

use std::path::Path;

use diffusion_core::{Context, Error, ErrorKind, Result};
use safetensors::tensor::TensorInfo;
use triton_diffusion::adapters::{
    AdaptableLayers, AdapterKey, FileLayer, FileMatrix, Lora, LoraFiles, METADATA_KEY, Scaling,
};
use triton_diffusion::weights::TensorFile;

use crate::tensors::{self, Entry, Source};
use crate::{files, output};

/// How the names of tensors of single-file checkpoints begin.
const CHECKPOINT: [&str; 5] = [
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.",
    "conditioner.",
    "control_model.",
];
/// The name of peft's files, which need a configuration in the same folder.
const PEFT: &str = "adapter_model.safetensors";

/// Returns the files of a LoRA, or `None` for a file that is no LoRA.
///
/// # Errors
/// `NotFound` for a folder without a LoRA; those of [`TensorFile::open`].
pub fn find(path: &Path) -> Result<Option<LoraFiles>> {
    if path.is_dir() {
        let found = LoraFiles::in_folder(path).ok_or_else(|| {
            Error::not_found(format!(
                "{}: has neither {PEFT} with adapter_config.json nor pytorch_lora_weights.safetensors",
                path.display()
            ))
        });
        return found.map(Some);
    }
    super::refuse_pickle(path)?;
    if !is_lora(&TensorFile::open(path)?) {
        return Ok(None);
    }
    let files = if path.file_name().is_some_and(|name| name == PEFT) {
        LoraFiles::in_folder(&files::folder_of(path))
    } else {
        None
    };
    Ok(Some(files.unwrap_or_else(|| LoraFiles {
        tensors: path.to_owned(),
        peft_config: None,
    })))
}

/// Returns whether a file has tensors of adapters, of kinds that the server loads or refuses, and none of a checkpoint.
fn is_lora(file: &TensorFile) -> bool {
    let names = file.names();
    let is_checkpoint = |name: &String| CHECKPOINT.iter().any(|prefix| name.starts_with(prefix));
    let is_adapter = |name: &String| match AdapterKey::parse(name) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::Unsupported,
    };
    !names.iter().any(is_checkpoint) && names.iter().any(is_adapter)
}

/// Writes the LoRA to `out`. Without the folder of a `base`, it must be for a published model.
///
/// # Errors
/// Those of [`Lora::load`]; `InvalidArgument` if `out` exists or is no name of a safetensors file.
pub fn convert(found: &LoraFiles, base: Option<&Path>, out: &Path) -> Result<()> {
    if out.extension().is_none_or(|extension| extension != "safetensors") {
        return Err(Error::invalid_argument(format!(
            "--out {}: expected a name that ends in .safetensors, since the input is a LoRA",
            out.display()
        )));
    }
    super::refuse_pickle(&found.tensors)?;
    let file = TensorFile::open(&found.tensors)?;
    let scaling = found.scaling(&file)?;
    let (layers, model) = match base {
        Some(folder) => {
            let model = AdaptableLayers::of_folder(folder)?;
            (check(&file, &scaling, &model)?, model)
        }
        None => published_layers(&file, &scaling)?,
    };

    let source = Source::open(&found.tensors)?;
    let mut entries = Vec::new();
    for layer in &layers {
        for (matrix, part) in [(&layer.down, "lora_A"), (&layer.up, "lora_B")] {
            entries.push(entry(&source, layer, matrix, part)?);
        }
    }
    let mut notes = source.notes();
    notes.insert("format".to_owned(), "pt".to_owned());
    let metadata = config::metadata(&layers).context(|| found.tensors.display().to_string())?;
    notes.insert(METADATA_KEY.to_owned(), metadata);

    let parent = files::folder_of(out);
    files::make_folder(&parent)?;
    let temporary = files::temporary_file(&parent)?;
    tensors::write(temporary.path(), &source, entries, &notes, |_| {})?;
    verify(temporary.path(), &layers, &model).context(|| out.display().to_string())?;
    files::persist(temporary, out)?;
    output::print(out.display());
    Ok(())
}

/// Loads the file like the server and returns its layers.
fn check(file: &TensorFile, scaling: &Scaling, model: &AdaptableLayers) -> Result<Vec<FileLayer>> {
    Lora::load(file, scaling, model)?;
    FileLayer::all(file, scaling, model).context(|| file.path().display().to_string())
}

/// Checks that the server reads the same layers and scales from the new file.
fn verify(path: &Path, layers: &[FileLayer], model: &AdaptableLayers) -> Result<()> {
    let files = LoraFiles {
        tensors: path.to_owned(),
        peft_config: None,
    };
    let file = TensorFile::open(path)?;
    let read = check(&file, &files.scaling(&file)?, model)?;
    let same = |(old, new): (&FileLayer, &FileLayer)| {
        (old.component, &old.name, old.rank) == (new.component, &new.name, new.rank) && old.scale == new.scale
    };
    if layers.len() == read.len() && layers.iter().zip(&read).all(same) {
        return Ok(());
    }
    Err(Error::internal("the server would read other layers or scales"))
}

/// Finds the published model that the file fits.
///
/// # Errors
/// The error of [`Lora::load`], or those of all models; `InvalidArgument` if the file fits several and their tensors have
/// different shapes.
fn published_layers(file: &TensorFile, scaling: &Scaling) -> Result<(Vec<FileLayer>, AdaptableLayers)> {
    let mut fitting = Vec::new();
    let mut refusals = Vec::new();
    for (name, model) in published::models() {
        match check(file, scaling, &model) {
            Ok(layers) => fitting.push((layers, model)),
            Err(error) => refusals.push((name, error)),
        }
    }
    if fitting.len() > 1 && !all_equal(fitting.iter().map(|(layers, _)| shapes(layers))) {
        // Which of a model's 1x1 kernels are matrices: as the file has them.
        fitting.retain(|(layers, _)| is_stored_so(file, layers));
        if fitting.len() > 1 {
            return Err(Error::internal("two models have the shapes of the file and differ"));
        }
        if fitting.is_empty() {
            return Err(Error::invalid_argument(format!(
                "{}: fits Stable Diffusion 1 and 2, whose 1x1 convolutions have different shapes; give --base with the folder \
                 of its model",
                file.path().display()
            )));
        }
    }
    match fitting.into_iter().next() {
        Some(found) => Ok(found),
        None => Err(refusal(refusals)),
    }
}

/// Returns the error that all models have, or all errors.
fn refusal(mut refusals: Vec<(&str, Error)>) -> Error {
    if all_equal(refusals.iter().map(|(_, error)| error.to_string()))
        && let Some((_, error)) = refusals.pop()
    {
        return error;
    }
    let all: Vec<String> = refusals
        .iter()
        .map(|(model, error)| format!("{model}: {error}"))
        .collect();
    Error::invalid_argument(format!(
        "the LoRA fits no published model; give --base with the folder of its model ({})",
        all.join("; ")
    ))
}

fn all_equal<T: PartialEq>(mut values: impl Iterator<Item = T>) -> bool {
    let first = values.next();
    values.all(|value| Some(&value) == first.as_ref())
}

fn matrices(layers: &[FileLayer]) -> impl Iterator<Item = &FileMatrix> {
    layers.iter().flat_map(|layer| [&layer.down, &layer.up])
}

fn shapes(layers: &[FileLayer]) -> Vec<&[i64]> {
    matrices(layers).map(|matrix| matrix.shape.as_slice()).collect()
}

/// Returns whether the file has each tensor in the shape that its layer needs.
fn is_stored_so(file: &TensorFile, layers: &[FileLayer]) -> bool {
    matrices(layers).all(|matrix| {
        let stored = file.info(&matrix.tensor).map(|info| info.shape.as_slice());
        stored.is_some_and(|stored| {
            stored.len() == matrix.shape.len()
                && stored
                    .iter()
                    .zip(&matrix.shape)
                    .all(|(&stored, &needed)| i64::try_from(stored) == Ok(needed))
        })
    })
}

/// Makes the entry of a matrix: the same bytes under the name that diffusers has.
fn entry(source: &Source, layer: &FileLayer, matrix: &FileMatrix, part: &str) -> Result<Entry> {
    let lost = || Error::unavailable("the file changed while it was read; run the command again");
    let info: &TensorInfo = source.info(&matrix.tensor).ok_or_else(lost)?;
    let component = layer.component;
    let name = format!(
        "{}.{}.{part}.weight",
        component.name(),
        component.module_name(&layer.name)
    );
    let mut entry = Entry::whole(name, &matrix.tensor, info, info.dtype);
    let sides = matrix.shape.iter().map(|&side| usize::try_from(side));
    let shape: Vec<usize> = sides.collect::<Result<_, _>>().map_err(|_| lost())?;
    // The two were checked to be equal in the file that was open before.
    if shape.iter().product::<usize>() != entry.shape.iter().product::<usize>() {
        return Err(lost());
    }
    entry.shape = shape;
    Ok(entry)
}
