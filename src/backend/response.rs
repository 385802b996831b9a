//! The answer to a Triton request, put together from its rows.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use triton_api::{OutputTensor, Slot};

use super::encoder_thread::Sender;
use super::error::to_triton;
use crate::backend::metrics::Counters;
use crate::pipelines::{PipelineOutput, TileCounts};
use diffusion_core::config::OUTPUT_NAME;
use diffusion_core::{Error, Result};
use diffusion_engine::Client;
use diffusion_image::{encode, to_base64};
use diffusion_request::{GenerateRequest, Metadata};

/// What one row came to.
struct Row {
    /// The encoded images, in base64.
    images: Vec<String>,
    /// The seed that was used.
    seed: u64,
    /// UNet calls that the row took part in.
    steps_run: usize,
    /// Whether a prompt had more tokens than the text encoder takes.
    prompt_truncated: bool,
    /// For each image whether the safety checker made it black.
    nsfw_content_detected: Option<Vec<bool>>,
    /// The number of tiles and chunks of each image.
    tiles: Option<TileCounts>,
}

struct State {
    /// Gone once the request has been answered.
    slot: Option<Slot>,
    rows: Vec<Option<Row>>,
    started: bool,
}

/// A Triton request whose rows are under way.
///
/// The first row that fails answers for all, and the others are given up.
pub struct Reply {
    state: Mutex<State>,
    /// Whether the output has a batch dimension.
    batched: bool,
    row_count: usize,
}

impl Reply {
    /// The reply to a request of this many rows.
    pub fn new(slot: Slot, rows: usize, batched: bool) -> Arc<Self> {
        let state = State {
            slot: Some(slot),
            rows: std::iter::repeat_with(|| None).take(rows).collect(),
            started: false,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            batched,
            row_count: rows,
        })
    }

    /// Puts a row in its place; the last one answers.
    fn set_row(&self, index: usize, row: Result<Row>) {
        let mut state = self.lock();
        match row {
            Ok(row) => {
                if let Some(place) = state.rows.get_mut(index) {
                    *place = Some(row);
                }
                if state.rows.iter().any(Option::is_none) {
                    return;
                }
                let rows: Vec<Row> = state.rows.drain(..).flatten().collect();
                let slot = state.slot.take();
                drop(state);
                if let Some(slot) = slot {
                    self.respond(slot, &rows);
                }
            }
            Err(error) => {
                let slot = state.slot.take();
                drop(state);
                if let Some(slot) = slot {
                    fail(slot, &error);
                }
            }
        }
    }

    /// The computation is over for all rows but the encoding of this one.
    fn computed(&self) {
        if let Some(slot) = &mut self.lock().slot {
            slot.mark_compute_end();
        }
    }

    fn respond(&self, mut slot: Slot, rows: &[Row]) {
        let images: Vec<&[u8]> = rows.iter().flat_map(|row| &row.images).map(String::as_bytes).collect();
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let images_per_element = images.len() / rows.len().max(1);
        let shape = if self.batched {
            vec![count(rows.len()), count(images_per_element)]
        } else {
            vec![count(images_per_element)]
        };
        if let Err(error) = set_parameters(&mut slot, rows) {
            return slot.fail(&error);
        }
        // Whatever went wrong has been told to the client or to the log.
        let _ = slot.respond(&[OutputTensor::bytes(OUTPUT_NAME, &shape, &images)]);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `seed`, `steps_run`, `unet_tiles` and `vae_chunks` are numbers for one row, and texts of numbers with commas for several. So is
/// `nsfw_content_detected` for one image and for several.
fn set_parameters(slot: &mut Slot, rows: &[Row]) -> Result<(), triton_api::Error> {
    let mut numbers = |name: &str, all: Vec<u64>| match all.as_slice() {
        [] => Ok(()),
        [one] => slot.set_parameter(name, i64::try_from(*one).unwrap_or(i64::MAX)),
        _ => slot.set_parameter(name, list(&all)),
    };
    numbers("seed", rows.iter().map(|row| row.seed).collect())?;
    numbers("steps_run", rows.iter().map(|row| row.steps_run as u64).collect())?;
    let tiles = || rows.iter().filter_map(|row| row.tiles);
    numbers("unet_tiles", tiles().map(|tiles| tiles.unet as u64).collect())?;
    numbers("vae_chunks", tiles().map(|tiles| tiles.vae as u64).collect())?;
    let flags: Vec<bool> = rows
        .iter()
        .filter_map(|row| row.nsfw_content_detected.clone())
        .flatten()
        .collect();
    match flags.as_slice() {
        [] => {}
        [one] => slot.set_parameter("nsfw_content_detected", *one)?,
        _ => slot.set_parameter("nsfw_content_detected", list(&flags))?,
    }
    slot.set_parameter("cancelled", false)?;
    slot.set_parameter("prompt_truncated", rows.iter().any(|row| row.prompt_truncated))
}

/// The values with commas between them.
fn list<T: ToString>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

fn fail(mut slot: Slot, error: &Error) {
    // Servers that send parameters with an error show what became of the request.
    let _ = slot.set_parameter("cancelled", matches!(error, Error::Cancelled(_)));
    let error = to_triton(slot.model_name(), error);
    slot.fail(&error);
}

/// A row of a request, as the engine sees whoever waits for it.
pub struct RowClient {
    /// The request that the row is of.
    pub reply: Arc<Reply>,
    /// The row's place.
    pub row: usize,
    /// What was asked.
    pub request: GenerateRequest,
    /// The model's name, which goes into the images.
    pub model: Arc<str>,
    /// The model's metrics.
    pub counters: Arc<Counters>,
    /// Where images are encoded.
    pub responder: Sender,
}

impl RowClient {
    /// The error with the row that it is of, where there are several.
    fn in_row(&self, error: Error) -> Error {
        if self.reply.row_count > 1 {
            error.context(format_args!("row {}", self.row))
        } else {
            error
        }
    }

    fn encode(&self, generated: &PipelineOutput) -> Result<Row> {
        if self.is_cancelled() {
            return Err(Error::cancelled("the request was cancelled"));
        }
        let images = generated
            .images
            .iter()
            .enumerate()
            .map(|(index, image)| {
                let metadata = Metadata::new(&self.request, generated.scheduler, &self.model, index);
                Ok(to_base64(&encode(image, &self.request.output, &metadata.to_json())?))
            })
            .collect::<Result<Vec<_>>>()?;
        self.counters.images(images.len());
        Ok(Row {
            images,
            seed: self.request.seed,
            steps_run: generated.steps_run,
            prompt_truncated: generated.prompt_truncated,
            nsfw_content_detected: generated.nsfw_content_detected.clone(),
            tiles: generated.tiles,
        })
    }
}

impl Client<PipelineOutput> for RowClient {
    fn is_cancelled(&self) -> bool {
        // A request without a slot has been answered already, by a row that failed.
        self.reply.lock().slot.as_ref().is_none_or(Slot::is_cancelled)
    }

    fn started(&self) {
        let mut state = self.reply.lock();
        if !std::mem::replace(&mut state.started, true)
            && let Some(slot) = &mut state.slot
        {
            slot.mark_compute_start();
        }
    }

    fn answer(self: Box<Self>, outcome: Result<PipelineOutput>) {
        match outcome {
            Ok(generated) => {
                let responder = self.responder.clone();
                responder.send(Box::new(move || {
                    self.reply.computed();
                    let row = self.encode(&generated);
                    self.reply.set_row(self.row, row);
                }));
            }
            Err(error) => self.reply.set_row(self.row, Err(self.in_row(error))),
        }
    }
}
