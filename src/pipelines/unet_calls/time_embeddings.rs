//! The time embeddings of jobs, and what is added to them.

use tch::Tensor;

use super::{ConditioningInput, DeepFeature, JobInput, UNetCalls, of_entries};
use crate::models::layers::{AdaptedJobs, BatchSplit, LayerDeltas, TimeShifts};
use crate::models::unet::{AddedCondition, TimeInput};
use crate::torch::Stream;
use diffusion_core::{Error, Result};

/// The time embeddings of a job.
pub(super) enum JobTime {
    /// The biases of all steps, and the channels of each resnet. There is one tensor `[steps, channels of all resnets]` for
    /// all entries or, if entries with and without the prompt differ, one for each half of them.
    Run(Vec<Tensor>, Vec<i64>),
    /// Computed at each step: a product over all steps would round differently.
    EachStep {
        class_label: Option<Tensor>,
        timestep_cond: Option<Tensor>,
        added: Option<AddedCondition>,
    },
}

impl UNetCalls {
    /// Prepares the time embeddings of a job.
    pub(super) fn job_time(&self, input: &ConditioningInput<'_>, stream: &Stream) -> Result<JobTime> {
        if self.splits_jobs() {
            return Ok(JobTime::EachStep {
                class_label: input.class_label.as_ref().map(Tensor::shallow_clone),
                timestep_cond: input.timestep_cond.as_ref().map(Tensor::shallow_clone),
                added: input.added.as_ref().map(AddedCondition::shallow_clone),
            });
        }
        let timesteps: Vec<f32> = input.timesteps.iter().map(|&timestep| timestep as f32).collect();
        let timesteps = stream.to_device(&Tensor::f_from_slice(&timesteps)?)?;
        let mut runs = Vec::new();
        let mut channels = Vec::new();
        // The first and the last entry: those of the two halves.
        let last = input.prompt_embeds.size3()?.0 - 1;
        let entries = if input.added.is_some() && last > 0 {
            vec![0, last]
        } else {
            vec![0]
        };
        for entry in entries {
            let biases = self.run_biases(input, &timesteps, entry)?;
            channels = biases.iter().map(|bias| Ok(bias.size2()?.1)).collect::<Result<_>>()?;
            runs.push(Tensor::f_cat(&biases, 1)?);
        }
        Ok(JobTime::Run(runs, channels))
    }

    /// Computes the biases of one entry at all steps.
    fn run_biases(&self, input: &ConditioningInput<'_>, timesteps: &Tensor, entry: i64) -> Result<Vec<Tensor>> {
        let steps = timesteps.size1()?;
        let each_step = |tensor: &Tensor| tensor.f_narrow(0, entry, 1)?.f_expand([steps, -1], false);
        let label = input.class_label.as_ref();
        let label = label.map(|label| label.f_expand([steps], false)).transpose()?;
        let cond = input.timestep_cond.as_ref();
        let cond = cond.map(|cond| cond.f_narrow(0, 0, 1)?.f_expand([steps, -1], false));
        let added = input.added.as_ref().map(|added| -> Result<_> {
            Ok(AddedCondition {
                text_embeds: each_step(&added.text_embeds)?,
                time_ids: each_step(&added.time_ids)?,
            })
        });
        let (cond, added) = (cond.transpose()?, added.transpose()?);
        let time = TimeInput {
            timesteps,
            class_labels: label.as_ref(),
            timestep_cond: cond.as_ref(),
            added: added.as_ref(),
        };
        let split = BatchSplit::Adapted(AdaptedJobs {
            sizes: &[steps],
            deltas: &[input.adapters],
            apart: false,
        });
        self.unet.time_biases(&time, split)
    }

    /// Returns the time embeddings of all entries: those of the last resnet alone for a call with deep features.
    pub(super) fn time_shifts(
        &self,
        jobs: &[JobInput<'_>],
        sizes: &[i64],
        padding: i64,
        one_by_one: bool,
    ) -> Result<TimeShifts> {
        let mut rows = Vec::with_capacity(jobs.len());
        let mut widths: &[i64] = &[];
        for (job, &size) in jobs.iter().zip(sizes) {
            if let JobTime::Run(runs, channels) = &job.conditioning.time {
                let step = i64::try_from(job.step).map_err(|_| Error::internal("too many steps"))?;
                let share = size / i64::try_from(runs.len().max(1)).unwrap_or(1);
                for run in runs {
                    rows.push((run.f_narrow(0, step, 1)?, share));
                }
                widths = channels;
            }
        }
        let biases = match rows.as_slice() {
            [] => None,
            // All entries have one timestep.
            [(row, _)] => Some(row.shallow_clone()),
            rows => {
                let entries = rows.iter().map(|(row, size)| Ok(row.f_expand([*size, -1], false)?));
                Some(self.join(entries.collect::<Result<_>>()?, padding)?)
            }
        };
        let cached = jobs.iter().any(|job| matches!(job.deep_feature, DeepFeature::Reuse(_)));
        if let Some(biases) = biases {
            let shifts = TimeShifts::Biases(biases.f_split_with_sizes(widths, 1)?);
            return Ok(if cached { shifts.into_last() } else { shifts });
        }
        let mut timesteps = Vec::new();
        let mut labels = Vec::new();
        let mut conds = Vec::new();
        let (mut text_embeds, mut time_ids) = (Vec::new(), Vec::new());
        for (job, &size) in jobs.iter().zip(sizes) {
            timesteps.extend(std::iter::repeat_n(job.timestep, size as usize));
            if let JobTime::EachStep {
                class_label,
                timestep_cond,
                added,
            } = &job.conditioning.time
            {
                if let Some(added) = added {
                    text_embeds.push(added.text_embeds.shallow_clone());
                    time_ids.push(added.time_ids.shallow_clone());
                }
                labels.extend(class_label.as_ref().map(|label| label.f_repeat([size])).transpose()?);
                conds.extend(timestep_cond.as_ref().map(Tensor::shallow_clone));
            }
        }
        let join = |tensors: &[Tensor]| (!tensors.is_empty()).then(|| Tensor::f_cat(tensors, 0)).transpose();
        let (labels, conds) = (join(&labels)?, join(&conds)?);
        let added = match (join(&text_embeds)?, join(&time_ids)?) {
            (Some(text_embeds), Some(time_ids)) => Some(AddedCondition { text_embeds, time_ids }),
            _ => None,
        };
        let deltas: Vec<Option<&LayerDeltas>> = jobs.iter().map(|job| job.adapters).collect();
        let (sizes, deltas) = if one_by_one {
            (vec![1; timesteps.len()], of_entries(&deltas, sizes))
        } else {
            (sizes.to_vec(), deltas)
        };
        let split = BatchSplit::Adapted(AdaptedJobs {
            sizes: &sizes,
            deltas: &deltas,
            apart: true,
        });
        let time = TimeInput {
            timesteps: &Tensor::f_from_slice(&timesteps)?,
            class_labels: labels.as_ref(),
            timestep_cond: conds.as_ref(),
            added: added.as_ref(),
        };
        if cached {
            self.unet.last_time_shift(&time, split)
        } else {
            self.unet.time_shifts(&time, split)
        }
    }
}
