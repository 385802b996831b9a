//! A backend that echoes its input and misbehaves as the model parameter `behavior` requests.

#![expect(clippy::panic, reason = "panics are one way to misbehave")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};
use triton_api::metrics::{Counter, CounterFamily, Gauge, GaugeFamily};
use triton_api::{
    Backend, BackendContext, Error, Health, Instance, InstanceContext, MemoryType, MemoryUsage, Model, ModelContext,
    OutputTensor, RequestBatch, Slot, decode_bytes, log_info,
};

triton_api::export_backend!(Echo);

/// Number of live states: each initialized state must be finalized.
pub static ALIVE: AtomicUsize = AtomicUsize::new(0);

/// The largest input that the backend accepts, in bytes.
pub const LIMIT: usize = 1000;

/// A state that is counted in [`ALIVE`].
#[derive(Debug)]
struct Alive;

impl Alive {
    fn new() -> Self {
        ALIVE.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        ALIVE.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Debug)]
pub struct Echo {
    calls: Option<CounterFamily>,
    busy: Option<GaugeFamily>,
    _alive: Alive,
}

impl Backend for Echo {
    type Model = EchoModel;
    const PARALLEL_INSTANCE_LOADING: bool = true;

    fn initialize(context: &BackendContext<'_>) -> Result<Self, Error> {
        if context.config()?["cmdline"]["fail"] == "true" {
            return Err(Error::not_found("planned failure of the backend"));
        }
        Ok(Self {
            calls: CounterFamily::new("echo_calls_total", "Calls").ok(),
            busy: GaugeFamily::new("echo_busy", "Busy").ok(),
            _alive: Alive::new(),
        })
    }
}

#[derive(Debug)]
pub struct EchoModel {
    behavior: String,
    calls: Option<Counter>,
    busy: Option<Gauge>,
    _alive: Alive,
}

impl Model for EchoModel {
    type Backend = Echo;
    type Instance = EchoInstance;

    fn initialize(backend: &Arc<Echo>, context: &mut ModelContext<'_>) -> Result<Self, Error> {
        let parameters = context.parameters()?;
        let behavior = parameters["behavior"].as_str().unwrap_or("echo").to_owned();
        if context.should_auto_complete()? {
            let mut config = context.config()?;
            config["output"] = json!([{"name": "echoed", "data_type": "TYPE_STRING", "dims": [-1]}]);
            context.set_config(&config)?;
            assert_eq!(context.config()?["output"][0]["name"], "echoed");
        }
        log_info!(
            "{} {} {}",
            context.name(),
            context.version(),
            context.version_path().display()
        );
        match behavior.as_str() {
            "fail_model" => return Err(Error::not_found("planned failure of the model")),
            "panic_model" => panic!("with a secret"),
            _ => {}
        }
        let labels = [("model", context.name())];
        Ok(Self {
            behavior,
            calls: backend.calls.as_ref().map(|f| f.counter(&labels)).transpose()?,
            busy: backend.busy.as_ref().map(|f| f.gauge(&labels)).transpose()?,
            _alive: Alive::new(),
        })
    }
}

