//! The entry points of the backend under test.

use triton_api::sys::{
    TRITONBACKEND_Backend, TRITONBACKEND_BackendAttribute, TRITONBACKEND_Model, TRITONBACKEND_ModelInstance,
    TRITONBACKEND_Request, TRITONSERVER_Error,
};

type RawError = *mut TRITONSERVER_Error;

/// Pointers to the functions that a backend exports. [`backend_symbols!`](crate::backend_symbols) returns
/// the linked ones.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "each field is the TRITONBACKEND function of that name")]
pub struct BackendSymbols {
    pub initialize: unsafe extern "C" fn(*mut TRITONBACKEND_Backend) -> RawError,
    pub finalize: unsafe extern "C" fn(*mut TRITONBACKEND_Backend) -> RawError,
    pub get_backend_attribute:
        unsafe extern "C" fn(*mut TRITONBACKEND_Backend, *mut TRITONBACKEND_BackendAttribute) -> RawError,
    pub model_initialize: unsafe extern "C" fn(*mut TRITONBACKEND_Model) -> RawError,
    pub model_finalize: unsafe extern "C" fn(*mut TRITONBACKEND_Model) -> RawError,
    pub model_instance_initialize: unsafe extern "C" fn(*mut TRITONBACKEND_ModelInstance) -> RawError,
    pub model_instance_finalize: unsafe extern "C" fn(*mut TRITONBACKEND_ModelInstance) -> RawError,
    pub model_instance_execute:
        unsafe extern "C" fn(*mut TRITONBACKEND_ModelInstance, *mut *mut TRITONBACKEND_Request, u32) -> RawError,
    pub model_instance_ready: unsafe extern "C" fn(*mut TRITONBACKEND_ModelInstance) -> RawError,
}

/// Returns the [`BackendSymbols`] that this binary links: those of `export_backend!` in this crate or in a
/// crate that it uses (`use my_backend as _;` is enough).
#[macro_export]
macro_rules! backend_symbols {
    () => {{
        use $crate::sys::{
            TRITONBACKEND_Backend, TRITONBACKEND_BackendAttribute, TRITONBACKEND_Model, TRITONBACKEND_ModelInstance,
            TRITONBACKEND_Request, TRITONSERVER_Error,
        };
        unsafe extern "C" {
            fn TRITONBACKEND_Initialize(backend: *mut TRITONBACKEND_Backend) -> *mut TRITONSERVER_Error;
            fn TRITONBACKEND_Finalize(backend: *mut TRITONBACKEND_Backend) -> *mut TRITONSERVER_Error;
            fn TRITONBACKEND_GetBackendAttribute(
                backend: *mut TRITONBACKEND_Backend,
                attributes: *mut TRITONBACKEND_BackendAttribute,
            ) -> *mut TRITONSERVER_Error;
            fn TRITONBACKEND_ModelInitialize(model: *mut TRITONBACKEND_Model) -> *mut TRITONSERVER_Error;
            fn TRITONBACKEND_ModelFinalize(model: *mut TRITONBACKEND_Model) -> *mut TRITONSERVER_Error;
            fn TRITONBACKEND_ModelInstanceInitialize(
                instance: *mut TRITONBACKEND_ModelInstance,
            ) -> *mut TRITONSERVER_Error;
            fn TRITONBACKEND_ModelInstanceFinalize(
                instance: *mut TRITONBACKEND_ModelInstance,
            ) -> *mut TRITONSERVER_Error;
            fn TRITONBACKEND_ModelInstanceExecute(
                instance: *mut TRITONBACKEND_ModelInstance,
                requests: *mut *mut TRITONBACKEND_Request,
                request_count: u32,
            ) -> *mut TRITONSERVER_Error;
            fn TRITONBACKEND_ModelInstanceReady(instance: *mut TRITONBACKEND_ModelInstance) -> *mut TRITONSERVER_Error;
        }
        $crate::BackendSymbols {
            initialize: TRITONBACKEND_Initialize,
            finalize: TRITONBACKEND_Finalize,
            get_backend_attribute: TRITONBACKEND_GetBackendAttribute,
            model_initialize: TRITONBACKEND_ModelInitialize,
            model_finalize: TRITONBACKEND_ModelFinalize,
            model_instance_initialize: TRITONBACKEND_ModelInstanceInitialize,
            model_instance_finalize: TRITONBACKEND_ModelInstanceFinalize,
            model_instance_execute: TRITONBACKEND_ModelInstanceExecute,
            model_instance_ready: TRITONBACKEND_ModelInstanceReady,
        }
    }};
}
