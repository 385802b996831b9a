//! The keys of a model's parameters, their allowed values and their fields.

use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};

use super::{Dtype, ModelParameters, Numerics, Placement};
use crate::config::Base;

/// A known key: the allowed values, in words, and a function that parses a value into a field. The function returns
/// false if the value is not allowed.
pub(super) struct Parameter {
    /// The key.
    pub name: &'static str,
    /// The allowed values.
    pub allowed: &'static str,
    /// Parses a value into its field.
    pub read: fn(&mut ModelParameters, &str) -> Option<()>,
}

pub(super) const LORA_SCALE: RangeInclusive<f64> = -10.0..=10.0;
pub(super) const LORA_CACHE_BYTES: RangeInclusive<u64> = 0..=1 << 40;
pub(super) const MAX_UNET_BATCH_SIZE: RangeInclusive<u64> = 1..=256;
pub(super) const MAX_PIXELS: RangeInclusive<u64> = 64..=1 << 26;
pub(super) const MAX_STEPS: RangeInclusive<u64> = 1..=1000;
pub(super) const MAX_WORK: RangeInclusive<u64> = 1..=1 << 53;
pub(super) const MAX_SECONDS: RangeInclusive<u64> = 1..=86_400;
pub(super) const MAX_WAITING_REQUESTS: RangeInclusive<u64> = 1..=4096;
pub(super) const GPU_MEMORY_RESERVE_MIB: RangeInclusive<u64> = 0..=1 << 20;
pub(super) const INTRA_OP_THREADS: RangeInclusive<u64> = 1..=1024;

