//! The safety checker and its image processor.

use diffusion_image::RgbImage;
use serde::Deserialize;
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};
use triton_diffusion::models::safety_checker::{SafetyChecker, SafetyScores};
use triton_diffusion::pipelines::{SafetyCheck, Stream};
use triton_diffusion::processors::ClipImageProcessor;
use triton_diffusion::weights::{load_component, read_json};

use crate::support::{Goldens, checkpoint, weights};

#[derive(Deserialize)]
struct Manifest {
    cases: Vec<Call>,
    processors: Vec<Processor>,
}

/// Images of one call of the checker.
#[derive(Deserialize)]
struct Call {
    name: String,
    checkpoint: String,
    images: Vec<usize>,
    flags: Vec<bool>,
}

#[derive(Deserialize)]
struct Processor {
    name: String,
    image: usize,
    config: Map<String, Value>,
}

fn image(goldens: &Goldens, number: usize) -> RgbImage {
    let rgb = goldens.tensor(&format!("image-{number}/rgb"));
    let (height, width, _) = rgb.size3().unwrap();
    let bytes = Vec::try_from(rgb.reshape([-1])).unwrap();
    RgbImage::new(width as u32, height as u32, bytes).unwrap()
}

fn checker(name: &str) -> SafetyChecker {
    let config = read_json(&checkpoint(name).join("safety_checker/config.json")).unwrap();
    SafetyChecker::new(config, weights(name, "safety_checker", "model")).unwrap()
}

#[test]
fn clip_processor_pixel_values_are_equal() {
    let mut goldens = Goldens::open("safety");
    let manifest: Manifest = goldens.manifest();
    let folder = checkpoint(&manifest.cases[0].checkpoint).join("feature_extractor");
    let processor = ClipImageProcessor::open(&folder).unwrap();
    let images = manifest.cases.iter().flat_map(|case| &case.images);
    for number in 0..=*images.max().unwrap() {
        let ours = processor.preprocess(&image(&goldens, number)).unwrap();
        equal(&mut goldens, &format!("image-{number}"), &ours);
    }
    for case in manifest.processors {
        let folder = test_support::temporary_folder();
        let config = Value::Object(case.config).to_string();
        std::fs::write(folder.path().join("preprocessor_config.json"), config).unwrap();
        let processor = ClipImageProcessor::open(folder.path());
        let ours = processor.unwrap().preprocess(&image(&goldens, case.image));
        equal(&mut goldens, &case.name, &ours.unwrap());
    }
    goldens.report();
}

/// Compares every byte: pixel values do not depend on the processor's kernels.
fn equal(goldens: &mut Goldens, name: &str, ours: &Tensor) {
    goldens.compared += 1;
    if *ours != goldens.tensor(&format!("{name}/pixel_values")) {
        goldens.failures.push(format!("{name}: pixel values differ"));
    }
}

#[test]
fn safety_checker_scores_match() {
    let mut goldens = Goldens::open("safety");
    let manifest: Manifest = goldens.manifest();
    let _no_grad = tch::no_grad_guard();
    for case in manifest.cases {
        let checker = checker(&case.checkpoint);
        checker.config().check().unwrap();
        let pixel_values: Vec<Tensor> = case
            .images
            .iter()
            .map(|number| goldens.tensor(&format!("image-{number}/pixel_values")))
            .collect();
        let pixel_values = Tensor::stack(&pixel_values, 0);
        let embeds = checker.image_embeds(&pixel_values).unwrap();
        goldens.compare(&format!("{}/image_embeds", case.name), &embeds);
        let cosines = checker.cosines(&embeds).unwrap();
        goldens.compare(&format!("{}/special_care", case.name), &cosines.special_care);
        goldens.compare(&format!("{}/concepts", case.name), &cosines.concepts);
        let scores = checker.scores(&cosines).unwrap();
        let flags: Vec<bool> = scores.iter().map(SafetyScores::flagged).collect();
        assert_eq!(flags, case.flags, "{}", case.name);
        assert_eq!(
            checker.check(&pixel_values, &Stream::cpu()).unwrap(),
            case.flags,
            "{}",
            case.name
        );
    }
    goldens.report();
}

#[test]
fn safety_check_flags_are_equal() {
    let goldens = Goldens::open("safety");
    let manifest: Manifest = goldens.manifest();
    let _no_grad = tch::no_grad_guard();
    let mut seen = [false; 2];
    for kind in [Kind::Float, Kind::BFloat16] {
        for case in &manifest.cases {
            let folder = checkpoint(&case.checkpoint);
            let checker = folder.join("safety_checker");
            let weights = load_component(&checker, "model", Device::Cpu, kind).unwrap();
            let processor = ClipImageProcessor::open(&folder.join("feature_extractor")).unwrap();
            let config = read_json(&checker.join("config.json")).unwrap();
            let check = SafetyCheck::new(processor, SafetyChecker::new(config, weights).unwrap()).unwrap();
            let images: Vec<RgbImage> = case.images.iter().map(|&number| image(&goldens, number)).collect();
            let flags = check.flags(&images, &Stream::cpu()).unwrap();
            assert_eq!(flags.len(), images.len());
            // With 7 fraction bits the scores closest to a limit may fall on either side of it. Images that are alone in
            // their call have no such scores.
            if kind == Kind::Float || images.len() == 1 {
                assert_eq!(flags, case.flags, "{}", case.name);
                flags.iter().for_each(|&flag| seen[usize::from(flag)] = true);
            }
        }
    }
    assert_eq!(seen, [true, true]);
}
