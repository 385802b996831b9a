//! Images with words of textual inversion.

use std::fs;
use std::path::Path;

use diffusion_core::config::{ModelParameters, Numerics};
use diffusion_engine::Pipeline;
use test_support::{psnr, temporary_folder};
use triton_diffusion::pipelines::{Components, Device, PipelineRequest};

use crate::adapters::{AdapterFile, Manifest, Model, compare};
use crate::images::{Element, ImageCase, finish_all, validated};
use crate::support::{Goldens, checkpoint, exact};

fn load(name: &str, folder: &Path, parameters: &ModelParameters) -> Model {
    let (components, _) = Components::load(&checkpoint(name), parameters, Device::Cpu).unwrap();
    let components = components
        .with_loras(folder.join("loras"), None, None)
        .with_embeddings(folder.join("embeddings"), None);
    Model::new(components, parameters)
}

/// Writes the files, and calls `test` with their folder.
fn with_files(test: impl FnOnce(Goldens, &Path, Manifest)) {
    let goldens = Goldens::open("textual_inversion");
    let manifest: Manifest = goldens.manifest();
    let folder = temporary_folder();
    for file in &manifest.files {
        file.write(folder.path());
    }
    let _no_grad = tch::no_grad_guard();
    test(goldens, folder.path(), manifest);
}

#[test]
fn images_with_textual_inversion_match() {
    with_files(|goldens, folder, manifest| {
        let models = ["sd1", "sd2_base"].map(|name| (name, load(name, folder, &exact())));
        compare(goldens, models, &manifest.cases);
    });
}

#[test]
fn fast_images_with_textual_inversion_are_close_and_the_same_in_company() {
    with_files(|goldens, folder, manifest| {
        let parameters = ModelParameters {
            numerics: Numerics::Fast,
            ..ModelParameters::default()
        };
        let mut worst = f64::INFINITY;
        for name in ["sd1", "sd2_base"] {
            let (mut fast, mut exact) = (load(name, folder, &parameters), load(name, folder, &exact()));
            for case in manifest.cases.iter().filter(|case| case.checkpoint == name) {
                let (together, _) = fast.generate(&goldens, &case.elements);
                for (output, element) in together.iter().zip(&case.elements) {
                    let (alone, _) = load(name, folder, &parameters).generate(&goldens, std::slice::from_ref(element));
                    let (expected, _) = exact.generate(&goldens, std::slice::from_ref(element));
                    let (image, alone) = (output.images[0].rgb(), alone[0].images[0].rgb());
                    assert!(image == alone, "{}: company changes the image", case.name);
                    let decibels = psnr(image, expected[0].images[0].rgb());
                    assert!(decibels > 50.0, "{}: {decibels} dB", case.name);
                    worst = worst.min(decibels);
                }
            }
        }
        println!("textual_inversion: above {worst:.1} dB");
    });
}

#[test]
fn replaced_file_counts_and_a_request_keeps_the_one_that_it_began_with() {
    with_files(|goldens, folder, manifest| {
        let find = |name: &str| -> &ImageCase { manifest.cases.iter().find(|case| case.name == name).unwrap() };
        let elements = &find("sd1/vectors").elements;
        let content = |path: &str| -> &AdapterFile { manifest.files.iter().find(|file| file.path == path).unwrap() };
        let mut model = load("sd1", folder, &exact());
        let first = model.generate(&goldens, elements).0.remove(0).images.remove(0);
        let request = validated(&goldens, &model.validator, &elements[0]);
        let kept = model.components.loaded_adapters(&request).unwrap();

        // The same word, other vectors: 8 instead of 4.
        let file = folder.join("embeddings/c-multi.safetensors");
        content("embeddings/easyneg.safetensors").write(folder);
        let bytes = fs::read(folder.join("embeddings/easyneg.safetensors")).unwrap();
        let new = folder.join("embeddings/new");
        fs::write(&new, renamed(&bytes, "emb_params", "<multi>")).unwrap();
        fs::rename(&new, &file).unwrap();
        assert!(model.components.loaded_adapters(&request).is_none(), "the file changed");
        let second = model.generate(&goldens, elements).0.remove(0).images.remove(0);
        assert!(first.rgb() != second.rgb());
        let fresh = load("sd1", folder, &exact()).generate(&goldens, elements).0.remove(0);
        assert!(second.rgb() == fresh.images[0].rgb(), "the old text is not used again");

        // One call has both files of the word.
        let planned = PipelineRequest::from(request).with_adapters(kept);
        let both = [planned, planned_now(&goldens, &model, &elements[0])];
        let jobs = both.map(|planned| model.pipeline.prepare(planned).unwrap());
        let (outputs, _) = finish_all(&mut model.pipeline, jobs.into());
        assert!(outputs[0].images[0].rgb() == first.rgb());
        assert!(outputs[1].images[0].rgb() == second.rgb());

        // Without the file, the word is text as any other.
        fs::remove_file(&file).unwrap();
        let without = model.generate(&goldens, elements).0.remove(0);
        let none = temporary_folder();
        let plain = load("sd1", none.path(), &exact())
            .generate(&goldens, elements)
            .0
            .remove(0);
        assert!(without.images[0].rgb() == plain.images[0].rgb());
    });
}

fn planned_now(goldens: &Goldens, model: &Model, element: &Element) -> PipelineRequest {
    let request = validated(goldens, &model.validator, element);
    let adapters = model.components.load_adapters(&request).unwrap();
    PipelineRequest::from(request).with_adapters(adapters)
}

/// Returns a file of one tensor with another name for it.
fn renamed(file: &[u8], from: &str, to: &str) -> Vec<u8> {
    let tensors = safetensors::SafeTensors::deserialize(file).unwrap();
    let tensor = tensors.tensor(from).unwrap();
    safetensors::serialize([(to, tensor)], None).unwrap()
}

#[test]
fn prompt_with_the_word_of_a_broken_file_is_refused_and_no_other() {
    with_files(|goldens, folder, manifest| {
        fs::write(folder.join("embeddings/brokenword.safetensors"), b"rubbish").unwrap();
        let mut model = load("sd1", folder, &exact());
        let elements = &manifest
            .cases
            .iter()
            .find(|case| case.name == "sd1/vectors")
            .unwrap()
            .elements;
        model.generate(&goldens, elements);
        for (prompt, negative_prompt, name) in [
            ("a brokenword cat", "", "prompt"),
            ("a cat", "brokenword", "negative_prompt"),
        ] {
            for syntax in ["plain", "weighted"] {
                let gen_args = serde_json::json!({"prompt_syntax": syntax, "num_inference_steps": 1}).to_string();
                let inputs = diffusion_request::ElementInputs {
                    prompt: prompt.as_bytes(),
                    negative_prompt: Some(negative_prompt.as_bytes()),
                    gen_args: Some(gen_args.as_bytes()),
                    ..diffusion_request::ElementInputs::default()
                };
                let request = model.validator.validate(&inputs).unwrap();
                let adapters = model.components.load_adapters(&request).unwrap();
                let planned = PipelineRequest::from(request).with_adapters(adapters);
                let error = model.pipeline.prepare(planned).err().unwrap().to_string();
                assert!(error.starts_with(&format!("{name}: ")), "{error}");
                assert!(
                    error.contains("brokenword.safetensors: not a whole safetensors file"),
                    "{error}"
                );
            }
        }
    });
}
