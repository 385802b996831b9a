//! The `config.pbtxt` of a model.

use clap::ValueEnum;
use serde_json::{Map, Value};

/// The device of a model's instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// One instance on each GPU.
    Gpu,
    /// One instance on the CPU.
    Cpu,
}

/// Makes the file `config.pbtxt`, like those in `model_repository/`, with these parameters. Requests of a `decoupled` model
/// may have several responses.
///
/// The backend adds inputs, outputs and shapes from the checkpoint's pipeline.
pub fn config_pbtxt(pipeline: &str, kind: Kind, decoupled: bool, parameters: &Map<String, Value>) -> String {
    let (instances, kind) = match kind {
        Kind::Gpu => ("One instance on each GPU; weights are stored as float16", "KIND_GPU"),
        Kind::Cpu => ("One instance on the CPU; weights are stored as float32", "KIND_CPU"),
    };
    let unless = if parameters.contains_key("dtype") {
        " unless `dtype` is set"
    } else {
        ""
    };
    let mut text = format!(
        "# {pipeline}. Inputs and outputs are completed by the backend.\n\
         backend: \"diffusion\"\n\
         max_batch_size: 8\n\
         \n\
         # {instances}{unless}.\n\
         instance_group [{{ kind: {kind} }}]\n"
    );
    if decoupled {
        text.push_str("\n# Requests may ask for their progress.\nmodel_transaction_policy { decoupled: true }\n");
    }
    for (key, value) in parameters {
        let value = value.as_str().unwrap_or_default();
        text.push_str(&format!(
            "\nparameters {{ key: {} value: {{ string_value: {} }} }}\n",
            quoted(key),
            quoted(value)
        ));
    }
    text
}

/// Makes the file `configs/cpu.pbtxt`: the same model on the CPU, for `--model-config-name=cpu`.
pub fn cpu_pbtxt(pipeline: &str, decoupled: bool, parameters: &Map<String, Value>) -> String {
    let mut text = "# The same model on the CPU: tritonserver --model-config-name=cpu ...\n".to_owned();
    text.push_str(&config_pbtxt(pipeline, Kind::Cpu, decoupled, parameters));
    text
}

/// Quotes a string for the text format of protocol buffers.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => quoted.extend(['\\', char::from(byte)]),
            b' '..=b'~' => quoted.push(char::from(byte)),
            _ => quoted.push_str(&format!("\\{byte:03o}")),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_escapes_like_protobuf() {
        assert_eq!(quoted("{\"a\": 1}"), r#""{\"a\": 1}""#);
        assert_eq!(quoted("a\\b\n\u{e9}"), r#""a\\b\012\303\251""#);
    }
}
