//! The devices that models run on.

/// The host, or a CUDA GPU. Whether the GPU exists is checked by [`cuda::device`](super::cuda::device).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// The host.
    Cpu,
    /// The GPU with this index.
    Cuda(u32),
}

impl Device {
    /// Returns the device as torch names it: `cpu`, `cuda:0`, `cuda:1`, ...
    pub fn torch_name(self) -> String {
        match self {
            Self::Cpu => "cpu".to_owned(),
            Self::Cuda(index) => format!("cuda:{index}"),
        }
    }

    /// Returns whether the device failed in a way that this process cannot recover from.
    pub fn is_lost(self) -> bool {
        match self {
            Self::Cpu => false,
            Self::Cuda(index) => i32::try_from(index).is_ok_and(super::cuda::is_lost),
        }
    }
}

impl From<Device> for tch::Device {
    fn from(device: Device) -> Self {
        match device {
            Device::Cpu => Self::Cpu,
            Device::Cuda(index) => Self::Cuda(index as usize),
        }
    }
}

/// Writes the label of the metric `diffusion_weights_bytes`: `cpu`, `gpu0`, `gpu1`, ...
impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "gpu{index}"),
        }
    }
}
