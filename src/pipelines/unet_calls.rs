//! UNet calls for the batch entries of several jobs, with what does not change from step to step computed once.

mod time_embeddings;

use std::sync::{Arc, Weak};

use tch::{Device, Tensor};

use super::large_images::predict_one_by_one;
use super::loading::Components;
use crate::models::layers::{AdaptedJobs, BatchSplit, KeyValue, LayerDeltas};
use crate::models::unet::{AddedCondition, UNet2DConditionModel, UNetInput};
use crate::torch::{Stream, classify_errors, cuda};
use crate::weights::SharedModel;
use diffusion_core::config::Numerics;
use diffusion_core::{Error, Result};
use time_embeddings::JobTime;

/// Joined texts that are kept: one for each group of jobs whose latents have one shape, for a few groups.
const MAX_JOINED_TEXTS: usize = 4;

/// The text and the timesteps of one job, as the UNet takes them.
pub struct JobConditioning {
    /// The number of text tokens.
    pub tokens: i64,
    text: Vec<KeyValue>,
    time: JobTime,
    /// Ends with the job.
    alive: Arc<()>,
}

/// What a job's conditioning is computed from.
pub struct ConditioningInput<'a> {
    /// Text embeddings, `[batch size, tokens, size]`, the entries without the prompt first.
    pub prompt_embeds: &'a Tensor,
    /// The timesteps of the run.
    pub timesteps: &'a [f64],
    /// int64 `[1]`, for a UNet with classes.
    pub class_label: Option<Tensor>,
    /// The guidance scale for a UNet that takes it, `[batch size, time_cond_proj_dim]`.
    pub timestep_cond: Option<Tensor>,
    /// What Stable Diffusion XL takes besides, of each entry. Entries with the prompt are equal, and so are those without.
    pub added: Option<AddedCondition>,
    /// Whether the UNet computes one batch entry at a time, to save memory.
    pub one_by_one: bool,
    /// The LoRAs of the request.
    pub adapters: Option<&'a LayerDeltas>,
}

/// What one job adds to a UNet call.
pub struct JobInput<'a> {
    /// `[batch size, channels, height, width]`.
    pub sample: Tensor,
    /// The completed steps of the job.
    pub step: usize,
    /// The timestep of the call.
    pub timestep: f32,
    /// Whether the UNet computes one batch entry at a time, to save memory.
    pub one_by_one: bool,
    /// The text and the timesteps.
    pub conditioning: &'a JobConditioning,
    /// The LoRAs of the request.
    pub adapters: Option<&'a LayerDeltas>,
    /// How the call uses the deep feature.
    pub deep_feature: DeepFeature<'a>,
}

/// How a UNet call uses the deep feature of a job (`deep_cache`).
#[derive(Clone, Copy)]
pub enum DeepFeature<'a> {
    /// The whole UNet runs.
    Unused,
    /// The whole UNet runs, and the deep feature is kept for later calls.
    Keep,
    /// Only the outermost layers run, with the deep feature of an earlier call, `[batch size, channels, height, width]`.
    Reuse(&'a Tensor),
}

/// The result of a UNet call for the batch entries of all jobs, in their order. On a GPU there may be more entries behind
/// them.
pub struct Prediction {
    /// `[batch size, channels, height, width]`.
    pub noise: Tensor,
    /// The deep feature of all entries, if a job keeps its own.
    pub deep_feature: Option<Tensor>,
}

/// The joined text of several jobs.
struct JoinedText {
    jobs: Vec<Weak<()>>,
    /// Further entries at the end.
    padding: i64,
    text: Vec<KeyValue>,
}

/// Calls the UNet of a model.
pub struct UNetCalls {
    unet: SharedModel<UNet2DConditionModel>,
    device: Device,
    numerics: Numerics,
    joined: Vec<JoinedText>,
}

impl UNetCalls {
    /// Makes the calls of a model.
    pub fn new(components: &Components) -> Self {
        Self {
            unet: components.unet.clone(),
            device: components.device,
            numerics: components.numerics,
            joined: Vec::new(),
        }
    }

    /// Returns whether each job is computed apart, since libtorch's kernels look at the batch. The kernels of fast numerics
    /// do not. On a GPU the bytes may depend on the other jobs of a batch; one large batch is faster there.
    fn splits_jobs(&self) -> bool {
        self.numerics == Numerics::Exact && self.device == Device::Cpu
    }