/// Every known key.
pub(super) const PARAMETERS: [Parameter; 23] = [
    Parameter {
        name: "checkpoint",
        allowed: "a relative path inside the version folder, without `..`",
        read: |p, text| {
            p.checkpoint = path_inside(text)?;
            Some(())
        },
    },
    Parameter {
        name: "base",
        allowed: "the name of a model, a path with a `/`, or `blake3:` and 64 hexadecimal digits",
        read: |p, text| {
            p.base = Some(Base::parse(text)?);
            Some(())
        },
    },
    Parameter {
        name: "lora",
        allowed: "a relative path inside the version folder, without `..`",
        read: |p, text| {
            p.lora = Some(path_inside(text)?);
            Some(())
        },
    },
    Parameter {
        name: "lora_scale",
        allowed: "a number from -10 to 10",
        read: |p, text| {
            p.lora_scale = text.parse().ok().filter(|scale| LORA_SCALE.contains(scale))?;
            Some(())
        },
    },
    Parameter {
        name: "dtype",
        allowed: "one of auto, float32, float16, bfloat16",
        read: |p, text| {
            p.dtype = match text {
                "auto" => Dtype::Auto,
                "float32" => Dtype::Float32,
                "float16" => Dtype::Float16,
                "bfloat16" => Dtype::Bfloat16,
                _ => return None,
            };
            Some(())
        },
    },
    Parameter {
        name: "scheduler",
        allowed: "the class name of a diffusers scheduler, letters and digits only",
        read: |p, text| {
            let name = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric());
            p.scheduler = Some(name.then(|| text.to_owned())?);
            Some(())
        },
    },
    Parameter {
        name: "numerics",
        allowed: "one of exact, fast",
        read: |p, text| {
            p.numerics = match text {
                "exact" => Numerics::Exact,
                "fast" => Numerics::Fast,
                _ => return None,
            };
            Some(())
        },
    },
    Parameter {
        name: "weights",
        allowed: "one of auto, map, copy",
        read: |p, text| {
            p.weights = match text {
                "auto" => Placement::Auto,
                "map" => Placement::Map,
                "copy" => Placement::Copy,
                _ => return None,
            };
            Some(())
        },
    },
    Parameter {
        name: "outside_links",
        allowed: "one of allow, refuse",
        read: |p, text| {
            p.outside_links = match text {
                "allow" => true,
                "refuse" => false,
                _ => return None,
            };
            Some(())
        },
    },
    Parameter {
        name: "loras",
        allowed: "a path",
        read: |p, text| {
            p.loras = (!text.is_empty() && !text.contains('\0')).then(|| PathBuf::from(text))?;
            Some(())
        },
    },
    Parameter {
        name: "lora_cache_bytes",
        allowed: "an integer from 0 to 1099511627776",
        read: |p, text| {
            p.lora_cache_bytes = Some(integer(text, &LORA_CACHE_BYTES)?);
            Some(())
        },
    },
    Parameter {
        name: "embeddings",
        allowed: "a path",
        read: |p, text| {
            p.embeddings = (!text.is_empty() && !text.contains('\0')).then(|| PathBuf::from(text))?;
            Some(())
        },
    },
    Parameter {
        name: "safety_checker",
        allowed: "one of on, off",
        read: |p, text| {
            p.safety_checker = switch(text)?;
            Some(())
        },
    },
    Parameter {
        name: "provenance",
        allowed: "one of on, off",
        read: |p, text| {
            p.provenance = switch(text)?;
            Some(())
        },
    },
    Parameter {
        name: "max_unet_batch_size",
        allowed: "an integer from 1 to 256",
        read: |p, text| {
            p.max_unet_batch_size = Some(integer(text, &MAX_UNET_BATCH_SIZE)?);
            Some(())
        },
    },
    Parameter {
        name: "max_pixels",
        allowed: "an integer from 64 to 67108864",
        read: |p, text| {
            p.max_pixels = Some(integer(text, &MAX_PIXELS)?);
            Some(())
        },
    },
    Parameter {
        name: "max_steps",
        allowed: "an integer from 1 to 1000",
        read: |p, text| {
            p.max_steps = Some(integer(text, &MAX_STEPS)?);
            Some(())
        },
    },
    Parameter {
        name: "max_work",
        allowed: "an integer from 1 to 9007199254740992",
        read: |p, text| {
            p.max_work = Some(integer(text, &MAX_WORK)?);
            Some(())
        },
    },
    Parameter {
        name: "max_seconds",
        allowed: "an integer from 1 to 86400",
        read: |p, text| {
            p.max_seconds = Some(integer(text, &MAX_SECONDS)?);
            Some(())
        },
    },
    Parameter {
        name: "max_waiting_requests",
        allowed: "an integer from 1 to 4096",
        read: |p, text| {
            p.max_waiting_requests = Some(integer(text, &MAX_WAITING_REQUESTS)?);
            Some(())
        },
    },
    Parameter {
        name: "gpu_memory_reserve_mib",
        allowed: "an integer from 0 to 1048576",
        read: |p, text| {
            p.gpu_memory_reserve_mib = Some(integer(text, &GPU_MEMORY_RESERVE_MIB)?);
            Some(())
        },
    },
    Parameter {
        name: "intra_op_threads",
        allowed: "an integer from 1 to 1024",
        read: |p, text| {
            p.intra_op_threads = Some(integer(text, &INTRA_OP_THREADS)?);
            Some(())
        },
    },
    Parameter {
        name: "default_gen_args",
        allowed: "a JSON object of gen_args",
        read: |p, text| {
            p.default_gen_args = text.to_owned();
            Some(())
        },
    },
];

fn switch(text: &str) -> Option<bool> {
    match text {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

/// Reads a relative path that leads nowhere else.
fn path_inside(text: &str) -> Option<PathBuf> {
    let path = Path::new(text);
    let inside = path
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    (!text.is_empty() && !text.contains('\0') && inside).then(|| path.to_path_buf())
}

fn integer<T: TryFrom<u64>>(text: &str, range: &RangeInclusive<u64>) -> Option<T> {
    let number = text.bytes().all(|b| b.is_ascii_digit());
    number
        .then(|| text.parse::<u64>().ok())
        .flatten()
        .filter(|n| range.contains(n))
        .and_then(|n| T::try_from(n).ok())
}
