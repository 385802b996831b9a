//! Suggestions for unknown names.

/// Longest name that is compared or quoted, in bytes. The comparison takes time in proportion to its square.
pub(crate) const MAX_NAME_BYTES: usize = 40;

/// Returns the member of `known` with the fewest edits from `name`, if they are few enough for a typo: at most a third
/// of the letters of the longer name. Letter case, and `-` for `_`, do not count. `None` for a name of more than 40
/// bytes.
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

/// Returns the end of an error that names the nearest known name, such as ``; did you mean `seed`?``; empty if there is
/// none.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, known).map_or_else(String::new, |k| format!("; did you mean `{k}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 5] = ["num_inference_steps", "height", "seed", "eta", "sigmas"];

    #[test]
    fn nearest_of_a_typo_is_its_key() {
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
        assert_eq!(did_you_mean("sed", KNOWN), "; did you mean `seed`?");
    }

    #[test]
    fn nearest_of_another_word_is_none() {
        for word in ["", "xx", "loras", "controlnet", &"s".repeat(41)] {
            assert_eq!(nearest(word, KNOWN), None, "{word}");
            assert_eq!(did_you_mean(word, KNOWN), "", "{word}");
        }
    }
}
