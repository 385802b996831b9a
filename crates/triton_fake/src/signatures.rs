//! Checks at compile time that each definition has the signature of the header: an array holds values of one
//! type.

use triton_api::sys;

use crate::c_api;

macro_rules! same_signature {
    ($($name:ident)*) => {
        $(const _: () = {
            let _ = [sys::$name, c_api::$name];
        };)*

        /// The names of the functions that this crate defines.
        pub const DEFINED: &[&str] = &[$(stringify!($name)),*];
    };
}

same_signature! {
    TRITONSERVER_ErrorNew
    TRITONSERVER_ErrorDelete
    TRITONSERVER_ErrorCode
    TRITONSERVER_ErrorMessage
    TRITONSERVER_MessageNewFromSerializedJson
    TRITONSERVER_MessageDelete
    TRITONSERVER_MessageSerializeToJson
    TRITONSERVER_LogIsEnabled
    TRITONSERVER_LogMessage
    TRITONSERVER_ParameterNew
    TRITONSERVER_ParameterDelete
    TRITONSERVER_MetricFamilyNew
    TRITONSERVER_MetricFamilyDelete
    TRITONSERVER_MetricNew
    TRITONSERVER_MetricDelete
    TRITONSERVER_MetricValue
    TRITONSERVER_MetricIncrement
    TRITONSERVER_MetricSet
    TRITONSERVER_BufferAttributesNew
    TRITONSERVER_BufferAttributesDelete
    TRITONSERVER_BufferAttributesSetMemoryTypeId
    TRITONSERVER_BufferAttributesSetMemoryType
    TRITONSERVER_BufferAttributesSetByteSize
    TRITONBACKEND_ApiVersion
    TRITONBACKEND_BackendName
    TRITONBACKEND_BackendConfig
    TRITONBACKEND_BackendArtifacts
    TRITONBACKEND_BackendState
    TRITONBACKEND_BackendSetState
    TRITONBACKEND_BackendAttributeSetParallelModelInstanceLoading
    TRITONBACKEND_ModelName
    TRITONBACKEND_ModelVersion
    TRITONBACKEND_ModelRepository
    TRITONBACKEND_ModelConfig
    TRITONBACKEND_ModelAutoCompleteConfig
    TRITONBACKEND_ModelSetConfig
    TRITONBACKEND_ModelBackend
    TRITONBACKEND_ModelState
    TRITONBACKEND_ModelSetState
    TRITONBACKEND_ModelInstanceName
    TRITONBACKEND_ModelInstanceKind
    TRITONBACKEND_ModelInstanceDeviceId
    TRITONBACKEND_ModelInstanceModel
    TRITONBACKEND_ModelInstanceState
    TRITONBACKEND_ModelInstanceSetState
    TRITONBACKEND_ModelInstanceReportMemoryUsage
    TRITONBACKEND_ModelInstanceReportStatistics
    TRITONBACKEND_ModelInstanceReportBatchStatistics
    TRITONBACKEND_RequestId
    TRITONBACKEND_InferenceRequestTimeoutMicroseconds
    TRITONBACKEND_RequestIsCancelled
    TRITONBACKEND_RequestInputCount
    TRITONBACKEND_RequestInputByIndex
    TRITONBACKEND_RequestOutputCount
    TRITONBACKEND_RequestOutputName
    TRITONBACKEND_RequestOutputBufferProperties
    TRITONBACKEND_RequestRelease
    TRITONBACKEND_InputProperties
    TRITONBACKEND_InputBuffer
    TRITONBACKEND_ResponseNew
    TRITONBACKEND_ResponseDelete
    TRITONBACKEND_ResponseSetStringParameter
    TRITONBACKEND_ResponseSetIntParameter
    TRITONBACKEND_ResponseSetBoolParameter
    TRITONBACKEND_ResponseOutput
    TRITONBACKEND_OutputBuffer
    TRITONBACKEND_ResponseSend
}
