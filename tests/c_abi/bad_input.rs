//! Bad input of every kind: refused with the right code, by the name of what is wrong, without the
//! user's text, and alone.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};
use triton_api::{DataType, ErrorCode, MemoryType};
use triton_fake::{FakeInstance, FakeServer, RequestBuilder};

use crate::support::*;

fn assert_refused(
    server: &FakeServer,
    instance: &FakeInstance<'_>,
    case: &str,
    builder: RequestBuilder,
    code: ErrorCode,
    words: &[&str],
) {
    let request = builder.output(OUTPUT).build();
    instance.execute(&[&request]).unwrap();
    let (found, message) = refusal(&request);
    assert_eq!(found, code, "{case}: {message}");
    assert!(
        !message.to_lowercase().contains("memory") || case.contains("memory"),
        "{case}: {message}"
    );
    assert!(!message.contains("OOM"), "{case}: {message}");
    println!("{case}: {message}");
    assert_says(&message, words);
    assert_serves(server, instance);
}

#[test]
fn tensors() {
    type Build = fn(RequestBuilder) -> RequestBuilder;
    const INVALID: ErrorCode = ErrorCode::InvalidArg;
    fn bytes(length: u32, text: &str) -> Vec<u8> {
        [&length.to_le_bytes(), text.as_bytes()].concat()
    }
    let cases: [(&str, Build, ErrorCode, &[&str]); 26] = [
        ("no inputs", |b| b, INVALID, &["prompt", "missing"]),
        (
            "no prompt",
            |b| b.bytes_input("negative_prompt", &[1, 1], &[MARKER]),
            INVALID,
            &["prompt", "missing"],
        ),
        (
            "two elements in a batch element",
            |b| b.bytes_input("prompt", &[1, 2], &[MARKER, "b"]),
            INVALID,
            &["prompt", "exactly one element"],
        ),
        (
            "no batch elements",
            |b| b.bytes_input::<&str>("prompt", &[0, 1], &[]),
            INVALID,
            &["prompt", "1 to 8"],
        ),
        (
            "no elements",
            |b| b.bytes_input::<&str>("prompt", &[1, 0], &[]),
            INVALID,
            &["prompt", "exactly one element"],
        ),
        (
            "no dimensions",
            |b| b.bytes_input("prompt", &[], &[MARKER]),
            INVALID,
            &["prompt", "1 to 8"],
        ),
        (
            "more batch elements than max_batch_size",
            |b| b.bytes_input("prompt", &[9, 1], &[MARKER; 9]),
            INVALID,
            &["prompt", "1 to 8"],
        ),
        (
            "a negative dimension",
            |b| b.bytes_input("prompt", &[1, -1], &[MARKER]),
            INVALID,
            &["prompt", "shape"],
        ),
        (
            "a shape beyond counting",
            |b| b.bytes_input("prompt", &[i64::MAX, i64::MAX], &[MARKER]),
            INVALID,
            &["prompt"],
        ),
        (
            "a wrong datatype",
            |b| b.raw_input("prompt", DataType::Int32, &[1, 1], &[0; 4]),
            INVALID,
            &["prompt", "BYTES"],
        ),
        (
            "a wrong datatype of an optional input",
            |b| {
                b.bytes_input("prompt", &[1, 1], &[MARKER])
                    .raw_input("gen_args", DataType::Fp32, &[1, 1], &[0; 4])
            },
            INVALID,
            &["gen_args", "BYTES"],
        ),
        (
            "a length that is cut short",
            |b| b.raw_input("prompt", DataType::Bytes, &[1, 1], &[9, 0]),
            INVALID,
            &["prompt", "length"],
        ),
        (
            "an element that is cut short",
            |b| b.raw_input("prompt", DataType::Bytes, &[1, 1], &bytes(100, MARKER)),
            INVALID,
            &["prompt", "100 bytes"],
        ),
        (
            "a length of 4 GiB",
            |b| b.raw_input("prompt", DataType::Bytes, &[1, 1], &bytes(u32::MAX, MARKER)),
            INVALID,
            &["prompt", "4294967295"],
        ),
        (
            "bytes after the last element",
            |b| b.raw_input("prompt", DataType::Bytes, &[1, 1], &bytes(1, MARKER)),
            INVALID,
            &["prompt", "follow"],
        ),
        (
            "no bytes at all",
            |b| b.raw_input("prompt", DataType::Bytes, &[1, 1], &[]),
            INVALID,
            &["prompt"],
        ),
        (
            "a size that is not the buffers'",
            |b| b.bytes_input("prompt", &[1, 1], &[MARKER]).claimed_size(u64::MAX),
            INVALID,
            &["prompt", "65536"],
        ),
        (
            "a prompt that is no UTF-8",
            |b| b.bytes_input("prompt", &[1, 1], &[b"zebra \xff\xfe"]),
            INVALID,
            &["prompt", "UTF-8 at byte 6"],
        ),
        (
            "a negative prompt that is no UTF-8",
            |b| {
                b.bytes_input("prompt", &[1, 1], &[MARKER])
                    .bytes_input("negative_prompt", &[1, 1], &[b"\xc3"])
            },
            INVALID,
            &["negative_prompt", "UTF-8 at byte 0"],
        ),
        (
            "a prompt that is too long",
            |b| b.bytes_input("prompt", &[1, 1], &[MARKER.repeat(4000)]),
            INVALID,
            &["prompt", "65536"],
        ),
        (
            "a long prompt next to a short one",
            |b| b.bytes_input("prompt", &[2, 1], &["a".repeat(65_537), MARKER.to_owned()]),
            INVALID,
            &["batch element 0", "prompt", "65537", "65536"],
        ),
        (
            "fewer gen_args than prompts",
            |b| {
                b.bytes_input("prompt", &[2, 1], &[MARKER, "b"])
                    .bytes_input("gen_args", &[1, 1], &["{}"])
            },
            INVALID,
            &["gen_args", "1 batch element(s)", "`prompt` has 2"],
        ),
        (
            "an input of another pipeline",
            |b| {
                b.bytes_input("prompt", &[1, 1], &[MARKER])
                    .bytes_input("depth_map", &[1, 1], &[MARKER])
            },
            INVALID,
            &["input", "prompt, negative_prompt, image, mask_image, gen_args"],
        ),
        (
            "a mask without an image",
            |b| {
                b.bytes_input("prompt", &[1, 1], &[MARKER])
                    .bytes_input("mask_image", &[1, 1], &[MARKER])
            },
            INVALID,
            &["`mask_image`", "`image`"],
        ),
        (
            "an image that is none",
            |b| {
                b.bytes_input("prompt", &[1, 1], &[MARKER])
                    .bytes_input("image", &[1, 1], &[MARKER])
            },
            INVALID,
            &["input `image`", "known format"],
        ),
        (
            "GPU memory",
            |b| b.bytes_input("prompt", &[1, 1], &[MARKER]).memory(MemoryType::Gpu),
            ErrorCode::Unsupported,
            &["prompt", "GPU memory"],
        ),
    ];
    serve(|server, instance| {
        for (case, build, code, words) in cases {
            assert_refused(server, instance, case, build(server.request()), code, words);
        }
    });
}

