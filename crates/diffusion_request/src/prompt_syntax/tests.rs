#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use super::*;
use proptest::prelude::*;
use std::time::{Duration, Instant};

fn parsed(prompt: &str) -> Vec<(String, f64)> {
    parse_weighted(prompt).unwrap()
}

fn fragments(expected: &[(&str, f64)]) -> Vec<(String, f64)> {
    expected
        .iter()
        .map(|&(text, weight)| (text.to_owned(), weight))
        .collect()
}

/// Results of `parse_prompt_attention`, to the last bit.
#[test]
fn weights_equal_those_of_diffusers() {
    let cases: &[(&str, &[(&str, f64)])] = &[
        ("", &[("", 1.0)]),
        ("normal text", &[("normal text", 1.0)]),
        (
            "an (important) word",
            &[("an ", 1.0), ("important", 1.1), (" word", 1.0)],
        ),
        ("[less] so", &[("less", 1.0 / 1.1), (" so", 1.0)]),
        ("(a:1.3)(b:.5)", &[("a", 1.3), ("b", 0.5)]),
        ("(a:+2.)(b:-1)", &[("a", 2.0), ("b", -1.0)]),
        ("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            &[
                ("a ", 1.0),
                ("house", 1.573_000_000_000_000_4),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.464_100_000_000_000_6),
                (".", 1.1),
            ],
        ),
        // Escapes.
        (r"\(literal\]", &[("(literal]", 1.0)]),
        (r"\\ \[ \) \( \]", &[(r"\ [ ) ( ]", 1.0)]),
        (r"a\b\", &[("ab", 1.0)]),
        (r"\\(a\\)", &[(r"\", 1.0), (r"a\", 1.1)]),
        // Unbalanced.
        ("(unbalanced", &[("unbalanced", 1.1)]),
        (
            "a ((b [c",
            &[("a ", 1.0), ("b ", 1.1 * 1.1), ("c", 1.1 * 1.1 * (1.0 / 1.1))],
        ),
        ("a) b] c", &[("a) b] c", 1.0)]),
        ("((((", &[("", 1.0)]),
        ("()[](:3)", &[("", 1.0)]),
        ("(a [b) c]", &[("a ", 1.1), ("b", 1.1 * (1.0 / 1.1)), (" c", 1.0 / 1.1)]),
        // Colons that are text.
        ("at 16:9:", &[("at 16:9:", 1.0)]),
        ("a:1.3)", &[("a:1.3)", 1.0)]),
        ("[a:1.3)", &[("a:1.3)", 1.0 / 1.1)]),
        ("(a:b)", &[("a:b", 1.1)]),
        ("(a: 1.3)", &[("a: 1.3", 1.1)]),
        ("(a:)", &[("a:", 1.1)]),
        ("(a:+)", &[("a:+", 1.1)]),
        ("(a:1.3 )", &[("a:1.3 ", 1.1)]),
        ("(a:1e3)", &[("a:1e3", 1.1)]),
        ("(猫:1.2) é", &[("猫", 1.2), (" é", 1.0)]),
        // An Arabic digit is text.
        ("(a:\u{661})", &[("a:\u{661}", 1.1)]),
    ];
    for (prompt, expected) in cases {
        assert_eq!(parsed(prompt), fragments(expected), "{prompt}");
    }
}

#[test]
fn weights_are_limited() {
    for prompt in [
        "(secret:10.01)",
        "(secret:-10.01)",
        "((secret:10))",
        "(secret:1.2.3)",
        "(secret:.)",
        "(secret:99999999999999999999)",
        &format!("(secret:{})", "9".repeat(400)),
        &format!("((secret:{}):0)", "9".repeat(400)),
        &format!("{}secret", "(".repeat(25)),
    ] {
        let error = parse_weighted(prompt).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{prompt}");
        let message = error.to_string();
        assert!(message.contains("`prompt_syntax`"), "{message}");
        assert!(message.contains("from -10 to 10"), "{message}");
        assert!(!message.contains("secret"), "{message}");
    }
    assert_eq!(parsed("(a:10)(b:-10)"), fragments(&[("a", 10.0), ("b", -10.0)]));
    assert_eq!(parsed("((a:20):0.5)"), fragments(&[("a", 10.0)]));
    // A weight of nothing harms nobody.
    assert_eq!(parsed("a(:99999)"), fragments(&[("a", 1.0)]));
    // Without an open bracket it is text, whatever its number.
    assert_eq!(parsed("a:1.2.3)"), fragments(&[("a:1.2.3)", 1.0)]));
}

#[test]
fn text_in_too_many_brackets_is_refused() {
    let nested = |depth: usize| {
        let half = depth / 2;
        format!("{}{}secret", "(".repeat(half), "[".repeat(depth - half))
    };
    let weight = parsed(&nested(MAX_DEPTH))[0].1;
    assert!((weight - 1.0).abs() < 1e-12, "{weight}");
    let message = parse_weighted(&nested(MAX_DEPTH + 1)).unwrap_err().to_string();
    assert!(message.contains("at most 128 brackets"), "{message}");
    assert!(!message.contains("secret"), "{message}");
}

/// A megabyte of each pattern: quadratic time would be hours.
#[test]
fn parse_time_is_linear() {
    let start = Instant::now();
    let count = 1 << 20;
    for pattern in [
        "(", "[", ")", "\\", ":", ":1", "(a:1", "(a)", "a(b)", "()", "([", ":1)", "(\\", "([)]", "(a:1)[b",
    ] {
        // Too deep is an answer too.
        let _ = parse_weighted(&pattern.repeat(count / pattern.len()));
    }
    for (open, close) in [("(", ")"), ("[", "]"), ("(", ":1)"), ("([", ")]")] {
        let _ = parse_weighted(&format!("{}a{}", open.repeat(count), close.repeat(count)));
        let wide = "(a)[b]".repeat(count / 6);
        let depth = (MAX_DEPTH - 1) / open.len();
        let nested = format!("{}{wide}{}", open.repeat(depth), close.repeat(depth));
        let _ = parse_weighted(&nested);
    }
    assert!(start.elapsed() < Duration::from_secs(30));
}

/// A prompt as a tree, with the expected fragments.
#[derive(Clone, Debug)]
enum Node {
    Text(String),
    Round(Vec<Node>),
    Square(Vec<Node>),
    Weighted(Vec<Node>, f64),
}

impl Node {
    fn write(&self, prompt: &mut String) {
        let (open, nodes, close) = match self {
            Self::Text(text) => {
                for c in text.chars() {
                    if r"\()[]".contains(c) {
                        prompt.push('\\');
                    }
                    prompt.push(c);
                }
                return;
            }
            Self::Round(nodes) => ('(', nodes, ")".to_owned()),
            Self::Square(nodes) => ('[', nodes, "]".to_owned()),
            Self::Weighted(nodes, weight) => ('(', nodes, format!(":{weight})")),
        };
        prompt.push(open);
        nodes.iter().for_each(|node| node.write(prompt));
        prompt.push_str(&close);
    }

    /// Adds each text with its weight; `around` has the factors of the enclosing brackets, innermost last.
    fn expect(&self, around: &[f64], expected: &mut Vec<(String, f64)>) {
        let (nodes, factor) = match self {
            Self::Text(text) => {
                let weight: f64 = around.iter().rev().product();
                if !text.is_empty() {
                    expected.push((text.clone(), weight));
                }
                return;
            }
            Self::Round(nodes) => (nodes, 1.1),
            Self::Square(nodes) => (nodes, 1.0 / 1.1),
            Self::Weighted(nodes, weight) => (nodes, *weight),
        };
        let around = [around, &[factor]].concat();
        nodes.iter().for_each(|node| node.expect(&around, expected));
    }
}

fn nodes() -> impl Strategy<Value = Vec<Node>> {
    // Without digits: "a:1" in round brackets would be a weight, and nothing escapes a colon.
    let text = prop_oneof!["[a-c: é猫()\\[\\]\\\\-]{0,8}", Just("a".to_owned())];
    let node = text.prop_map(Node::Text).prop_recursive(5, 40, 5, |inner| {
        let nodes = prop::collection::vec(inner, 0..5);
        prop_oneof![
            nodes.clone().prop_map(Node::Round),
            nodes.clone().prop_map(Node::Square),
            (nodes, -15i32..15).prop_map(|(nodes, w)| Node::Weighted(nodes, f64::from(w) / 10.0)),
        ]
    });
    prop::collection::vec(node, 0..6)
}

/// Merges neighbors of equal weight.
fn merged(fragments: Vec<(String, f64)>) -> Vec<(String, f64)> {
    let mut merged: Vec<(String, f64)> = Vec::new();
    for (text, weight) in fragments {
        match merged.last_mut() {
            Some(last) if last.1 == weight => last.0.push_str(&text),
            _ => merged.push((text, weight)),
        }
    }
    merged
}

proptest! {
    #[test]
    fn fragments_equal_those_of_the_tree(nodes in nodes()) {
        let (mut prompt, mut expected) = (String::new(), Vec::new());
        for node in &nodes {
            node.write(&mut prompt);
            node.expect(&[], &mut expected);
        }
        let mut expected = merged(expected);
        if expected.is_empty() {
            expected = fragments(&[("", 1.0)]);
        }
        prop_assert_eq!(parse_weighted(&prompt), Ok(expected));
    }

    #[test]
    fn parse_keeps_the_letters_of_any_text(prompt in "(\\PC|[()\\[\\]\\\\:.+1-]){0,60}") {
        let letters = |text: &str| -> String {
            text.chars().filter(|c| !r"()[]\:+-.".contains(*c) && !c.is_ascii_digit()).collect()
        };
        match parse_weighted(&prompt) {
            Ok(fragments) => {
                let text: String = fragments.iter().map(|(text, _)| text.as_str()).collect();
                prop_assert_eq!(letters(&text), letters(&prompt));
                prop_assert!(fragments.iter().all(|(_, weight)| weight.abs() <= MAX_WEIGHT));
                prop_assert!(fragments.windows(2).all(|pair| pair[0].1 != pair[1].1));
            }
            Err(error) => prop_assert!(matches!(error, Error::InvalidArgument(_))),
        }
    }

    #[test]
    fn text_without_syntax_is_one_fragment(prompt in "[^()\\[\\]\\\\]{0,60}") {
        prop_assert_eq!(parse_weighted(&prompt), Ok(fragments(&[(&prompt, 1.0)])));
    }
}
