//! Model repositories, the server and requests, as all tests use them.

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};
use tempfile::TempDir;
pub use test_support::checkpoint;
use test_support::{copy_folder, temporary_folder};
use triton_api::{Error, ErrorCode};
use triton_fake::{FakeInstance, FakeRequest, FakeResponse, FakeServer, InstanceSpec, ModelSpec, RequestBuilder};

/// Long enough for whatever is not meant to last.
pub const SOON: Duration = Duration::from_secs(30);

/// The output tensor.
pub const OUTPUT: &str = "generated_image";

/// Text of a user, with words that SageMaker's front end would take for a lack of memory. No error
/// may repeat any of it.
pub const MARKER: &str = "zebra OOM out of memory";

/// A temporary model repository, removed at the end.
pub struct Repository {
    folder: TempDir,
}

impl Repository {
    pub fn new() -> Self {
        Self {
            folder: temporary_folder(),
        }
    }

    /// A model without a checkpoint, to be completed by the backend.
    pub fn empty(&self, model: &str) -> ModelSpec {
        fs::create_dir_all(self.version(model)).unwrap();
        ModelSpec::new(model)
            .repository(self.folder.path().join(model))
            .config(json!({"name": model, "backend": "diffusion"}))
            .auto_complete(true)
    }

    /// A model whose checkpoint is a link to a generated one.
    pub fn link(&self, model: &str, name: &str) -> ModelSpec {
        let spec = self.empty(model);
        symlink(checkpoint(name), self.checkpoint(model)).unwrap();
        spec
    }

    /// A model with a copy of a generated checkpoint, changed by `change`, which gets its folder.
    pub fn changed(&self, model: &str, name: &str, change: impl FnOnce(&Path)) -> ModelSpec {
        let spec = self.empty(model);
        let copy = self.checkpoint(model);
        copy_folder(&checkpoint(name), &copy);
        change(&copy);
        spec
    }

    /// Where a model's checkpoint lies.
    pub fn checkpoint(&self, model: &str) -> PathBuf {
        self.version(model).join("checkpoint")
    }

    fn version(&self, model: &str) -> PathBuf {
        self.folder.path().join(model).join("1")
    }
}

/// Changes a JSON file.
pub fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// A server for this backend.
pub fn server() -> FakeServer {
    let server = FakeServer::new(triton_fake::backend_symbols!());
    static FIRST: Once = Once::new();
    FIRST.call_once(|| {
        // Tensors this small gain nothing from a second thread, and on a busy machine libtorch's
        // threads would spend the time waiting for each other.
        tch::set_num_threads(1);
        // The backend sends panics to the server's log. Those of the tests themselves belong on
        // the terminal, so the first load's hook gets only those of the backend's threads.
        let terminal = std::panic::take_hook();
        drop(server.load_backend().unwrap());
        let backend = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            if thread.name().is_some_and(|name| name.starts_with("diffusion-")) {
                backend(info);
            } else {
                terminal(info);
            }
        }));
    });
    server
}

