//! Triton's enumerations as Rust types.
//!
//! Conversions from the server's values can fail, because a newer server may send a value that this crate does not
//! know.

use crate::sys;

/// The type of a tensor's elements (`TRITONSERVER_DataType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DataType {
    /// One byte, 0 or 1.
    Bool,
    /// Unsigned, 8 bits.
    Uint8,
    /// Unsigned, 16 bits.
    Uint16,
    /// Unsigned, 32 bits.
    Uint32,
    /// Unsigned, 64 bits.
    Uint64,
    /// Signed, 8 bits.
    Int8,
    /// Signed, 16 bits.
    Int16,
    /// Signed, 32 bits.
    Int32,
    /// Signed, 64 bits.
    Int64,
    /// IEEE half precision.
    Fp16,
    /// IEEE single precision.
    Fp32,
    /// IEEE double precision.
    Fp64,
    /// Byte strings of any length; `TYPE_STRING` in a model configuration (see [`crate::bytes`]).
    Bytes,
    /// bfloat16.
    Bf16,
}

impl DataType {
    /// Converts Triton's value; `None` if it is unknown.
    #[doc(hidden)]
    pub fn from_raw(raw: sys::TRITONSERVER_DataType) -> Option<Self> {
        Some(match raw {
            sys::TRITONSERVER_TYPE_BOOL => Self::Bool,
            sys::TRITONSERVER_TYPE_UINT8 => Self::Uint8,
            sys::TRITONSERVER_TYPE_UINT16 => Self::Uint16,
            sys::TRITONSERVER_TYPE_UINT32 => Self::Uint32,
            sys::TRITONSERVER_TYPE_UINT64 => Self::Uint64,
            sys::TRITONSERVER_TYPE_INT8 => Self::Int8,
            sys::TRITONSERVER_TYPE_INT16 => Self::Int16,
            sys::TRITONSERVER_TYPE_INT32 => Self::Int32,
            sys::TRITONSERVER_TYPE_INT64 => Self::Int64,
            sys::TRITONSERVER_TYPE_FP16 => Self::Fp16,
            sys::TRITONSERVER_TYPE_FP32 => Self::Fp32,
            sys::TRITONSERVER_TYPE_FP64 => Self::Fp64,
            sys::TRITONSERVER_TYPE_BYTES => Self::Bytes,
            sys::TRITONSERVER_TYPE_BF16 => Self::Bf16,
            _ => return None,
        })
    }

    /// Returns Triton's value.
    #[doc(hidden)]
    pub fn raw(self) -> sys::TRITONSERVER_DataType {
        match self {
            Self::Bool => sys::TRITONSERVER_TYPE_BOOL,
            Self::Uint8 => sys::TRITONSERVER_TYPE_UINT8,
            Self::Uint16 => sys::TRITONSERVER_TYPE_UINT16,
            Self::Uint32 => sys::TRITONSERVER_TYPE_UINT32,
            Self::Uint64 => sys::TRITONSERVER_TYPE_UINT64,
            Self::Int8 => sys::TRITONSERVER_TYPE_INT8,
            Self::Int16 => sys::TRITONSERVER_TYPE_INT16,
            Self::Int32 => sys::TRITONSERVER_TYPE_INT32,
            Self::Int64 => sys::TRITONSERVER_TYPE_INT64,
            Self::Fp16 => sys::TRITONSERVER_TYPE_FP16,
            Self::Fp32 => sys::TRITONSERVER_TYPE_FP32,
            Self::Fp64 => sys::TRITONSERVER_TYPE_FP64,
            Self::Bytes => sys::TRITONSERVER_TYPE_BYTES,
            Self::Bf16 => sys::TRITONSERVER_TYPE_BF16,
        }
    }