/// Validation reads the header only; the pixels are decoded when the job is prepared.
#[test]
fn truncated_pixels_name_their_input() {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, 64, 64);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[9; 64 * 64 * 3]).unwrap();
    writer.finish().unwrap();
    let whole = BASE64_STANDARD.encode(&file);
    let truncated = BASE64_STANDARD.encode(&file[..file.len() - 20]);
    serve(|server, instance| {
        for (input, image, mask_image) in [("image", &truncated, &whole), ("mask_image", &whole, &truncated)] {
            let builder = server
                .request()
                .bytes_input("prompt", &[1, 1], &[MARKER])
                .bytes_input("image", &[1, 1], &[image])
                .bytes_input("mask_image", &[1, 1], &[mask_image]);
            let words = &[&*format!("input `{input}`"), "the PNG is damaged or truncated"];
            assert_refused(server, instance, input, builder, ErrorCode::InvalidArg, words);
        }
    });
}

#[test]
fn gen_args() {
    const INVALID: ErrorCode = ErrorCode::InvalidArg;
    let cases: &[(&str, ErrorCode, &[&str])] = &[
        (r#"{"seed": "zebra"#, INVALID, &["not valid JSON", "line 1"]),
        (r#"["zebra"]"#, INVALID, &["one JSON object"]),
        (r#""zebra""#, INVALID, &["one JSON object"]),
        (
            r#"{"num_infernece_steps": "zebra"}"#,
            INVALID,
            &["did you mean `num_inference_steps`?"],
        ),
        (r#"{"zebra OOM out of memory": 1}"#, INVALID, &["an unknown key"]),
        (r#"{"prompt": "zebra"}"#, INVALID, &["`prompt` is an input tensor"]),
        (r#"{"seed": 1, "seed": 2}"#, INVALID, &["`seed` is given twice"]),
        (r#"{"seed": "zebra"}"#, INVALID, &["`seed`", "integer from 0"]),
        (r#"{"seed": -1}"#, INVALID, &["`seed`"]),
        (
            r#"{"seed": 9223372036854775808}"#,
            INVALID,
            &["`seed`", "9223372036854775807"],
        ),
        (
            r#"{"num_inference_steps": 2.0}"#,
            INVALID,
            &["`num_inference_steps`", "1 to 1000"],
        ),
        (
            r#"{"num_inference_steps": 0}"#,
            INVALID,
            &["`num_inference_steps`", "1 to 1000"],
        ),
        (
            r#"{"num_inference_steps": 1001}"#,
            INVALID,
            &["`num_inference_steps`", "1 to 1000"],
        ),
        (
            r#"{"guidance_scale": {"zebra": 1}}"#,
            INVALID,
            &["`guidance_scale`", "number from 0 to 100"],
        ),
        (r#"{"guidance_scale": 1e999}"#, INVALID, &["gen_args"]),
        (r#"{"height": 65}"#, INVALID, &["`height`", "multiple of 8"]),
        (r#"{"width": -8}"#, INVALID, &["`width`", "multiple of 8"]),
        (
            r#"{"height": 4096, "width": 4096}"#,
            INVALID,
            &["`height` 4096", "max_pixels 4194304"],
        ),
        (
            r#"{"height": 9223372036854775800, "width": 8}"#,
            INVALID,
            &["`height`", "max_pixels"],
        ),
        (
            r#"{"num_images_per_prompt": 9}"#,
            INVALID,
            &["`num_images_per_prompt`", "max_unet_batch_size 16"],
        ),
        (
            r#"{"num_images_per_prompt": 17, "guidance_scale": 1}"#,
            INVALID,
            &["`num_images_per_prompt`", "max_unet_batch_size 16"],
        ),
        (r#"{"clip_skip": 99}"#, INVALID, &["`clip_skip`", "0 to 4"]),
        (
            r#"{"scheduler": "zebra"}"#,
            INVALID,
            &["`scheduler`", "DDIMScheduler", "PNDMScheduler"],
        ),
        (
            r#"{"scheduler": "DDIMSchedular"}"#,
            INVALID,
            &["`scheduler`", "did you mean `DDIMScheduler`?"],
        ),
        (r#"{"eta": 0.5}"#, INVALID, &["eta", "PNDMScheduler"]),
        (r#"{"eta": 2}"#, INVALID, &["`eta`", "0 to 1"]),
        (r#"{"sigmas": [2.0, 1.0]}"#, INVALID, &["sigmas", "PNDMScheduler"]),
        (
            r#"{"sigmas": [2.0], "timesteps": [9]}"#,
            INVALID,
            &["`timesteps`", "`sigmas`"],
        ),
        (r#"{"timesteps": [9, 5, 1]}"#, INVALID, &["timesteps", "PNDMScheduler"]),
        (
            r#"{"timesteps": [9, 5, 1], "scheduler": "DDIMScheduler"}"#,
            INVALID,
            &["timesteps", "DDIMScheduler"],
        ),
        (r#"{"timesteps": [1, 5, 9]}"#, INVALID, &["`timesteps`", "descending"]),
        (r#"{"timesteps": ["zebra"]}"#, INVALID, &["`timesteps`"]),
        (
            r#"{"strength": 0.5}"#,
            INVALID,
            &["`strength` is not supported by StableDiffusionPipeline"],
        ),
        (
            r#"{"noise_level": 20}"#,
            INVALID,
            &["`noise_level` is not supported by StableDiffusionPipeline"],
        ),
        (
            r#"{"keep_unmasked": true}"#,
            INVALID,
            &["`keep_unmasked` is not supported by"],
        ),
        (
            r#"{"output_format": "zebra"}"#,
            INVALID,
            &["`output_format`", "png, jpeg, webp"],
        ),
        (r#"{"quality": 50}"#, INVALID, &["`quality`", "jpeg or webp"]),
        (
            r#"{"prompt_syntax": "zebra"}"#,
            INVALID,
            &["`prompt_syntax`", "plain, weighted"],
        ),
        (
            r#"{"progress_every": 5}"#,
            ErrorCode::InvalidArg,
            &["`progress_every`", "decoupled: true"],
        ),
        (
            r#"{"preview": true}"#,
            ErrorCode::InvalidArg,
            &["`preview`", "one of off, linear"],
        ),
    ];
    serve(|server, instance| {
        let with = |args: &[u8]| {
            let builder = server.request().bytes_input("prompt", &[1, 1], &[MARKER]);
            builder.bytes_input("gen_args", &[1, 1], &[args])
        };
        for (args, code, words) in cases {
            assert_refused(server, instance, args, with(args.as_bytes()), *code, words);
        }
        for (input, other) in [("prompt", "negative_prompt"), ("negative_prompt", "prompt")] {
            let builder = server
                .request()
                .bytes_input(input, &[1, 1], &["(zebra:11)"])
                .bytes_input(other, &[1, 1], &["(a:1.5)"])
                .bytes_input("gen_args", &[1, 1], &[r#"{"prompt_syntax": "weighted"}"#]);
            let words = &[input, "`prompt_syntax` weighted", "from -10 to 10"];
            assert_refused(server, instance, input, builder, INVALID, words);
        }
        assert_refused(
            server,
            instance,
            "not UTF-8",
            with(b"{\"\xff"),
            INVALID,
            &["gen_args", "UTF-8 at byte 2"],
        );
        let long = format!("{{\"seed\": 1{}}}", " ".repeat(65_536));
        assert_refused(
            server,
            instance,
            "too long",
            with(long.as_bytes()),
            INVALID,
            &["gen_args", "65536"],
        );
        let deep = "[".repeat(60_000);
        assert_refused(
            server,
            instance,
            "too deep",
            with(deep.as_bytes()),
            INVALID,
            &["gen_args"],
        );
    });
}

#[test]
fn inputs_of_different_batch_sizes() {
    serve(|server, instance| {
        let args = |images: u32| json!({"num_images_per_prompt": images, "num_inference_steps": 1});
        let request = infer_elements(server, &[MARKER, "b"], &[args(1), args(2)]);
        instance.execute(&[&request]).unwrap();
        let (code, message) = refusal(&request);
        assert_eq!(code, ErrorCode::InvalidArg);
        assert_says(&message, &["num_images_per_prompt", "same in all batch elements"]);
        assert_serves(server, instance);
    });
}

#[test]
fn limits_of_the_model() {
    serve_as(
        |spec| {
            spec.parameter("max_steps", "5")
                .parameter("max_pixels", "4096")
                .parameter("default_gen_args", r#"{"num_inference_steps": 2}"#)
        },
        |server, instance| {
            let cases = [
                (json!({"num_inference_steps": 6}), "max_steps 5"),
                (json!({"width": 72}), "max_pixels 4096"),
            ];
            for (args, words) in cases {
                let request = ask(server, &args);
                instance.execute(&[&request]).unwrap();
                let (code, message) = refusal(&request);
                assert_eq!(code, ErrorCode::InvalidArg);
                assert_says(&message, &[words]);
                assert_serves(server, instance);
            }
        },
    );
}

/// Bad elements that are found at once, and bad elements that are found when their work begins.
#[test]
fn a_bad_row_fails_its_request_and_no_other() {
    serve(|server, instance| {
        for bad in [json!({"height": 65}), json!({"eta": 0.5})] {
            let args: [Value; 3] = [good_args(), bad, good_args()];
            let before = ask(server, &good_args());
            let request = infer_elements(server, &["a", MARKER, "c"], &args);
            let after = ask(server, &good_args());
            instance.execute(&[&before, &request, &after]).unwrap();
            assert_eq!(refusal(&request).0, ErrorCode::InvalidArg);
            assert_eq!(images(&before), images(&after));
            assert_serves(server, instance);
        }
    });
}

/// Found before any work.
#[test]
fn output_in_gpu_memory_is_refused() {
    serve(|server, instance| {
        let request = good_inputs(server.request()).output_memory(MemoryType::Gpu).build();
        instance.execute(&[&request]).unwrap();
        let (code, message) = refusal(&request);
        assert_eq!(code, ErrorCode::Unsupported, "{message}");
        assert_says(&message, &["generated_image", "GPU memory"]);
        assert_eq!(counter(server, "unet_calls"), 0.0);
        assert_serves(server, instance);
    });
}
