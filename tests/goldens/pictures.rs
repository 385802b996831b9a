//! Whole pictures, from prompt to pixels.

use serde::Deserialize;
use serde_json::{Map, Value};
use triton_diffusion::config::{ModelParameters, Numerics};
use triton_diffusion::engine::Pipeline;
use triton_diffusion::picture::encode::Picture;
use triton_diffusion::pipeline::{Components, Place, StableDiffusionPipeline};
use triton_diffusion::request::generate::{RequestContext, resolve};
use triton_diffusion::schedulers;

use crate::support::{Cases, Goldens, checkpoint, compare_bytes, psnr};

#[derive(Deserialize)]
struct Row {
    prompt: String,
    negative_prompt: Option<String>,
    gen_args: Map<String, Value>,
}

#[derive(Deserialize)]
struct PictureCase {
    name: String,
    checkpoint: String,
    rows: Vec<Row>,
}

/// The pictures of rows that are all in flight together.
fn generate(
    pipeline: &mut StableDiffusionPipeline,
    context: &RequestContext,
    rows: &[Row],
) -> Vec<Vec<Picture>> {
    let mut jobs: Vec<_> = rows
        .iter()
        .map(|row| {
            let gen_args = Value::Object(row.gen_args.clone()).to_string();
            let negative = row.negative_prompt.as_deref().map(str::as_bytes);
            let request = resolve(
                row.prompt.as_bytes(),
                negative,
                Some(gen_args.as_bytes()),
                context,
            )
            .unwrap();
            pipeline.prepare(request).unwrap()
        })
        .collect();
    loop {
        let mut going: Vec<_> = jobs
            .iter_mut()
            .filter(|job| !pipeline.is_done(job))
            .collect();
        if going.is_empty() {
            break;
        }
        // Rows of equal shape share the call, as in the engine.
        let shape = pipeline.batch(going[0]).shape;
        going.retain(|job| pipeline.batch(job).shape == shape);
        for outcome in pipeline.step(&mut going).unwrap() {
            outcome.unwrap();
        }
    }
    jobs.into_iter()
        .map(|job| pipeline.finish(job).unwrap().pictures)
        .collect()
}

fn pipeline(name: &str, parameters: &ModelParameters) -> (StableDiffusionPipeline, RequestContext) {
    let (components, _) = Components::load(&checkpoint(name), parameters, Place::Cpu).unwrap();
    let (height, width) = components.default_size();
    let context = RequestContext::new(
        components.class,
        parameters,
        height,
        width,
        components.num_text_layers(),
        schedulers::names(),
    )
    .unwrap();
    (StableDiffusionPipeline::new(components), context)
}

#[test]
fn pictures() {
    let mut goldens = Goldens::open("pictures");
    let cases: Cases<PictureCase> = goldens.manifest();
    let _no_grad = tch::no_grad_guard();
    let mut exact = 0;
    for case in cases.cases {
        let (mut pipeline, context) = pipeline(&case.checkpoint, &ModelParameters::default());
        let rows = generate(&mut pipeline, &context, &case.rows);
        for (index, pictures) in rows.iter().enumerate() {
            let name = format!("{}/{index}", case.name);
            let theirs = goldens.tensor(&name);
            let size = theirs.size();
            assert_eq!(
                size[0] as usize,
                pictures.len(),
                "{name}: number of pictures"
            );
            for (picture, theirs) in pictures.iter().zip(theirs.split(1, 0)) {
                let (height, width) = (i64::from(picture.height()), i64::from(picture.width()));
                assert_eq!([height, width], [size[1], size[2]], "{name}: size");
                let theirs: Vec<u8> = theirs.reshape([-1]).try_into().unwrap();
                goldens.compared += 1;
                match compare_bytes(picture.rgb(), &theirs) {
                    Ok(equal) => exact += usize::from(equal),
                    Err(difference) => goldens.failures.push(format!("{name}: {difference}")),
                }
            }
        }
    }
    println!(
        "pictures: {exact} of {} equal to the byte",
        goldens.compared
    );
    goldens.report();
}

/// With `numerics: fast` rows are computed together; the pictures stay above 50 dB of diffusers'.
#[test]
fn fast_numerics_stay_close() {
    let goldens = Goldens::open("pictures");
    let cases: Cases<PictureCase> = goldens.manifest();
    let _no_grad = tch::no_grad_guard();
    let parameters = ModelParameters {
        numerics: Numerics::Fast,
        ..ModelParameters::default()
    };
    let mut compared = 0;
    for case in cases.cases.iter().filter(|case| case.rows.len() > 1) {
        let (mut pipeline, context) = pipeline(&case.checkpoint, &parameters);
        let rows = generate(&mut pipeline, &context, &case.rows);
        for (index, pictures) in rows.iter().enumerate() {
            let theirs = goldens.tensor(&format!("{}/{index}", case.name));
            for (picture, theirs) in pictures.iter().zip(theirs.split(1, 0)) {
                let theirs: Vec<u8> = theirs.reshape([-1]).try_into().unwrap();
                let psnr = psnr(picture.rgb(), &theirs);
                assert!(psnr > 50.0, "{}/{index}: {psnr} dB", case.name);
                compared += 1;
            }
        }
    }
    assert!(compared > 0);
}
