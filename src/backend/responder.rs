//! The thread that encodes pictures and answers, so that the engine need not wait for either.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use triton_api::log_error;

use super::reply::{Reply, Row};
use crate::error::{Error, Result};
use crate::picture::encode::{encode, to_base64};
use crate::picture::metadata::Metadata;
use crate::pipeline::Generated;
use crate::request::generate::GenerateRequest;
use crate::telemetry::Counters;

/// A row whose pictures are made and not yet encoded.
pub struct Answer {
    /// The request that the row is of.
    pub reply: Arc<Reply>,
    /// Its place.
    pub row: usize,
    /// What was asked.
    pub request: GenerateRequest,
    /// What was made.
    pub generated: Generated,
}

/// The way to the thread.
#[derive(Clone)]
pub struct Sender(mpsc::Sender<Answer>);

impl Sender {
    /// Hands a row over. If the thread is gone the request is answered all the same.
    pub fn send(&self, answer: Answer) {
        if let Err(mpsc::SendError(answer)) = self.0.send(answer) {
            let error = Error::unavailable("the model is being unloaded");
            answer.reply.set_row(answer.row, Err(error));
        }
    }
}

/// The thread; dropping it waits until every answer is sent.
pub struct Responder {
    sender: Option<Sender>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    /// Starts the thread.
    ///
    /// # Errors
    /// `Internal` if the system gives no thread.
    pub fn start(model: &str, counters: Arc<Counters>) -> Result<Self> {
        let (sender, answers) = mpsc::channel();
        let model = model.to_owned();
        let thread = std::thread::Builder::new()
            .name("diffusion-responder".to_owned())
            .spawn(move || {
                for answer in answers {
                    respond(&model, &counters, answer);
                }
            })
            .map_err(|error| Error::internal(format!("no thread for the responder: {error}")))?;
        Ok(Self {
            sender: Some(Sender(sender)),
            thread: Some(thread),
        })
    }

    /// A way to the thread. The thread lives as long as any is left.
    pub fn sender(&self) -> Sender {
        match &self.sender {
            Some(sender) => sender.clone(),
            // Only `drop` takes it; a channel without a receiver answers for itself.
            None => Sender(mpsc::channel().0),
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // Panics are caught in the thread; it ends when the last sender is gone.
            let _ = thread.join();
        }
    }
}

fn respond(model: &str, counters: &Counters, answer: Answer) {
    let Answer {
        reply,
        row,
        request,
        generated,
    } = answer;
    reply.computed();
    let count = generated.pictures.len();
    let encoded = catch_unwind(AssertUnwindSafe(|| encode_row(model, &request, &generated)));
    let encoded = encoded.unwrap_or_else(|payload| {
        // A payload may panic when it is dropped.
        std::mem::forget(payload);
        log_error!("model '{model}': a picture could not be encoded");
        Err(Error::internal("a picture could not be encoded"))
    });
    if encoded.is_ok() {
        counters.pictures(count);
    }
    reply.set_row(row, encoded);
}

fn encode_row(model: &str, request: &GenerateRequest, generated: &Generated) -> Result<Row> {
    let pictures = generated
        .pictures
        .iter()
        .enumerate()
        .map(|(index, picture)| {
            let metadata = Metadata::new(request, generated.scheduler, model, index);
            Ok(to_base64(&encode(picture, &request.output, &metadata)?))
        })
        .collect::<Result<_>>()?;
    Ok(Row {
        pictures,
        seed: request.seed,
        steps_run: generated.steps_run,
        prompt_truncated: generated.prompt_truncated,
    })
}
