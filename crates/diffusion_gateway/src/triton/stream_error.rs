//! The code of an error in a stream.
//!
//! Triton's streams carry the words of an error without its code. The header `triton_grpc_error` asks for codes, but an
//! error ends Triton 2.51 with signal 11 then. So the words decide, which are those of this project's backend.

use tonic::{Code, Status};

/// Words, and the code of the errors that have them. The first that fits decides.
const CODES: [(&str, Code); 16] = [
    ("the request was cancelled", Code::Cancelled),
    ("out of memory", Code::Unavailable),
    ("the time limit of", Code::Unavailable),
    ("the instance", Code::Unavailable),
    ("the engine has ended", Code::Unavailable),
    ("a file of the weights can no longer be read", Code::Unavailable),
    ("maximum queue size", Code::Unavailable),
    ("server is stopping", Code::Unavailable),
    ("unknown model", Code::NotFound),
    ("is not ready", Code::NotFound),
    ("not supported", Code::Unimplemented),
    ("gen_args", Code::InvalidArgument),
    ("input ", Code::InvalidArgument),
    ("inference input", Code::InvalidArgument),
    ("lora", Code::InvalidArgument),
    // The name of an argument.
    ("`", Code::InvalidArgument),
];

/// Makes the status of an error's message.
pub fn status(message: String) -> Status {
    // The backend's messages begin with the model's name.
    let words = match message.strip_prefix("model '").and_then(|rest| rest.split_once("': ")) {
        Some((_, words)) => words,
        None => &message,
    };
    let lower = words.to_lowercase();
    let found = CODES.iter().find(|(words, _)| lower.contains(words));
    let code = found.map_or(Code::Unknown, |(_, code)| *code);
    Status::new(code, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_backend_and_of_triton_have_their_codes() {
        for (message, code) in [
            (
                "model 'sd': gen_args: `n` must be an integer from 1 to 8",
                Code::InvalidArgument,
            ),
            ("model 'sd': input `image`: the file is damaged", Code::InvalidArgument),
            (
                "model 'sd': gen_args: loras: no LoRA of this name",
                Code::InvalidArgument,
            ),
            ("unexpected inference input 'x' for model 'sd'", Code::InvalidArgument),
            (
                "model 'sd': output `generated_image`: GPU memory is not supported",
                Code::Unimplemented,
            ),
            (
                "model 'sd': out of memory: the request needs 3 MiB, but only 2 MiB are available",
                Code::Unavailable,
            ),
            (
                "model 'sd': the time limit of 1.000 s passed after 3 of 9 UNet calls",
                Code::Unavailable,
            ),
            ("model 'sd': the instance is being removed", Code::Unavailable),
            ("Exceeds maximum queue size", Code::Unavailable),
            ("model 'sd': the request was cancelled", Code::Cancelled),
            ("Request for unknown model: 'sd' is not found", Code::NotFound),
            ("model 'sd': libtorch failed", Code::Unknown),
            // The name decides nothing.
            ("model 'out of memory': libtorch failed", Code::Unknown),
        ] {
            let status = status(message.to_owned());
            assert_eq!((status.code(), status.message()), (code, message));
        }
    }
}
