//! What an error may quote of a name that a user chose: only names that SageMaker cannot read as a lack of memory.

use crate::suggest::MAX_NAME_BYTES;

/// Words in an error that make SageMaker's Triton front end answer 507, as far as an identifier can contain them.
const MEMORY_WORDS: [&str; 6] = [
    "OOM",
    "OutOfMemory",
    "OUT_OF_MEMORY",
    "MemoryError",
    "CUDNN_STATUS",
    "CUBLAS_STATUS",
];

/// Returns whether an error may quote a key of `gen_args`: 1 to 40 lower-case letters and underscores.
pub fn is_plain_key(key: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

/// Returns whether an error or a warning may quote the name of a tensor or a parameter in `config.pbtxt`: 1 to 40
/// letters, digits and underscores, without a word that SageMaker reads as a lack of memory.
pub fn is_plain_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !MEMORY_WORDS.iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_are_recognised() {
        for key in ["a", "num_steps", &"a".repeat(40)] {
            assert!(is_plain_key(key) && is_plain_name(key), "{key}");
        }
        for key in ["", "Seed", "a b", "OOM", "näher", "a1", &"a".repeat(41)] {
            assert!(!is_plain_key(key), "{key}");
        }
        assert!(is_plain_name("INPUT0"));
        for name in ["", "OOM", "my_OOM_x", "OutOfMemory", "CUDA_OUT_OF_MEMORY", "a b"] {
            assert!(!is_plain_name(name), "{name}");
        }
    }
}