/// Runs `test` on an instance of the model `sd_base`, unloads it, and checks the accounts.
pub fn serve(test: impl FnOnce(&FakeServer, &FakeInstance<'_>)) {
    serve_as(|spec| spec, test);
}

/// As [`serve`], with a model that `change` makes of the plain one.
pub fn serve_as(change: impl FnOnce(ModelSpec) -> ModelSpec, test: impl FnOnce(&FakeServer, &FakeInstance<'_>)) {
    serve_checkpoint("sd2_base", change, test);
}

/// As [`serve_as`], with another checkpoint.
pub fn serve_checkpoint(
    checkpoint: &str,
    change: impl FnOnce(ModelSpec) -> ModelSpec,
    test: impl FnOnce(&FakeServer, &FakeInstance<'_>),
) {
    let repository = Repository::new();
    let server = server();
    let backend = server.load_backend().unwrap();
    let model = backend
        .load_model(change(repository.link("sd_base", checkpoint)))
        .unwrap();
    let instance = model.load_instance(InstanceSpec::default()).unwrap();
    test(&server, &instance);
    drop(instance);
    drop(model);
    drop(backend);
    server.assert_clean();
}

/// An image of few steps: two elements of a UNet call.
pub fn good_args() -> Value {
    json!({"num_inference_steps": 2, "guidance_scale": 3.0, "seed": 7})
}

/// A request of one element.
pub fn ask(server: &FakeServer, gen_args: &Value) -> FakeRequest {
    infer_elements(server, &["a red cat"], std::slice::from_ref(gen_args))
}

/// A request of several elements.
pub fn infer_elements(server: &FakeServer, prompts: &[&str], gen_args: &[Value]) -> FakeRequest {
    let shape = [prompts.len() as i64, 1];
    let gen_args: Vec<String> = gen_args.iter().map(Value::to_string).collect();
    server
        .request()
        .bytes_input("prompt", &shape, prompts)
        .bytes_input("gen_args", &shape, &gen_args)
        .output(OUTPUT)
        .build()
}

/// More steps than any test waits for. (Not 1000: with this checkpoint's `steps_offset` the last of
/// 1000 would lie beyond the training timesteps.)
pub fn long_args() -> Value {
    json!({"num_inference_steps": 999, "guidance_scale": 3.0, "seed": 1})
}

/// A request of [`long_args`], in images of this height.
pub fn endless(server: &FakeServer, height: u32) -> FakeRequest {
    let mut args = long_args();
    args["height"] = height.into();
    ask(server, &args)
}

/// A builder with a good prompt and good arguments.
pub fn good_inputs(builder: RequestBuilder) -> RequestBuilder {
    let builder = builder.bytes_input("prompt", &[1, 1], &["a red cat"]);
    builder
        .bytes_input("gen_args", &[1, 1], &[good_args().to_string()])
        .output(OUTPUT)
}

/// The one answer of a request that was accepted, after a look at its accounts.
pub fn answer(request: &FakeRequest) -> Result<FakeResponse, Error> {
    let response = request.wait(SOON).unwrap();
    assert_eq!(request.responses().len(), 1);
    assert!(response.is_final && request.is_released());
    let statistics = request.statistics();
    assert_eq!(statistics.len(), 1, "statistics are reported once for each request");
    assert_eq!(statistics[0].success, response.error.is_none());
    match response.error.clone() {
        Some(error) => {
            assert!(response.outputs.is_empty(), "an error comes without outputs");
            Err(error)
        }
        None => Ok(response),
    }
}

/// The encoded images of a request that succeeds.
pub fn images(request: &FakeRequest) -> Vec<Vec<u8>> {
    let response = answer(request).unwrap();
    let output = response.outputs[OUTPUT].strings().unwrap();
    output
        .iter()
        .map(|text| BASE64_STANDARD.decode(text).unwrap())
        .collect()
}

/// The code of a request that fails, and its words, which repeat nothing of the user's.
pub fn refusal(request: &FakeRequest) -> (ErrorCode, String) {
    let Err(error) = answer(request) else {
        unreachable!("the request was served");
    };
    let message = error.message().to_owned();
    assert!(message.contains("sd_base"), "the model is named: {message}");
    assert!(!message.contains("zebra"), "the user's text is repeated: {message}");
    (error.code(), message)
}

/// Asserts that `message` has each of `words` in it.
pub fn assert_says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "`{word}` is missing in: {message}");
    }
}

/// The next good request is served.
pub fn assert_serves(server: &FakeServer, instance: &FakeInstance<'_>) {
    assert_eq!(instance.ready(), Ok(()));
    let request = ask(
        server,
        &json!({"num_inference_steps": 1, "guidance_scale": 1, "seed": 3}),
    );
    instance.execute(&[&request]).unwrap();
    assert_eq!(images(&request).len(), 1);
}

/// Width and height of a PNG file that is whole.
pub fn png_size(file: &[u8]) -> (u32, u32) {
    let (frame, _) = png_frame(file);
    (frame.width, frame.height)
}

/// The pixels of a PNG file.
pub fn pixels(file: &[u8]) -> Vec<u8> {
    png_frame(file).1
}

fn png_frame(file: &[u8]) -> (png::OutputInfo, Vec<u8>) {
    let mut reader = png::Decoder::new(Cursor::new(file)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut pixels).unwrap();
    assert_eq!(
        (frame.color_type, frame.bit_depth),
        (png::ColorType::Rgb, png::BitDepth::Eight)
    );
    (frame, pixels)
}

/// A counter of the model `sd_base`.
pub fn counter(server: &FakeServer, name: &str) -> f64 {
    let labels = [("model", "sd_base"), ("version", "1")];
    server.metric(&format!("diffusion_{name}_total"), &labels).unwrap()
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for `more` UNet calls; whatever was handed over before has been admitted then.
pub fn wait_for_calls(server: &FakeServer, more: u32) {
    let start = counter(server, "unet_calls");
    wait_until("the engine steps", || {
        counter(server, "unet_calls") >= start + f64::from(more)
    });
}
