//! Functions of Triton that older servers lack. They are looked for at run time: a library that imports them could not be
//! loaded there.

use std::ffi::CStr;
use std::sync::OnceLock;

use crate::sys;

/// The functions for histograms; a server has all or none of them (since 24.08).
#[derive(Clone, Copy, Debug)]
pub(crate) struct HistogramFunctions {
    pub new_args: unsafe extern "C" fn(*mut *mut sys::TRITONSERVER_MetricArgs) -> *mut sys::TRITONSERVER_Error,
    pub set_buckets:
        unsafe extern "C" fn(*mut sys::TRITONSERVER_MetricArgs, *const f64, u64) -> *mut sys::TRITONSERVER_Error,
    pub delete_args: unsafe extern "C" fn(*mut sys::TRITONSERVER_MetricArgs) -> *mut sys::TRITONSERVER_Error,
    pub new_metric: unsafe extern "C" fn(
        *mut *mut sys::TRITONSERVER_Metric,
        *mut sys::TRITONSERVER_MetricFamily,
        *mut *const sys::TRITONSERVER_Parameter,
        u64,
        *const sys::TRITONSERVER_MetricArgs,
    ) -> *mut sys::TRITONSERVER_Error,
    pub observe: unsafe extern "C" fn(*mut sys::TRITONSERVER_Metric, f64) -> *mut sys::TRITONSERVER_Error,
}

/// The functions for activities of a trace (since 24.07).
#[derive(Clone, Copy, Debug)]
pub(crate) struct TraceFunctions {
    pub of_request: unsafe extern "C" fn(
        *mut sys::TRITONBACKEND_Request,
        *mut *mut sys::TRITONSERVER_InferenceTrace,
    ) -> *mut sys::TRITONSERVER_Error,
    pub report_activity: unsafe extern "C" fn(
        *mut sys::TRITONSERVER_InferenceTrace,
        u64,
        *const std::ffi::c_char,
    ) -> *mut sys::TRITONSERVER_Error,
}

/// Returns the functions for histograms, if the server has them.
pub(crate) fn histograms() -> Option<HistogramFunctions> {
    static FUNCTIONS: OnceLock<Option<HistogramFunctions>> = OnceLock::new();
    // SAFETY: the types are those of the functions in Triton's `tritonserver.h`, which `include/triton_api.h` repeats.
    *FUNCTIONS.get_or_init(|| unsafe {
        Some(HistogramFunctions {
            new_args: function::<sys::TRITONSERVER_MetricArgsNewFn>(c"TRITONSERVER_MetricArgsNew")?,
            set_buckets: function::<sys::TRITONSERVER_MetricArgsSetHistogramFn>(
                c"TRITONSERVER_MetricArgsSetHistogram",
            )?,
            delete_args: function::<sys::TRITONSERVER_MetricArgsDeleteFn>(c"TRITONSERVER_MetricArgsDelete")?,
            new_metric: function::<sys::TRITONSERVER_MetricNewWithArgsFn>(c"TRITONSERVER_MetricNewWithArgs")?,
            observe: function::<sys::TRITONSERVER_MetricObserveFn>(c"TRITONSERVER_MetricObserve")?,
        })
    })
}

/// Returns the functions for traces, if the server has them.
pub(crate) fn traces() -> Option<TraceFunctions> {
    static FUNCTIONS: OnceLock<Option<TraceFunctions>> = OnceLock::new();
    // SAFETY: as in `histograms`.
    *FUNCTIONS.get_or_init(|| unsafe {
        Some(TraceFunctions {
            of_request: function::<sys::TRITONBACKEND_RequestTraceFn>(c"TRITONBACKEND_RequestTrace")?,
            report_activity: function::<sys::TRITONSERVER_InferenceTraceReportActivityFn>(
                c"TRITONSERVER_InferenceTraceReportActivity",
            )?,
        })
    })
}

/// Looks for a function in the libraries of the process. `F` is an `Option` of its type.
///
/// # Safety
/// `F` must be the type of the function with this name.
unsafe fn function<F: Copy + Default>(name: &CStr) -> F {
    // SAFETY: the name is a C string; the call has no other requirement.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if address.is_null() {
        return F::default();
    }
    assert_eq!(size_of::<F>(), size_of_val(&address));
    // SAFETY: an `Option` of a function pointer has the representation of a pointer; the caller vouches for the type.
    unsafe { std::mem::transmute_copy(&address) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn function_that_no_library_has_is_none() {
        // SAFETY: the name is of no function.
        let found: sys::TRITONSERVER_MetricObserveFn = unsafe { function(c"TRITONSERVER_NoSuchFunction") };
        assert!(found.is_none());
    }
}
