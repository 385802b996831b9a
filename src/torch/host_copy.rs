//! A copy on the host that another thread waits for.

use tch::Tensor;

use super::cuda;
use super::pinned::pinned_bytes;
use super::stream::{Event, Stream};
use diffusion_core::Result;

/// A copy of a tensor in the memory of the host. The thread that makes it does not wait for the GPU; the thread that reads
/// it does.
pub struct HostCopy {
    tensor: Tensor,
    /// The point of the stream at which the copy is done; `None` for a tensor of the CPU, which is the tensor itself.
    done: Option<Event>,
}

impl Stream {
    /// Queues a copy of a tensor to memory that nothing else uses.
    ///
    /// # Errors
    /// Out of memory; errors of CUDA, as `Internal`.
    pub fn copy_to_host(&self, tensor: &Tensor) -> Result<HostCopy> {
        let Some(raw) = self.raw() else {
            return Ok(HostCopy {
                tensor: tensor.shallow_clone(),
                done: None,
            });
        };
        let tensor = tensor.f_contiguous()?;
        let bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
        let pinned = pinned_bytes(bytes)?
            .f_view_dtype(tensor.kind())?
            .f_view(tensor.size().as_slice())?;
        let mut copy = HostCopy {
            tensor: pinned,
            done: Some(Event::new(raw)),
        };
        raw.copy(&copy.tensor, &tensor)?;
        if let Some(done) = &mut copy.done {
            done.record()?;
        }
        Ok(copy)
    }
}

impl HostCopy {
    /// Waits for the copy.
    ///
    /// # Errors
    /// `DeviceLost` if the GPU failed.
    pub fn wait(&self) -> Result<&Tensor> {
        if let Some(done) = &self.done {
            done.synchronize()?;
        }
        Ok(&self.tensor)
    }
}

/// Waits for the copy, so that its memory is not written after it is freed.
impl Drop for HostCopy {
    fn drop(&mut self) {
        if let Some(done) = &self.done {
            // A failure is a lost device, which the instance reports at its next call.
            let _ = done.synchronize();
            if cuda::is_lost(done.device()) {
                // libtorch asks the GPU when pinned memory is freed. The error would end the process.
                let tensor = std::mem::replace(&mut self.tensor, Tensor::new());
                std::mem::forget(tensor);
            }
        }
    }
}
