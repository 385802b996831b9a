//! Batch invariance: how the entries of one call divide among jobs.
//!
//! libtorch chooses CPU kernels by the size of the batch. A 3x3 convolution of one entry uses another kernel than one of
//! two (`use_mkldnn` in `aten/src/ATen/native/Convolution.cpp`: a batch of one below 20,480 elements), a matrix product
//! of few lines another than one of many, and a vectorised activation treats the end of its input separately. The bytes
//! of an entry would depend on the jobs that share the call. Layers whose kernels look at the batch therefore run once
//! for each job when [`BatchSplit::PerJob`] says where the jobs are.

use tch::Tensor;

use super::low_rank::AdaptedJobs;
use super::operands::aligned;
use diffusion_core::Result;

/// How the batch entries (dimension 0) of one call divide among jobs.
#[derive(Clone, Copy, Debug)]
pub enum BatchSplit<'a> {
    /// All entries are computed together.
    Joint,
    /// Consecutive groups of these sizes, each computed as if it were alone: the result is batch-invariant.
    PerJob(&'a [i64]),
    /// Jobs some of which have adapters.
    Adapted(AdaptedJobs<'a>),
}

impl<'a> BatchSplit<'a> {
    /// Returns the jobs, if some have adapters for the layer.
    pub(super) fn adapted(self, layer: &str) -> Option<AdaptedJobs<'a>> {
        match self {
            Self::Adapted(jobs) if jobs.adapt(layer) => Some(jobs),
            Self::Adapted(_) | Self::Joint | Self::PerJob(_) => None,
        }
    }

    /// Applies `f` to each job's entries of `input` and joins the results.
    ///
    /// ```
    /// use tch::{Kind, Tensor};
    /// use triton_diffusion::models::layers::BatchSplit;
    ///
    /// let input = Tensor::from_slice(&[1i64, 2, 3]);
    /// let sums = |split: BatchSplit| split.map(&input, |entries| Ok(entries.f_sum(Kind::Int64)?.f_view([1])?));
    /// assert_eq!(sums(BatchSplit::Joint)?, Tensor::from_slice(&[6i64]));
    /// assert_eq!(sums(BatchSplit::PerJob(&[1, 2]))?, Tensor::from_slice(&[1i64, 5]));
    /// # Ok::<(), diffusion_core::Error>(())
    /// ```
    pub fn map(self, input: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        self.map_all([input], |[input]| f(input))
    }

    /// Does what [`BatchSplit::map`] does, and tells `f` whether the job has adapters, for any layer.
    pub(super) fn map_adapted(self, input: &Tensor, f: impl Fn(&Tensor, bool) -> Result<Tensor>) -> Result<Tensor> {
        self.map_jobs([input], |job, [input]| {
            let adapted = match self {
                Self::Adapted(jobs) => jobs.deltas.get(job).is_some_and(Option::is_some),
                Self::Joint | Self::PerJob(_) => false,
            };
            f(input, adapted)
        })
    }

    /// Applies `f` to each job's entries of several tensors; see [`BatchSplit::map`].
    pub fn map_all<const N: usize>(
        self,
        inputs: [&Tensor; N],
        f: impl Fn([&Tensor; N]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.map_jobs(inputs, |_, inputs| f(inputs))
    }

    /// Does what [`BatchSplit::map_all`] does, and tells `f` the number of the job.
    fn map_jobs<const N: usize>(
        self,
        inputs: [&Tensor; N],
        f: impl Fn(usize, [&Tensor; N]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let sizes = match self {
            Self::Joint | Self::Adapted(AdaptedJobs { apart: false, .. }) => return f(0, inputs),
            Self::PerJob([] | [_]) | Self::Adapted(AdaptedJobs { sizes: [] | [_], .. }) => return f(0, inputs),
            Self::PerJob(sizes) | Self::Adapted(AdaptedJobs { sizes, .. }) => sizes,
        };
        let mut outputs = Vec::with_capacity(sizes.len());
        let mut start = 0;
        for (job, &size) in sizes.iter().enumerate() {
            let mut entries = inputs.map(Tensor::shallow_clone);
            for tensor in &mut entries {
                *tensor = aligned(tensor.f_narrow(0, start, size)?)?;
            }
            outputs.push(f(job, entries.each_ref())?);
            start += size;
        }
        Ok(Tensor::f_cat(&outputs, 0)?)
    }
}
