//! Images with LoRAs of every format.

use std::fs;
use std::path::Path;

use diffusion_core::config::{ModelParameters, Numerics};
use diffusion_engine::Pipeline;
use diffusion_request::RequestValidator;
use serde::Deserialize;
use serde_json::Value;
use test_support::recipe::Recipe;
use test_support::{psnr, temporary_folder};
use triton_diffusion::pipelines::{Components, Device, DiffusionPipeline, PipelineOutput, PipelineRequest};

use crate::images::{Element, ImageCase, finish_all, validated};
use crate::support::{Goldens, checkpoint, compare_bytes, exact};

#[derive(Deserialize)]
pub struct Manifest {
    pub cases: Vec<ImageCase>,
    pub files: Vec<AdapterFile>,
}

/// A file of an adapter: the recipe of its tensors, or a JSON file.
#[derive(Deserialize)]
pub struct AdapterFile {
    pub path: String,
    content: Value,
}

impl AdapterFile {
    pub fn write(&self, folder: &Path) {
        let path = folder.join(&self.path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let bytes = if self.content.get("tensors").is_some() {
            let recipe: Recipe = serde_json::from_value(self.content.clone()).unwrap();
            recipe.weights().unwrap()
        } else {
            self.content.to_string().into_bytes()
        };
        fs::write(path, bytes).unwrap();
    }
}

/// A model with adapters.
pub struct Model {
    pub components: Components,
    pub pipeline: DiffusionPipeline,
    pub validator: RequestValidator,
}

impl Model {
    fn load(name: &str, loras: &Path, parameters: &ModelParameters) -> Self {
        let (components, _) = Components::load(&checkpoint(name), parameters, Device::Cpu).unwrap();
        Self::new(components.with_loras(loras.to_path_buf(), None, None), parameters)
    }

    pub fn new(components: Components, parameters: &ModelParameters) -> Self {
        let validator = RequestValidator::new(components.model_info(), parameters).unwrap();
        let pipeline = DiffusionPipeline::new(components.clone(), validator.limits().max_pixels);
        Self {
            components,
            pipeline,
            validator,
        }
    }

    /// Generates the images of several requests that run together. Also returns the number of UNet calls.
    pub fn generate(&mut self, goldens: &Goldens, elements: &[Element]) -> (Vec<PipelineOutput>, usize) {
        let prepare = |element: &Element| {
            let request = validated(goldens, &self.validator, element);
            let adapters = self.components.load_adapters(&request).unwrap();
            let planned = PipelineRequest::from(request).with_adapters(adapters);
            self.pipeline.prepare(planned).unwrap()
        };
        let jobs = elements.iter().map(prepare).collect();
        finish_all(&mut self.pipeline, jobs)
    }
}

/// Writes the LoRAs, and calls `test` with their folder.
fn with_adapters(test: impl FnOnce(Goldens, &Path, Vec<ImageCase>)) {
    let goldens = Goldens::open("adapters");
    let manifest: Manifest = goldens.manifest();
    let folder = temporary_folder();
    for file in &manifest.files {
        file.write(folder.path());
    }
    let _no_grad = tch::no_grad_guard();
    test(goldens, folder.path(), manifest.cases);
}

#[test]
fn images_with_adapters_match() {
    with_adapters(|goldens, folder, cases| {
        let models = ["sd1", "sd2_base"].map(|name| (name, Model::load(name, folder, &exact())));
        compare(goldens, models, &cases);
    });
}

/// Compares the images of all cases.
pub fn compare(mut goldens: Goldens, mut models: [(&str, Model); 2], cases: &[ImageCase]) {
    let mut equal_to_the_byte = 0;
    for case in cases {
        let (_, model) = models.iter_mut().find(|(name, _)| *name == case.checkpoint).unwrap();
        let (outputs, _) = model.generate(&goldens, &case.elements);
        for (index, output) in outputs.iter().enumerate() {
            let name = format!("{}/{index}", case.name);
            let theirs: Vec<u8> = goldens.tensor(&name).reshape([-1]).try_into().unwrap();
            let ours: Vec<u8> = output.images.iter().flat_map(|image| image.rgb().to_vec()).collect();
            assert_eq!(ours.len(), theirs.len(), "{name}: size");
            goldens.compared += 1;
            match compare_bytes(&ours, &theirs) {
                Ok(equal) => equal_to_the_byte += usize::from(equal),
                Err(difference) => goldens.failures.push(format!("{name}: {difference}")),
            }
        }
    }
    println!(
        "{}: {equal_to_the_byte} of {} equal to the byte",
        goldens.group, goldens.compared
    );
    goldens.report();
}

#[test]
fn fast_images_with_adapters_are_close_and_the_same_in_company() {
    with_adapters(|goldens, folder, cases| {
        let parameters = ModelParameters {
            numerics: Numerics::Fast,
            ..ModelParameters::default()
        };
        let mut worst = f64::INFINITY;
        for name in ["sd1", "sd2_base"] {
            let mut fast = Model::load(name, folder, &parameters);
            let mut exact = Model::load(name, folder, &exact());
            for case in cases.iter().filter(|case| case.checkpoint == name) {
                let (together, _) = fast.generate(&goldens, &case.elements);
                let (expected, _) = exact.generate(&goldens, &case.elements);
                for (index, element) in case.elements.iter().enumerate() {
                    let name = format!("{}/{index}", case.name);
                    let (alone, _) = fast.generate(&goldens, std::slice::from_ref(element));
                    for (number, image) in together[index].images.iter().enumerate() {
                        assert!(
                            image.rgb() == alone[0].images[number].rgb(),
                            "{name}: company changes the image"
                        );
                        let decibels = psnr(image.rgb(), expected[index].images[number].rgb());
                        assert!(decibels > 50.0, "{name}: {decibels} dB");
                        worst = worst.min(decibels);
                    }
                }
            }
        }
        println!("adapters: above {worst:.1} dB");
    });
}

#[test]
fn jobs_with_different_adapters_share_calls_and_get_the_bytes_that_they_get_alone() {
    with_adapters(|goldens, folder, cases| {
        for numerics in [Numerics::Exact, Numerics::Fast] {
            let parameters = ModelParameters {
                numerics,
                ..ModelParameters::default()
            };
            let mut model = Model::load("sd1", folder, &parameters);
            let case = cases.iter().find(|case| case.name == "sd1/together").unwrap();
            assert_eq!(case.elements.len(), 8);
            let (together, calls) = model.generate(&goldens, &case.elements);
            assert_eq!(calls, together[0].steps_run, "one call for each step");
            for (output, element) in together.iter().zip(&case.elements) {
                let (alone, _) = model.generate(&goldens, std::slice::from_ref(element));
                assert!(output.images[0].rgb() == alone[0].images[0].rgb(), "{numerics:?}");
            }
        }
    });
}
