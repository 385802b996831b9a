//! Which unknown names an error or a warning may quote.
//!
//! Errors reach SageMaker's Triton front end, which answers 507 when a text looks like a lack of memory. So only short,
//! plain identifiers are quoted.

/// Longest name of a file that a request may name.
const MAX_FILE_NAME_BYTES: usize = 128;

/// Length limit of a quoted name, in bytes.
pub const MAX_NAME_BYTES: usize = 40;

/// Words that SageMaker's front end takes for a lack of memory, as far as an identifier can contain them.
const MEMORY_WORDS: [&str; 6] = [
    "OOM",
    "OutOfMemory",
    "OUT_OF_MEMORY",
    "MemoryError",
    "CUDNN_STATUS",
    "CUBLAS_STATUS",
];

/// Returns true if an error may quote `key`, a `gen_args` key: 1 to 40 lower-case letters and underscores.
pub fn is_plain_key(key: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

/// Returns true if a message may quote `name`, a tensor or parameter name from a `config.pbtxt`: 1 to 40 letters,
/// digits and underscores, without a word that SageMaker takes for a lack of memory.
pub fn is_plain_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !MEMORY_WORDS.iter().any(|word| name.contains(word))
}

/// Returns true if a request may name a file `name`: 1 to 128 letters, digits, `.`, `_` and `-`, not beginning with a
/// point, so that it is no path.
pub fn is_file_name(name: &str) -> bool {
    (1..=MAX_FILE_NAME_BYTES).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_name_rejects_memory_words_and_other_text() {
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