    /// Computes what is the same at every step of a job.
    pub fn prepare(&self, input: ConditioningInput<'_>, stream: &Stream) -> Result<JobConditioning> {
        let (batch_size, tokens, _) = input.prompt_embeds.size3()?;
        // As `predict_one_by_one` would compute it.
        let each = input.one_by_one && self.splits_jobs();
        let sizes = if each {
            vec![1; batch_size as usize]
        } else {
            vec![batch_size]
        };
        let deltas = vec![input.adapters; sizes.len()];
        let split = BatchSplit::Adapted(AdaptedJobs {
            sizes: &sizes,
            deltas: &deltas,
            apart: each,
        });
        Ok(JobConditioning {
            tokens,
            text: self.unet.project_text(input.prompt_embeds, split)?,
            time: self.job_time(&input, stream)?,
            alive: Arc::new(()),
        })
    }

    /// Returns the UNet's prediction for the batch entries of all jobs.
    ///
    /// # Errors
    /// `Internal` if some jobs reuse their deep features and others do not: they compute different layers.
    pub fn predict(&mut self, jobs: &[JobInput<'_>], stream: &Stream) -> Result<Prediction> {
        let sizes = jobs.iter().map(|job| Ok(job.sample.size4()?.0));
        let sizes = sizes.collect::<Result<Vec<i64>>>()?;
        // Jobs of a call have one shape: all of them are large or none.
        let one_by_one = jobs.iter().any(|job| job.one_by_one);
        let batch_size: i64 = sizes.iter().sum();
        let padding = if self.device == Device::Cpu || one_by_one {
            0
        } else {
            padded_batch_size(batch_size) - batch_size
        };
        let samples = jobs.iter().map(|job| job.sample.shallow_clone());
        let sample = self.join(samples.collect(), padding)?;
        let cached = deep_features(jobs)?;
        let time_shifts = self.time_shifts(jobs, &sizes, padding, one_by_one)?;
        let deltas: Vec<Option<&LayerDeltas>> = jobs.iter().map(|job| job.adapters).collect();
        let split = BatchSplit::Adapted(AdaptedJobs {
            sizes: &sizes,
            deltas: &deltas,
            apart: self.splits_jobs(),
        });
        if let Some(features) = cached {
            let features = self.join(features, padding)?;
            let input = UNetInput {
                sample: &sample,
                time_shifts: &time_shifts,
                text: &self.last_text(jobs, padding)?,
            };
            return Ok(Prediction {
                noise: self.unet.forward_cached(&input, features, split, None)?,
                deep_feature: None,
            });
        }
        let joined = self.joined_text(jobs, padding)?;
        let text = match (jobs, joined) {
            (_, Some(index)) => self.joined.get(index).map(|joined| joined.text.as_slice()),
            ([job, ..], None) => Some(job.conditioning.text.as_slice()),
            ([], None) => None,
        };
        let input = UNetInput {
            sample: &sample,
            time_shifts: &time_shifts,
            text: text.ok_or_else(|| Error::internal("a UNet call without jobs"))?,
        };
        if one_by_one {
            return Ok(Prediction {
                noise: self.predict_large(&input, split, &of_entries(&deltas, &sizes), stream)?,
                deep_feature: None,
            });
        }
        let keep = jobs.iter().any(|job| matches!(job.deep_feature, DeepFeature::Keep));
        let (noise, deep_feature) = self.unet.forward_keeping(&input, split, None, keep)?;
        Ok(Prediction { noise, deep_feature })
    }

    /// Joins the text of all jobs for the layer that a call with deep features computes. It is small: joining it again at
    /// each step costs less than finding what an earlier step has joined.
    fn last_text(&self, jobs: &[JobInput<'_>], padding: i64) -> Result<Vec<KeyValue>> {
        let texts: Vec<&[KeyValue]> = jobs
            .iter()
            .map(|job| self.unet.last_text(&job.conditioning.text))
            .collect();
        let layers = texts.first().map_or(0, |text| text.len());
        let join = |layer: usize, part: fn(&KeyValue) -> &Tensor| {
            let parts = texts.iter().filter_map(|text| text.get(layer));
            self.join(parts.map(|text| part(text).shallow_clone()).collect(), padding)
        };
        (0..layers)
            .map(|layer| {
                Ok(KeyValue {
                    key: join(layer, |text| &text.key)?,
                    value: join(layer, |text| &text.value)?,
                })
            })
            .collect()
    }

    /// Joins the entries of all jobs, and repeats the first entry `padding` times behind them.
    fn join(&self, mut tensors: Vec<Tensor>, padding: i64) -> Result<Tensor> {
        match tensors.as_slice() {
            // On the CPU, bytes depend on the alignment and the layout that `cat` gives to a view.
            [one] if padding == 0 && self.device != Device::Cpu => return Ok(one.shallow_clone()),
            [first, ..] if padding > 0 => {
                let mut shape = first.size();
                if let Some(entries) = shape.first_mut() {
                    *entries = padding;
                }
                tensors.push(first.f_narrow(0, 0, 1)?.f_expand(shape, false)?);
            }
            _ => {}
        }
        Ok(Tensor::f_cat(&tensors, 0)?)
    }

    /// Finds or makes the joined text of the jobs, and returns its index; `None` if the text of the only job will do. The
    /// jobs of a call rarely change, and a text never does.
    fn joined_text(&mut self, jobs: &[JobInput<'_>], padding: i64) -> Result<Option<usize>> {
        self.joined
            .retain(|joined| joined.jobs.iter().all(|job| job.strong_count() > 0));
        if jobs.len() == 1 && padding == 0 {
            return Ok(None);
        }
        let is_of = |joined: &JoinedText| {
            let same =
                |(theirs, ours): (&Weak<()>, &JobInput<'_>)| theirs.as_ptr() == Arc::as_ptr(&ours.conditioning.alive);
            joined.padding == padding && joined.jobs.len() == jobs.len() && joined.jobs.iter().zip(jobs).all(same)
        };
        if let Some(found) = self.joined.iter().position(is_of) {
            return Ok(Some(found));
        }
        let layers = jobs.first().map_or(0, |job| job.conditioning.text.len());
        let join = |layer: usize, part: fn(&KeyValue) -> &Tensor| {
            let parts = jobs.iter().filter_map(|job| job.conditioning.text.get(layer));
            self.join(parts.map(|text| part(text).shallow_clone()).collect(), padding)
        };
        let text = (0..layers)
            .map(|layer| {
                Ok(KeyValue {
                    key: join(layer, |text| &text.key)?,
                    value: join(layer, |text| &text.value)?,
                })
            })
            .collect::<Result<_>>()?;
        if self.joined.len() == MAX_JOINED_TEXTS {
            self.joined.remove(0);
        }
        self.joined.push(JoinedText {
            jobs: jobs.iter().map(|job| Arc::downgrade(&job.conditioning.alive)).collect(),
            padding,
            text,
        });
        Ok(Some(self.joined.len() - 1))
    }

    /// Returns the prediction for a large image. A GPU computes it as any other, and saves memory only if there is too
    /// little.
    fn predict_large(
        &self,
        input: &UNetInput<'_>,
        split: BatchSplit<'_>,
        deltas: &[Option<&LayerDeltas>],
        stream: &Stream,
    ) -> Result<Tensor> {
        if self.device != Device::Cpu {
            match classify_errors(self.device, stream, || self.unet.forward(input, split, None)) {
                Err(Error::OutOfMemory(_)) => cuda::empty_cache(self.device)?,
                result => return result,
            }
        }
        predict_one_by_one(&self.unet, input, deltas)
    }
}

/// Repeats the deltas of each job for each of its entries.
fn of_entries<'a>(deltas: &[Option<&'a LayerDeltas>], sizes: &[i64]) -> Vec<Option<&'a LayerDeltas>> {
    let entries = std::iter::zip(deltas, sizes);
    entries
        .flat_map(|(deltas, &size)| std::iter::repeat_n(*deltas, size as usize))
        .collect()
}

/// Returns the deep feature of each job; `None` if the whole UNet runs.
fn deep_features(jobs: &[JobInput<'_>]) -> Result<Option<Vec<Tensor>>> {
    let features = jobs.iter().filter_map(|job| match job.deep_feature {
        DeepFeature::Reuse(feature) => Some(feature.shallow_clone()),
        DeepFeature::Unused | DeepFeature::Keep => None,
    });
    let features: Vec<Tensor> = features.collect();
    match features.len() {
        0 => Ok(None),
        count if count == jobs.len() => Ok(Some(features)),
        _ => Err(Error::internal("a UNet call of jobs that compute different layers")),
    }
}

/// Returns the number of entries that a UNet call on a GPU is padded to. cuDNN plans its work for each number of entries
/// anew, which takes tenths of a second, and keeps the plans.
fn padded_batch_size(entries: i64) -> i64 {
    let multiple = match entries {
        ..=2 => 1,
        3..=8 => 2,
        9..=32 => 4,
        _ => 8,
    };
    (entries + multiple - 1) / multiple * multiple
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padded_batch_size_takes_few_values() {
        let sizes: std::collections::BTreeSet<i64> = (1..=32).map(padded_batch_size).collect();
        assert_eq!(
            sizes.into_iter().collect::<Vec<_>>(),
            [1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32]
        );
        for entries in 1..=256 {
            let padded = padded_batch_size(entries);
            assert!(
                padded >= entries && padded * 3 <= entries * 4,
                "{entries} entries become {padded}"
            );
        }
    }
}
