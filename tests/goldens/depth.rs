//! Depth to image: from an image to the UNet's depth channel.

use diffusion_core::ErrorKind;
use diffusion_image::RgbImage;
use serde::Deserialize;
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};
use triton_diffusion::models::dpt::{DptConfig, DptForDepthEstimation};
use triton_diffusion::pipelines::{Stream, depth_map, given_depth_map};
use triton_diffusion::processors::DptImageProcessor;
use triton_diffusion::weights::{load_component, read_json};

use crate::support::{Goldens, checkpoint, weights};

#[derive(Deserialize)]
struct Manifest {
    checkpoint: String,
    estimates: Vec<Estimate>,
    processors: Vec<Processor>,
    given: Vec<Given>,
}

#[derive(Deserialize)]
struct Estimate {
    name: String,
    /// Width and height.
    latents: Vec<(i64, i64)>,
}

#[derive(Deserialize)]
struct Processor {
    name: String,
    image: String,
    config: Map<String, Value>,
}

#[derive(Deserialize)]
struct Given {
    name: String,
    /// Width and height.
    latents: (i64, i64),
}

fn config(name: &str) -> DptConfig {
    let config: DptConfig = read_json(&checkpoint(name).join("depth_estimator/config.json")).unwrap();
    config.check().unwrap();
    config
}

fn rgb_image(pixels: &Tensor) -> RgbImage {
    let (height, width, _) = pixels.size3().unwrap();
    let bytes = pixels.reshape([-1]).try_into().unwrap();
    RgbImage::new(width as u32, height as u32, bytes).unwrap()
}

#[test]
fn depth_estimator_depths_match() {
    let mut goldens = Goldens::open("depth");
    let manifest: Manifest = goldens.manifest();
    let _no_grad = tch::no_grad_guard();
    let config = config(&manifest.checkpoint);
    let folder = checkpoint(&manifest.checkpoint).join("feature_extractor");
    let processor = DptImageProcessor::open(&folder).unwrap();
    processor.check(config.image_size).unwrap();
    let weights = weights(&manifest.checkpoint, "depth_estimator", "model");
    let model = DptForDepthEstimation::new(config, weights).unwrap();
    for Estimate { name, latents } in manifest.estimates {
        let image = rgb_image(&goldens.tensor(&format!("{name}/image")));
        let pixel_values = processor.preprocess(&image).unwrap();
        goldens.compare(&format!("{name}/pixel_values"), &pixel_values);
        let depth = model.forward(&pixel_values).unwrap();
        goldens.compare(&format!("{name}/predicted_depth"), &depth);
        for (width, height) in latents {
            let map = depth_map(&depth, height, width).unwrap();
            goldens.compare(&format!("{name}/{width}x{height}"), &map);
        }
    }
    goldens.report();
}

#[test]
fn dpt_processor_pixel_values_match() {
    let mut goldens = Goldens::open("depth");
    let manifest: Manifest = goldens.manifest();
    for case in manifest.processors {
        let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(&case.name);
        std::fs::create_dir_all(&folder).unwrap();
        let config = Value::Object(case.config).to_string();
        std::fs::write(folder.join("preprocessor_config.json"), config).unwrap();
        let processor = DptImageProcessor::open(&folder).unwrap();
        let image = rgb_image(&goldens.tensor(&case.image));
        let pixel_values = processor.preprocess(&image).unwrap();
        goldens.compare(&format!("processors/{}", case.name), &pixel_values);
    }
    goldens.report();
}

#[test]
fn given_depth_map_channels_match() {
    let mut goldens = Goldens::open("depth");
    let manifest: Manifest = goldens.manifest();
    for Given { name, latents } in manifest.given {
        let (width, height) = latents;
        let map = goldens.tensor(&format!("{name}/map"));
        let map = given_depth_map(&map, height, width, Kind::Float, &Stream::cpu()).unwrap();
        goldens.compare(&format!("{name}/mask"), &map);
    }
    goldens.report();
}

#[test]
fn depth_estimator_half_precision_is_close() {
    let goldens = Goldens::open("depth");
    let manifest: Manifest = goldens.manifest();
    let _no_grad = tch::no_grad_guard();
    let folder = checkpoint(&manifest.checkpoint).join("depth_estimator");
    let weights = load_component(&folder, "model", Device::Cpu, Kind::Half).unwrap();
    let model = DptForDepthEstimation::new(config(&manifest.checkpoint), weights).unwrap();
    for Estimate { name, .. } in manifest.estimates {
        let pixel_values = goldens.tensor(&format!("{name}/pixel_values"));
        let ours = model.forward(&pixel_values.to_kind(Kind::Half)).unwrap();
        assert_eq!(ours.kind(), Kind::Half);
        let theirs = goldens.tensor(&format!("{name}/predicted_depth"));
        let difference = (ours.to_kind(Kind::Float) - &theirs).abs().max() / theirs.max();
        let difference = f64::try_from(difference).unwrap();
        assert!(difference < 0.02, "{name}: {difference}");
    }
}

#[test]
fn depth_estimator_missing_or_unexpected_weights_are_rejected() {
    let manifest: Manifest = Goldens::open("depth").manifest();
    let build = |change: fn(&mut DptConfig)| {
        let mut config = config(&manifest.checkpoint);
        change(&mut config);
        let weights = weights(&manifest.checkpoint, "depth_estimator", "model");
        DptForDepthEstimation::new(config, weights)
            .err()
            .map(|error| (error.kind(), error.to_string()))
    };
    assert_eq!(build(|_| ()), None);
    let refused = |change, kind, name: &str| {
        let (found, text) = build(change).unwrap();
        assert_eq!(found, kind, "{text}");
        assert!(text.contains(name), "{text}");
    };
    refused(
        |config| config.num_hidden_layers += 1,
        ErrorKind::NotFound,
        "dpt.encoder.layer.4.layernorm_before.weight is missing",
    );
    refused(
        |config| config.num_hidden_layers -= 1,
        ErrorKind::InvalidArgument,
        "16 unexpected tensors: dpt.encoder.layer.3.",
    );
    refused(
        |config| config.qkv_bias = false,
        ErrorKind::InvalidArgument,
        "12 unexpected tensors",
    );
    refused(
        |config| config.use_bias_in_fusion_residual = Some(false),
        ErrorKind::InvalidArgument,
        "14 unexpected tensors: neck.fusion_stage.layers.0.residual_layer2",
    );
    refused(
        |config| config.reassemble_factors[2] = 0.5,
        ErrorKind::NotFound,
        "neck.reassemble_stage.layers.2.resize.weight is missing",
    );
    refused(
        |config| config.image_size = 96,
        ErrorKind::InvalidArgument,
        "dpt.embeddings.position_embeddings has shape [1, 17, 24]",
    );
    refused(
        |config| {
            if let Some(backbone) = &mut config.backbone_config {
                backbone.depths[2] = 1;
            }
        },
        ErrorKind::InvalidArgument,
        "dpt.embeddings.backbone.bit.encoder.stages.2.layers.1.",
    );
}

#[test]
fn depth_estimator_other_image_size_is_rejected() {
    let manifest: Manifest = Goldens::open("depth").manifest();
    let _no_grad = tch::no_grad_guard();
    let weights = weights(&manifest.checkpoint, "depth_estimator", "model");
    let model = DptForDepthEstimation::new(config(&manifest.checkpoint), weights).unwrap();
    let error = model
        .forward(&Tensor::zeros([1, 3, 64, 96], (Kind::Float, Device::Cpu)))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("96x64"), "{error}");
}
