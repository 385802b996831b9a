//! What an error may say about a name that nobody knows: the nearest known name, and the name itself only if it is
//! plain enough to be harmless.

/// Longest name that is compared or quoted, in bytes. The comparison takes time in proportion to its square.
const MAX_NAME_BYTES: usize = 40;

/// Words that SageMaker's Triton front end looks for in an error to answer 507, as far as an identifier can hold them.
const MEMORY_WORDS: [&str; 6] = [
    "OOM",
    "OutOfMemory",
    "OUT_OF_MEMORY",
    "MemoryError",
    "CUDNN_STATUS",
    "CUBLAS_STATUS",
];

/// True if an error may quote `key`, a `gen_args` key of a user: 1 to 40 lower-case letters and underscores.
pub fn is_plain_key(key: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

/// True if an error or a warning may quote `name`, a tensor or parameter name from a `config.pbtxt`: 1 to 40 letters,
/// digits and underscores, without a word that SageMaker reads as a lack of memory.
pub fn is_plain_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !MEMORY_WORDS.iter().any(|word| name.contains(word))
}

/// The member of `known` with the fewest edits from `name`, if that is few enough to be a typo: at most a third of the
/// longer name's letters. Letter case, and `-` for `_`, do not count. `None` for a name of more than 40 bytes.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return None;
    }
    let fold = |s: &str| s.to_lowercase().replace('-', "_");
    let name = fold(name);
    known
        .into_iter()
        .filter_map(|candidate| {
            let folded = fold(candidate);
            let edits = strsim::osa_distance(&name, &folded);
            (edits <= name.chars().count().max(folded.chars().count()) / 3).then_some((edits, candidate))
        })
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// A sentence part that names the nearest known name: `, did you mean \`seed\`?`, or nothing.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, known).map_or_else(String::new, |k| format!(", did you mean `{k}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 5] = ["num_inference_steps", "height", "seed", "eta", "sigmas"];

    #[test]
    fn a_typo_finds_its_key() {
        for (typo, key) in [
            ("num_inference_step", "num_inference_steps"),
            ("num_infernece_steps", "num_inference_steps"),
            ("Seed", "seed"),
            ("num-inference-steps", "num_inference_steps"),
            ("higth", "height"),
            ("sigma", "sigmas"),
        ] {
            assert_eq!(nearest(typo, KNOWN), Some(key), "{typo}");
        }
        assert_eq!(did_you_mean("sed", KNOWN), ", did you mean `seed`?");
    }

    #[test]
    fn another_word_finds_none() {
        for word in ["", "xx", "loras", "controlnet", &"s".repeat(41)] {
            assert_eq!(nearest(word, KNOWN), None, "{word}");
            assert_eq!(did_you_mean(word, KNOWN), "", "{word}");
        }
    }

    #[test]
    fn plain_names() {
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
