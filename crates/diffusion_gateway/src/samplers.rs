//! Names of samplers in stable-diffusion-webui, and the scheduler classes of diffusers that compute the same.
//!
//! Source: diffusers, `docs/source/en/api/schedulers/overview.md`, for those in its table. The names of the others are
//! the classes' names without `Scheduler`.

/// Each name with its class.
pub const SAMPLERS: [(&str, &str); 15] = [
    ("DPM++ 2M", "DPMSolverMultistepScheduler"),
    ("DPM++ 2S", "DPMSolverSinglestepScheduler"),
    ("Euler a", "EulerAncestralDiscreteScheduler"),
    ("Euler", "EulerDiscreteScheduler"),
    ("LMS", "LMSDiscreteScheduler"),
    ("Heun", "HeunDiscreteScheduler"),
    ("DPM2", "KDPM2DiscreteScheduler"),
    ("DPM2 a", "KDPM2AncestralDiscreteScheduler"),
    ("DDIM", "DDIMScheduler"),
    ("DDPM", "DDPMScheduler"),
    ("DEIS", "DEISMultistepScheduler"),
    ("PLMS", "PNDMScheduler"),
    ("UniPC", "UniPCMultistepScheduler"),
    ("LCM", "LCMScheduler"),
    ("TCD", "TCDScheduler"),
];

/// Returns the class of a sampler's name, in any case; any other text as it is, for the backend to check.
pub fn class_of(name: String) -> String {
    let found = SAMPLERS.iter().find(|(sampler, _)| sampler.eq_ignore_ascii_case(&name));
    found.map_or(name, |(_, class)| (*class).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sampler_is_its_class_and_a_class_is_itself() {
        assert_eq!(class_of("Euler a".into()), "EulerAncestralDiscreteScheduler");
        assert_eq!(class_of("dpm++ 2m".into()), "DPMSolverMultistepScheduler");
        assert_eq!(class_of("LMSDiscreteScheduler".into()), "LMSDiscreteScheduler");
    }
}