/// A thread that answers slots.
#[derive(Debug)]
struct Worker {
    slots: Option<Sender<Vec<Slot>>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(behavior: String, health: Arc<Health>) -> Self {
        let (sender, receiver): (_, Receiver<Vec<Slot>>) = channel();
        let thread = thread::spawn(move || {
            while let Ok(slots) = receiver.recv() {
                for slot in slots {
                    work(&behavior, slot, &health);
                }
            }
        });
        Self {
            slots: Some(sender),
            thread: Some(thread),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.slots = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work(behavior: &str, slot: Slot, health: &Health) {
    match behavior {
        "thread" => {
            // The test sends the first cancel once Execute has returned.
            wait_for_cancel(&slot);
            answer(slot);
        }
        "drop_on_thread" => {
            wait_for_cancel(&slot);
            drop(slot);
        }
        "poison_on_thread" => {
            health.poison("the thread is lost");
            slot.fail(&Error::internal("the thread is lost"));
        }
        "until_cancelled" => {
            wait_for_cancel(&slot);
            slot.fail(&Error::cancelled("the request was cancelled"));
        }
        other => slot.fail(&Error::internal(other)),
    }
}

fn wait_for_cancel(slot: &Slot) {
    while !slot.is_cancelled() {
        thread::sleep(Duration::from_millis(1));
    }
}

#[derive(Debug)]
pub struct EchoInstance {
    worker: Worker,
    model: Arc<EchoModel>,
    _alive: Alive,
}

impl Instance for EchoInstance {
    type Model = EchoModel;

    fn initialize(model: &Arc<EchoModel>, context: &InstanceContext<'_>) -> Result<Self, Error> {
        match model.behavior.as_str() {
            "fail_instance" => {
                return Err(Error::unsupported(format!(
                    "instance '{}' of '{}' version {}: {:?} {}",
                    context.name(),
                    context.model_name(),
                    context.model_version(),
                    context.kind(),
                    context.device_id()
                )));
            }
            "panic_instance" => panic!("with a secret"),
            _ => {}
        }
        let usage = |memory_type, byte_size| MemoryUsage {
            memory_type,
            memory_type_id: 0,
            byte_size,
        };
        context.report_memory_usage(&[
            usage(MemoryType::Cpu, 10),
            usage(MemoryType::Gpu, 7),
            usage(MemoryType::Cpu, 5),
        ])?;
        Ok(Self {
            worker: Worker::start(model.behavior.clone(), context.health()),
            model: Arc::clone(model),
            _alive: Alive::new(),
        })
    }

    fn execute(&mut self, batch: RequestBatch<'_>) -> Result<(), Error> {
        if let Some(calls) = &self.model.calls {
            calls.add(1.0)?;
        }
        if let Some(busy) = &self.model.busy {
            busy.set(3.0)?;
            busy.add(-1.0)?;
        }
        match self.model.behavior.as_str() {
            "echo" => batch.accept()?.into_iter().for_each(answer),
            "fail_before_accept" => return Err(Error::unavailable("not now")),
            "forget_to_accept" => {}
            "panic_before_accept" => panic!("with a secret"),
            "panic_after_accept" => {
                let mut slots = batch.accept()?.into_iter();
                slots.next().into_iter().for_each(answer);
                panic!("with a secret");
            }
            "error_after_accept" => {
                let mut slots = batch.accept()?.into_iter();
                slots.next().into_iter().for_each(answer);
                return Err(Error::internal("too late"));
            }
            _ => {
                let slots = batch.accept()?;
                if let Some(sender) = &self.worker.slots {
                    let _ = sender.send(slots);
                }
            }
        }
        Ok(())
    }
}

/// Answers a slot with its input `text`, and with parameters for the other inputs that were read.
fn answer(mut slot: Slot) {
    match prepare(&mut slot) {
        Ok((shape, elements)) => {
            slot.mark_compute_end();
            let parts: Vec<&[u8]> = elements.iter().map(Vec::as_slice).collect();
            let numbers: Vec<u8> = (0..8).collect();
            // The slot has answered with the error.
            let _ = slot.respond(&[
                OutputTensor::bytes("echoed", &shape, &parts),
                OutputTensor::raw("numbers", triton_api::DataType::Int16, &[2, 2], &numbers),
                OutputTensor::raw("wrong", triton_api::DataType::Int16, &[3], &numbers),
            ]);
        }
        Err(error) => slot.fail(&error),
    }
}

type Echoed = (Vec<i64>, Vec<Vec<u8>>);

fn prepare(slot: &mut Slot) -> Result<Echoed, Error> {
    let place = format!("model '{}', input 'text'", slot.model_name());
    let request = slot.request();
    let id = request.id().unwrap_or("none").to_owned();
    let input = request
        .input("text")?
        .ok_or_else(|| Error::invalid_arg("it is missing").context(&place))?;
    let shape = input.shape().to_vec();
    let contents = input.contents(LIMIT)?;
    let elements: Vec<Vec<u8>> = decode_bytes(&contents, input.element_count()?)
        .map_err(|error| Error::from(error).context(&place))?
        .into_iter()
        .map(<[u8]>::to_vec)
        .collect();
    slot.set_batch_size(elements.len() as u64);
    slot.mark_compute_start();
    slot.set_parameter("id", id)?;
    slot.set_parameter("count", elements.len() as i64)?;
    slot.set_parameter("cancelled", slot.is_cancelled())?;
    Ok((shape, elements))
}

/// Returns the configuration of a model with this behavior.
pub fn config(behavior: &str) -> Value {
    json!({"parameters": {"behavior": {"string_value": behavior}}})
}