    /// Returns the size of one element in bytes; `None` for [`DataType::Bytes`], whose elements vary.
    pub fn byte_size(self) -> Option<usize> {
        Some(match self {
            Self::Bool | Self::Uint8 | Self::Int8 => 1,
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => 2,
            Self::Uint32 | Self::Int32 | Self::Fp32 => 4,
            Self::Uint64 | Self::Int64 | Self::Fp64 => 8,
            Self::Bytes => return None,
        })
    }
}

/// The memory that a buffer is in (`TRITONSERVER_MemoryType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MemoryType {
    /// Ordinary host memory.
    Cpu,
    /// Host memory that a GPU can access.
    CpuPinned,
    /// GPU memory, which the host must not access.
    Gpu,
}

impl MemoryType {
    /// Converts Triton's value; `None` if it is unknown.
    #[doc(hidden)]
    pub fn from_raw(raw: sys::TRITONSERVER_MemoryType) -> Option<Self> {
        Some(match raw {
            sys::TRITONSERVER_MEMORY_CPU => Self::Cpu,
            sys::TRITONSERVER_MEMORY_CPU_PINNED => Self::CpuPinned,
            sys::TRITONSERVER_MEMORY_GPU => Self::Gpu,
            _ => return None,
        })
    }

    /// Returns Triton's value.
    #[doc(hidden)]
    pub fn raw(self) -> sys::TRITONSERVER_MemoryType {
        match self {
            Self::Cpu => sys::TRITONSERVER_MEMORY_CPU,
            Self::CpuPinned => sys::TRITONSERVER_MEMORY_CPU_PINNED,
            Self::Gpu => sys::TRITONSERVER_MEMORY_GPU,
        }
    }

    /// Returns whether the host can access the memory.
    pub fn is_host(self) -> bool {
        self != Self::Gpu
    }
}

/// The kind of device of a model instance (`TRITONSERVER_InstanceGroupKind`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InstanceKind {
    /// `KIND_AUTO`. Triton replaces it before it creates an instance.
    Auto,
    /// `KIND_CPU`.
    Cpu,
    /// `KIND_GPU`: the GPU of the instance's device id.
    Gpu,
    /// `KIND_MODEL`: the model chooses its devices.
    Model,
}

impl InstanceKind {
    /// Converts Triton's value; `None` if it is unknown.
    #[doc(hidden)]
    pub fn from_raw(raw: sys::TRITONSERVER_InstanceGroupKind) -> Option<Self> {
        Some(match raw {
            sys::TRITONSERVER_INSTANCEGROUPKIND_AUTO => Self::Auto,
            sys::TRITONSERVER_INSTANCEGROUPKIND_CPU => Self::Cpu,
            sys::TRITONSERVER_INSTANCEGROUPKIND_GPU => Self::Gpu,
            sys::TRITONSERVER_INSTANCEGROUPKIND_MODEL => Self::Model,
            _ => return None,
        })
    }

    /// Returns Triton's value.
    #[doc(hidden)]
    pub fn raw(self) -> sys::TRITONSERVER_InstanceGroupKind {
        match self {
            Self::Auto => sys::TRITONSERVER_INSTANCEGROUPKIND_AUTO,
            Self::Cpu => sys::TRITONSERVER_INSTANCEGROUPKIND_CPU,
            Self::Gpu => sys::TRITONSERVER_INSTANCEGROUPKIND_GPU,
            Self::Model => sys::TRITONSERVER_INSTANCEGROUPKIND_MODEL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_type_raw_round_trips() {
        let known: Vec<DataType> = (0..64).filter_map(DataType::from_raw).collect();
        assert_eq!(known.len(), 14);
        for datatype in known {
            assert_eq!(DataType::from_raw(datatype.raw()), Some(datatype));
        }
    }

    #[test]
    fn from_raw_unknown_value_is_none() {
        assert_eq!(DataType::from_raw(sys::TRITONSERVER_TYPE_INVALID), None);
        assert_eq!(DataType::from_raw(15), None);
        assert_eq!(MemoryType::from_raw(3), None);
        assert_eq!(InstanceKind::from_raw(4), None);
    }
}
