#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
use super::*;
use PipelineClass::{
    Depth2Img, Img2Img, Img2ImgXl, Inpaint, InpaintXl, LatentConsistency, StableDiffusion, StableDiffusionXl, Upscale,
};
use proptest::prelude::*;

const MAX: usize = 64 << 10;

fn parse(text: &str) -> Result<GenArgs> {
    GenArgs::parse(text.as_bytes(), MAX)
}

fn message(text: &str) -> String {
    match parse(text) {
        Err(Error::InvalidArgument(message)) => message,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn every_key_is_parsed() {
    let text = r#"{"num_inference_steps": 20, "guidance_scale": 8, "height": 512, "width": 768, "strength": 0.8,
        "noise_level": 20, "num_images_per_prompt": 2, "eta": 0.5, "guidance_rescale": 1, "clip_skip": 2,
        "timesteps": [999, 500, 0], "sigmas": null, "padding_mask_crop": 32, "seed": 9223372036854775807,
        "scheduler": "DDIMScheduler", "output_format": "webp", "quality": 90, "keep_unmasked": true,
        "prompt_syntax": "weighted", "deep_cache": 3, "decoder": "tiny", "timeout_ms": 60000,
        "loras": [{"name": "style", "scale": 0.5}],
        "progress_every": 5, "preview": "tiny", "describe": false, "prompt_2": "a dog", "negative_prompt_2": "",
        "original_size": [1024, 768], "crops_coords_top_left": [0, 16], "target_size": [512, 512],
        "negative_original_size": [1, 65536], "negative_crops_coords_top_left": [0, 0],
        "negative_target_size": [64, 64]}"#;
    let expected = GenArgs {
        num_inference_steps: Some(20),
        guidance_scale: Some(8.0),
        height: Some(512),
        width: Some(768),
        strength: Some(0.8),
        noise_level: Some(20),
        num_images_per_prompt: Some(2),
        eta: Some(0.5),
        guidance_rescale: Some(1.0),
        clip_skip: Some(2),
        timesteps: Some(vec![999, 500, 0]),
        sigmas: None,
        padding_mask_crop: Some(32),
        seed: Some(i64::MAX as u64),
        scheduler: Some("DDIMScheduler".into()),
        output_format: Some(Format::Webp),
        quality: Some(90),
        keep_unmasked: Some(true),
        prompt_syntax: Some(PromptSyntax::Weighted),
        deep_cache: Some(3),
        decoder: Some(Decoder::Tiny),
        timeout_ms: Some(60_000),
        loras: Some(vec![LoraRequest {
            name: "style".into(),
            scale: 0.5,
            text_encoder_scale: 0.5,
        }]),
        progress_every: Some(5),
        preview: Some(Preview::Tiny),
        describe: Some(false),
        prompt_2: Some("a dog".into()),
        negative_prompt_2: Some(String::new()),
        original_size: Some([1024, 768]),
        crops_coords_top_left: Some([0, 16]),
        target_size: Some([512, 512]),
        negative_original_size: Some([1, 65536]),
        negative_crops_coords_top_left: Some([0, 0]),
        negative_target_size: Some([64, 64]),
    };
    assert_eq!(parse(text).unwrap(), expected);
    let sigmas = parse(r#"{"sigmas": [14.6, 1, 0.03]}"#).unwrap().sigmas;
    assert_eq!(sigmas, Some(vec![14.6, 1.0, 0.03]));
    for key in &KEYS {
        assert!(text.contains(&format!("\"{}\"", key.name)));
    }
}

#[test]
fn absent_and_null_keys_are_the_default() {
    for text in ["", "  \n", "{}", r#"{"height": 0, "width": null}"#] {
        assert_eq!(parse(text).unwrap(), GenArgs::default(), "{text}");
    }
    for key in &KEYS {
        let text = format!(r#"{{"{}": null}}"#, key.name);
        assert_eq!(parse(&text).unwrap(), GenArgs::default(), "{text}");
    }
}

/// Compares [`KEYS`] with the table in docs/usage.md: the names, and which keys are for all pipelines.
#[test]
fn keys_equal_those_of_the_documentation() {
    let page = include_str!("../../../../docs/usage.md");
    let section = page.split("\n### gen_args\n").nth(1).unwrap();
    let rows = section.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
    let mut documented = Vec::new();
    for row in rows.take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let names = cells[1].split(", ").map(|name| name.trim_matches('`'));
        documented.extend(names.map(|name| (name, cells[2] == "all")));
    }
    let for_all = |key: &Key| PipelineClass::ALL.iter().all(|&class| key.is_supported_by(class));
    let mut keys: Vec<_> = KEYS.iter().map(|key| (key.name, for_all(key))).collect();
    documented.sort_unstable();
    keys.sort_unstable();
    assert_eq!(keys, documented);
}

/// Python reads a float as the nearest one; serde_json does only with its feature `float_roundtrip`.
#[test]
fn floats_are_rounded_to_nearest() {
    let text = r#"{"guidance_scale": 12.139449357354895}"#;
    let given = parse(text).unwrap().guidance_scale;
    assert_eq!(given, Some(12.139449357354895));
}

#[test]
fn wrong_values_name_the_key_and_its_limits() {
    for (name, values) in [
        ("num_inference_steps", "0 1001 -1 50.0 1e2 \"50\" true [] {}"),
        ("guidance_scale", "-0.1 100.5 \"7\" true [7]"),
        ("height", "4 511 -8 512.0 \"512\" false"),
        ("width", "7 true"),
        ("strength", "-0.1 1.1 \"a\""),
        ("noise_level", "-1 351 20.5"),
        ("num_images_per_prompt", "0 257 1.0"),
        ("eta", "-1 1.01 null_"),
        ("guidance_rescale", "2 true"),
        ("clip_skip", "-1 1.5"),
        ("timesteps", "[] 5 [1,2] [5,5] [1000] [-1] [1.0] [true] [null] \"1\""),
        ("sigmas", "[] 5 [0] [-1] [10001] [\"1\"] [1e-400] {}"),
        ("padding_mask_crop", "-1 1.0 65537"),
        ("seed", "-1 9223372036854775808 1.0 -0 \"1\" true"),
        ("scheduler", "5 true [] {}"),
        ("output_format", "\"PNG\" \"jpg\" 1 true"),
        ("quality", "0 101 75.0"),
        ("keep_unmasked", "0 1 \"true\""),
        ("prompt_syntax", "\"compel\" 1"),
        ("deep_cache", "0 11 -1 2.0 \"3\" true [2]"),
        ("loras", "0 {} \"style\" [0] [{}] [{\"name\":\"a/b\"}]"),
        ("decoder", "\"taesd\" \"\" 1 true"),
        ("timeout_ms", "0 -1 1.5 86400001"),
        ("progress_every", "-1 1001 true"),
        ("preview", "1 true false \"no\""),
        ("describe", "1 \"true\""),
        ("prompt_2", "1 [] true"),
        ("target_size", "512 [512] [1,2,3] [0,1] [1,65537] [1.0,2] \"1x2\""),
        ("crops_coords_top_left", "[-1,0] [0]"),
    ] {
        let key = KEYS.iter().find(|key| key.name == name).unwrap();
        for value in values.split(' ').filter(|v| *v != "null_") {
            let text = format!(r#"{{"{name}": {value}}}"#);
            let expected = format!("`{name}` must be {}", key.expects());
            assert_eq!(message(&text), expected, "{text}");
        }
    }
    let long = vec!["1"; 1001].join(",");
    assert!(message(&format!(r#"{{"sigmas": [{long}]}}"#)).contains("1 to 1000 numbers"));
}

#[test]
fn expects_describes_the_limits() {
    for (name, takes) in [
        ("num_inference_steps", "an integer from 1 to 1000"),
        ("guidance_scale", "a number from 0 to 100"),
        ("height", "an integer that is a multiple of 8"),
        ("seed", "an integer from 0 to 9223372036854775807"),
        ("output_format", "one of png, jpeg, webp"),
        ("prompt_syntax", "one of plain, weighted"),
        ("deep_cache", "an integer from 1 to 10"),
        ("decoder", "one of vae, tiny"),
        (
            "timesteps",
            "a list of 1 to 1000 integers from 0 to 999, strictly descending",
        ),
        ("sigmas", "a list of 1 to 1000 numbers above 0 and at most 10000"),
    ] {
        let key = KEYS.iter().find(|key| key.name == name).unwrap();
        assert_eq!(key.expects(), takes);
    }
}

#[test]
fn unknown_and_duplicate_keys_are_refused() {
    assert_eq!(
        message(r#"{"num_inference_step": 5}"#),
        "unknown key `num_inference_step`; did you mean `num_inference_steps`?"
    );
    assert_eq!(message(r#"{"control": 5}"#), "unknown key `control`");
    assert_eq!(message(r#"{"Seed": 5}"#), "an unknown key; did you mean `seed`?");
    assert_eq!(message(r#"{"OOM now": 5}"#), "an unknown key");
    assert_eq!(message(r#"{"": 5}"#), "an unknown key");
    assert_eq!(message(&format!(r#"{{"{}": 5}}"#, "a".repeat(41))), "an unknown key");
    assert_eq!(
        message(r#"{"prompt": "a cat"}"#),
        "`prompt` is an input tensor, not a key of gen_args"
    );
    assert_eq!(message(r#"{"seed": 5, "seed": 5}"#), "`seed` is given twice");
    assert_eq!(message(r#"{"seed": null, "s\u0065ed": 5}"#), "`seed` is given twice");
    assert_eq!(
        message(r#"{"sigmas": [1], "timesteps": [1]}"#),
        "only one of `timesteps` and `sigmas` can be given"
    );
}

#[test]
fn text_that_is_no_object() {
    for text in ["[]", "5", "\"a\"", "null", "true"] {
        assert_eq!(message(text), "must be one JSON object", "{text}");
    }
    for text in [
        "{",
        "{a}",
        "{\"seed\": 5} x",
        "{\"seed\": NaN}",
        "{\"eta\": 1e999}",
        "{'a': 1}",
    ] {
        let message = message(text);
        assert!(message.starts_with("not valid JSON at line 1, column "), "{message}");
    }
    let deep = format!("{{\"seed\": {}{}}}", "[".repeat(5000), "]".repeat(5000));
    assert!(message(&deep).starts_with("not valid JSON"));
    assert!(GenArgs::parse(b"{\"scheduler\": \"\xff\"}", MAX).is_err());
    let long = format!("{}{{}}", " ".repeat(MAX));
    assert_eq!(message(&long), "65538 bytes exceed the limit of 65536");
    assert!(parse(&long[2..]).is_ok());
}

#[test]
fn keys_of_other_pipelines_are_refused() {
    let xl = "prompt_2 negative_prompt_2 original_size crops_coords_top_left target_size negative_original_size \
              negative_crops_coords_top_left negative_target_size";
    let cases = [
        (
            StableDiffusion,
            "strength noise_level padding_mask_crop keep_unmasked",
            xl,
        ),
        (
            LatentConsistency,
            "strength noise_level guidance_rescale sigmas padding_mask_crop keep_unmasked",
            xl,
        ),
        (
            Depth2Img,
            "height width noise_level guidance_rescale timesteps sigmas padding_mask_crop keep_unmasked",
            xl,
        ),
        (Inpaint, "noise_level guidance_rescale", xl),
        (
            Upscale,
            "height width strength guidance_rescale timesteps sigmas padding_mask_crop keep_unmasked deep_cache decoder",
            xl,
        ),
        (
            Img2Img,
            "height width noise_level guidance_rescale padding_mask_crop keep_unmasked",
            xl,
        ),
        (
            StableDiffusionXl,
            "strength noise_level padding_mask_crop keep_unmasked prompt_syntax loras",
            "",
        ),
        (
            Img2ImgXl,
            "height width noise_level padding_mask_crop keep_unmasked prompt_syntax loras",
            "",
        ),
        (InpaintXl, "noise_level prompt_syntax loras", ""),
    ];
    assert_eq!(cases.len(), PipelineClass::ALL.len());
    for (class, refused, family) in cases {
        let not_taken: Vec<_> = KEYS
            .iter()
            .filter(|key| !key.is_supported_by(class))
            .map(|key| key.name)
            .collect();
        let expected: Vec<&str> = refused.split_whitespace().chain(family.split_whitespace()).collect();
        assert_eq!(not_taken, expected, "{class}");
    }
    let args = parse(r#"{"strength": 0.5}"#).unwrap();
    assert_eq!(
        args.check_supported_by(&[StableDiffusion]),
        Err(Error::invalid_argument(
            "`strength` is not supported by StableDiffusionPipeline"
        ))
    );
    args.check_supported_by(&[Depth2Img]).unwrap();
}

#[test]
fn defaults_fill_absent_keys() {
    let defaults =
        parse(r#"{"num_inference_steps": 25, "guidance_scale": 5, "seed": 7, "output_format": "jpeg", "quality": 60}"#)
            .unwrap();
    let filled = parse(r#"{"seed": 8, "guidance_scale": null}"#)
        .unwrap()
        .with_defaults(&defaults);
    assert_eq!(
        filled,
        GenArgs {
            seed: Some(8),
            ..defaults.clone()
        }
    );
    let own = parse(r#"{"timesteps": [9, 3], "output_format": "png"}"#).unwrap();
    let filled = own.with_defaults(&defaults);
    assert_eq!(filled.num_inference_steps, None);
    assert_eq!(filled.quality, None);
    assert_eq!(filled.guidance_scale, Some(5.0));
    let same = parse(r#"{"output_format": "jpeg"}"#).unwrap().with_defaults(&defaults);
    assert_eq!(same.quality, Some(60));
}

/// A text that no error may contain; no word of the errors has these letters in this order.
const MARKER: &str = "QZXJ";

fn hostile() -> impl Strategy<Value = Value> {
    let text = "[ a-z0-9]{0,4}QZXJ[ -~]{0,4}";
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((text, inner), 0..4).prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn errors_hold_no_text_of_the_user(
        known in prop::collection::vec((0..KEYS.len(), hostile()), 0..4),
        own in prop::collection::vec(("[A-Za-z_]{0,3}QZXJ[ -~]{0,30}", hostile()), 0..2),
        cut in 0.0..2.0f64,
    ) {
        let known = known.into_iter().map(|(i, value)| (KEYS[i].name.to_owned(), value));
        let object: serde_json::Map<String, Value> = known.chain(own).collect();
        let mut text = Value::Object(object).to_string();
        // Half of the cases are cut short, to reach the errors of the JSON parser.
        if cut < 1.0 {
            text.truncate((text.len() as f64 * cut) as usize);
        }
        if let Err(error) = parse(&text) {
            prop_assert!(!error.to_string().contains(MARKER), "{error}");
        }
    }

    #[test]
    fn parser_accepts_any_bytes_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = GenArgs::parse(&bytes, MAX);
    }

    #[test]
    fn unknown_key_is_quoted_only_if_plain(name in "[ -~]{0,50}") {
        prop_assume!(KEYS.iter().all(|key| key.name != name) && !name.trim().is_empty());
        let text = Value::Object([(name.clone(), Value::Null)].into_iter().collect()).to_string();
        let message = message(&text);
        let quoted = message.contains(&format!("`{name}`"));
        prop_assert_eq!(quoted, is_plain_key(&name), "{}", message);
    }
}
