//! Configurations as files have them.

use diffusion_core::config::PipelineClass;

use super::support::options;
use crate::schedulers::SchedulerConfig;

fn timesteps(text: &str, pipeline: PipelineClass, class: Option<&str>) -> Vec<f64> {
    let config = SchedulerConfig::of_pipeline(text, pipeline, class).unwrap();
    config.build(&options(4)).unwrap().timesteps().to_vec()
}

/// The timesteps are those of diffusers 0.36.
#[test]
fn of_pipeline_outdated_file_is_corrected() {
    use PipelineClass::{Depth2Img, Inpaint, StableDiffusion};
    let ddim = r#"{"_class_name": "DDIMScheduler", "steps_offset": 0}"#;
    let corrected = [751.0, 501.0, 251.0, 1.0];
    let plain = [750.0, 500.0, 250.0, 0.0];
    assert_eq!(timesteps(ddim, StableDiffusion, None), corrected);
    assert_eq!(timesteps(ddim, Depth2Img, None), plain);
    // A corrected key of the file carries over to another class, the correction of a missing key does not.
    let another = Some("DDPMScheduler");
    assert_eq!(timesteps(ddim, StableDiffusion, another), corrected);
    let bare = r#"{"_class_name": "DDIMScheduler"}"#;
    assert_eq!(timesteps(bare, StableDiffusion, None), corrected);
    assert_eq!(timesteps(bare, StableDiffusion, another), plain);
    // For 4 inference steps PNDM takes 5 timesteps without its Runge-Kutta steps, and 13 with them.
    let pndm = r#"{"_class_name": "PNDMScheduler", "skip_prk_steps": false}"#;
    assert_eq!(timesteps(pndm, Inpaint, None).len(), 5);
    assert_eq!(timesteps(pndm, StableDiffusion, None).len(), 13);
}

#[test]
fn infinite_lambda_min_clipped_clips_nothing() {
    let class = Some("DPMSolverMultistepScheduler");
    let of = |text| timesteps(text, PipelineClass::Depth2Img, class);
    let expected = of(r#"{"note": "lambda: -Infinity"}"#);
    assert_eq!(of(r#"{"lambda_min_clipped": -Infinity}"#), expected);
    assert_eq!(of(r#"{"lambda_min_clipped":-Infinity}"#), expected);
    assert_ne!(of(r#"{"lambda_min_clipped": -3}"#), expected);
}
