//! The entry points of a backend, generic over the types that implement it.
//!
//! [`export_backend!`](crate::export_backend) gives each entry point its C name. The state pointer of a backend or
//! a model is an `Arc`, that of an instance a `Box` of an `InstanceCell`. Initialize stores the pointer in Triton's
//! object; Finalize takes it back.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::{Backend, BackendContext, Instance, Model};
use crate::error::{Error, check, non_null};
use crate::instance::{InstanceContext, InstanceHandle};
use crate::model::ModelContext;
use crate::panic::{boundary, catch};
use crate::request::RequestBatch;
use crate::{log_error, log_info, sys};

pub use sys::{
    TRITONBACKEND_Backend, TRITONBACKEND_BackendAttribute, TRITONBACKEND_Model, TRITONBACKEND_ModelInstance,
    TRITONBACKEND_Request, TRITONSERVER_Error,
};

type InstanceOf<B> = <<B as Backend>::Model as Model>::Instance;
type RawError = *mut TRITONSERVER_Error;

/// The state of an instance. Execute takes the lock, without contention; Ready reads only the health in `handle`.
struct InstanceCell<I> {
    handle: Arc<InstanceHandle>,
    instance: Mutex<I>,
    /// Whether `execute` panicked, so the instance may be in an invalid state.
    panicked: AtomicBool,
}

/// Emits the `TRITONBACKEND_*` symbols of a backend, given the type that implements
/// [`Backend`](crate::Backend). Use the macro once in a library.
#[macro_export]
macro_rules! export_backend {
    ($backend:ty) => {
        // Only the symbols are visible outside this block.
        const _: () = {
            use $crate::export::{
                self, TRITONBACKEND_Backend, TRITONBACKEND_BackendAttribute, TRITONBACKEND_Model,
                TRITONBACKEND_ModelInstance, TRITONBACKEND_Request, TRITONSERVER_Error,
            };

            $crate::__entry_points! { $backend,
                TRITONBACKEND_Initialize => initialize(
                    backend: *mut TRITONBACKEND_Backend);
                TRITONBACKEND_Finalize => finalize(
                    backend: *mut TRITONBACKEND_Backend);
                TRITONBACKEND_GetBackendAttribute => get_backend_attribute(
                    backend: *mut TRITONBACKEND_Backend,
                    attributes: *mut TRITONBACKEND_BackendAttribute);
                TRITONBACKEND_ModelInitialize => model_initialize(
                    model: *mut TRITONBACKEND_Model);
                TRITONBACKEND_ModelFinalize => model_finalize(
                    model: *mut TRITONBACKEND_Model);
                TRITONBACKEND_ModelInstanceInitialize => model_instance_initialize(
                    instance: *mut TRITONBACKEND_ModelInstance);
                TRITONBACKEND_ModelInstanceFinalize => model_instance_finalize(
                    instance: *mut TRITONBACKEND_ModelInstance);
                TRITONBACKEND_ModelInstanceExecute => model_instance_execute(
                    instance: *mut TRITONBACKEND_ModelInstance,
                    requests: *mut *mut TRITONBACKEND_Request,
                    request_count: u32);
                TRITONBACKEND_ModelInstanceReady => model_instance_ready(
                    instance: *mut TRITONBACKEND_ModelInstance);
            }
        };
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __entry_points {
    ($backend:ty, $($symbol:ident => $function:ident($($arg:ident: $type:ty),*);)*) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $symbol($($arg: $type),*) -> *mut TRITONSERVER_Error {
                // SAFETY: only Triton calls this, with arguments as its API specifies.
                unsafe { export::$function::<$backend>($($arg),*) }
            }
        )*
    };
}

/// Implements `TRITONBACKEND_Initialize`.
///
/// # Safety
///
/// Called by Triton, with its live backend.
pub unsafe fn initialize<B: Backend>(backend: *mut TRITONBACKEND_Backend) -> RawError {
    boundary("TRITONBACKEND_Initialize", || {
        let raw = non_null(backend, "backend")?;
        check_api_version()?;
        // SAFETY: the backend is live, and its state pointer is used by this library alone.
        unsafe {
            let context = BackendContext::new(&raw)?;
            let state = Arc::new(B::initialize(&context)?);
            store(state, |state| sys::TRITONBACKEND_BackendSetState(backend, state))?;
            log_info!("backend '{}' is initialized", context.name());
        }
        Ok(())
    })
}

/// Implements `TRITONBACKEND_Finalize`, which Triton also calls after a failed Initialize.
///
/// # Safety
///
/// Called by Triton, with its live backend, after all its models are finalized.
pub unsafe fn finalize<B: Backend>(backend: *mut TRITONBACKEND_Backend) -> RawError {
    boundary("TRITONBACKEND_Finalize", || {
        non_null(backend, "backend")?;
        // SAFETY: the state is null or what Initialize stored, and is taken only here.
        unsafe {
            let state = take(
                |out| sys::TRITONBACKEND_BackendState(backend, out),
                |state| sys::TRITONBACKEND_BackendSetState(backend, state),
            )?;
            if let Some(state) = state {
                drop(Arc::from_raw(state.cast::<B>().as_ptr()));
            }
        }
        Ok(())
    })
}

/// Implements `TRITONBACKEND_GetBackendAttribute`.
///
/// # Safety
///
/// Called by Triton, with its live attributes.
pub unsafe fn get_backend_attribute<B: Backend>(
    _backend: *mut TRITONBACKEND_Backend,
    attributes: *mut TRITONBACKEND_BackendAttribute,
) -> RawError {
    boundary("TRITONBACKEND_GetBackendAttribute", || {
        let attributes = non_null(attributes, "backend attributes")?;
        // SAFETY: the attributes are live.
        unsafe {
            check(sys::TRITONBACKEND_BackendAttributeSetParallelModelInstanceLoading(
                attributes.as_ptr(),
                B::PARALLEL_INSTANCE_LOADING,
            ))
        }
    })
}

/// Implements `TRITONBACKEND_ModelInitialize`.
///
/// # Safety
///
/// Called by Triton, with its live model.
pub unsafe fn model_initialize<B: Backend>(model: *mut TRITONBACKEND_Model) -> RawError {
    boundary("TRITONBACKEND_ModelInitialize", || {
        let raw = non_null(model, "model")?;
        // SAFETY: the model is live and so is its backend, whose state Initialize stored.
        unsafe {
            let mut backend = std::ptr::null_mut();
            check(sys::TRITONBACKEND_ModelBackend(model, &mut backend))?;
            let backend = non_null(backend, "backend")?;
            let backend: Arc<B> = share(|out| sys::TRITONBACKEND_BackendState(backend.as_ptr(), out))?;
            let mut context = ModelContext::new(&raw)?;
            let state = Arc::new(B::Model::initialize(&backend, &mut context)?);
            store(state, |state| sys::TRITONBACKEND_ModelSetState(model, state))
        }
    })
}

/// Implements `TRITONBACKEND_ModelFinalize`, which Triton also calls after a failed ModelInitialize.
///
/// # Safety
///
/// Called by Triton, with its live model, after all its instances are finalized.
pub unsafe fn model_finalize<B: Backend>(model: *mut TRITONBACKEND_Model) -> RawError {
    boundary("TRITONBACKEND_ModelFinalize", || {
        non_null(model, "model")?;
        // SAFETY: the state is null or what ModelInitialize stored, and is taken only here.
        unsafe {
            let state = take(
                |out| sys::TRITONBACKEND_ModelState(model, out),
                |state| sys::TRITONBACKEND_ModelSetState(model, state),
            )?;
            if let Some(state) = state {
                drop(Arc::from_raw(state.cast::<B::Model>().as_ptr()));
            }
        }
        Ok(())
    })
}

/// Implements `TRITONBACKEND_ModelInstanceInitialize`.
///
/// # Safety
///
/// Called by Triton, with its live instance.
pub unsafe fn model_instance_initialize<B: Backend>(instance: *mut TRITONBACKEND_ModelInstance) -> RawError {
    boundary("TRITONBACKEND_ModelInstanceInitialize", || {
        let raw = non_null(instance, "model instance")?;
        // SAFETY: the instance is live and so is its model, whose state ModelInitialize stored.
        unsafe {
            let mut model = std::ptr::null_mut();
            check(sys::TRITONBACKEND_ModelInstanceModel(instance, &mut model))?;
            let model = non_null(model, "model")?;
            let state: Arc<B::Model> = share(|out| sys::TRITONBACKEND_ModelState(model.as_ptr(), out))?;
            let context = InstanceContext::new(&raw, model)?;
            let cell = Box::new(InstanceCell {
                instance: Mutex::new(InstanceOf::<B>::initialize(&state, &context)?),
                handle: context.handle(),
                panicked: AtomicBool::new(false),
            });
            let cell = Box::into_raw(cell);
            check(sys::TRITONBACKEND_ModelInstanceSetState(instance, cell.cast()))
                .inspect_err(|_| drop(Box::from_raw(cell)))
        }
    })
}

/// Implements `TRITONBACKEND_ModelInstanceFinalize`, which Triton also calls after a failed ModelInstanceInitialize.
///
/// # Safety
///
/// Called by Triton, with its live instance, as the last call for the instance.
pub unsafe fn model_instance_finalize<B: Backend>(instance: *mut TRITONBACKEND_ModelInstance) -> RawError {
    boundary("TRITONBACKEND_ModelInstanceFinalize", || {
        non_null(instance, "model instance")?;
        // SAFETY: the state is null or what ModelInstanceInitialize stored, and is taken only
        // here.
        unsafe {
            let state = take(
                |out| sys::TRITONBACKEND_ModelInstanceState(instance, out),
                |state| sys::TRITONBACKEND_ModelInstanceSetState(instance, state),
            )?;
            if let Some(state) = state {
                let cell = *Box::from_raw(state.cast::<InstanceCell<InstanceOf<B>>>().as_ptr());
                // Dropping the instance ends its threads and slots, which may report statistics. Only
                // then is Triton's instance forgotten, even if the drop panics.
                let InstanceCell { handle, instance, .. } = cell;
                let _close = Close(&handle);
                drop(instance);
            }
        }
        Ok(())
    })
}

/// Implements `TRITONBACKEND_ModelInstanceExecute`.
///
/// # Safety
///
/// Called by Triton, with its live instance and requests.
pub unsafe fn model_instance_execute<B: Backend>(
    instance: *mut TRITONBACKEND_ModelInstance,
    requests: *mut *mut TRITONBACKEND_Request,
    request_count: u32,
) -> RawError {
    const PLACE: &str = "TRITONBACKEND_ModelInstanceExecute";
    let accepted = Cell::new(false);
    let outcome = catch(PLACE, || {
        // SAFETY: the state is what ModelInstanceInitialize stored; the requests are Triton's.
        let (cell, batch) = unsafe {
            let cell = instance_cell::<B>(instance)?;
            if !InstanceOf::<B>::EXECUTES_WHEN_POISONED || cell.panicked.load(Ordering::Relaxed) {
                cell.handle
                    .health
                    .check()
                    .map_err(|error| in_instance(error, &cell.handle))?;
            }
            let batch = RequestBatch::new(&cell.handle, requests, request_count, &accepted)?;
            (cell, batch)
        };
        let mut state = cell.instance.lock().unwrap_or_else(PoisonError::into_inner);
        // Caught here, because an instance that panicked may be in an invalid state.
        catch(PLACE, || state.execute(batch)).unwrap_or_else(|error| {
            cell.panicked.store(true, Ordering::Relaxed);
            cell.handle.health.poison("a panic in `execute`");
            Err(in_instance(error, &cell.handle))
        })
    });
    let error = match (outcome.and_then(|ended| ended), accepted.get()) {
        (Ok(()), true) => return std::ptr::null_mut(),
        (Ok(()), false) if request_count == 0 => return std::ptr::null_mut(),
        (Ok(()), false) => Error::internal(format!("{PLACE}: the requests were not accepted")),
        // The slots own the requests now. An error returned here would make Triton answer and
        // release the requests a second time.
        (Err(error), true) => {
            let _ = catch(PLACE, || log_error!("after the requests were accepted: {error}"));
            return std::ptr::null_mut();
        }
        (Err(error), false) => error,
    };
    error.into_raw()
}

/// Implements `TRITONBACKEND_ModelInstanceReady`. Reads only the health, because the call may overlap with Execute.
///
/// # Safety
///
/// Called by Triton, with its live instance.
pub unsafe fn model_instance_ready<B: Backend>(instance: *mut TRITONBACKEND_ModelInstance) -> RawError {
    boundary("TRITONBACKEND_ModelInstanceReady", || {
        // SAFETY: the state is what ModelInstanceInitialize stored.
        let cell = unsafe { instance_cell::<B>(instance) }?;
        cell.handle
            .health
            .check()
            .map_err(|error| in_instance(error, &cell.handle))
    })
}

/// Checks that the server has the same major API version as this crate and at least its minor version.
fn check_api_version() -> Result<(), Error> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the results point to locals.
    unsafe { check(sys::TRITONBACKEND_ApiVersion(&mut major, &mut minor))? };
    let (our_major, our_minor) = (
        sys::TRITONBACKEND_API_VERSION_MAJOR,
        sys::TRITONBACKEND_API_VERSION_MINOR,
    );
    if major == our_major && minor >= our_minor {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "unsupported backend API version: expected {our_major}.{our_minor} or a later minor version, \
         got {major}.{minor}"
    )))
}

fn in_instance(error: Error, handle: &InstanceHandle) -> Error {
    error.context(format_args!(
        "model '{}', instance '{}'",
        handle.model_name, handle.name
    ))
}

/// Forgets Triton's instance when it goes out of scope.
struct Close<'a>(&'a InstanceHandle);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Stores `state` in Triton's object, which then owns one reference.
///
/// # Safety
///
/// `set` stores the pointer in an object whose state is used by this library alone.
unsafe fn store<T>(state: Arc<T>, set: impl FnOnce(*mut c_void) -> RawError) -> Result<(), Error> {
    let pointer = Arc::into_raw(state);
    // SAFETY: an error means that it was not stored, so it is taken back.
    unsafe { check(set(pointer.cast_mut().cast())).inspect_err(|_| drop(Arc::from_raw(pointer))) }
}

/// Returns a new reference to a state that [`store`] has stored.
///
/// # Safety
///
/// `get` returns null or the pointer that was stored as a `T` and has not been taken.
unsafe fn share<T>(get: impl FnOnce(*mut *mut c_void) -> RawError) -> Result<Arc<T>, Error> {
    let mut pointer = std::ptr::null_mut();
    // SAFETY: the caller guarantees the pointer; the count goes up for the new handle.
    unsafe {
        check(get(&mut pointer))?;
        let pointer = non_null(pointer, "state")?.cast::<T>().as_ptr();
        Arc::increment_strong_count(pointer);
        Ok(Arc::from_raw(pointer))
    }
}

/// Takes the state out of an object and leaves null.
///
/// # Safety
///
/// `get` and `set` work on the state of one live object.
unsafe fn take(
    get: impl FnOnce(*mut *mut c_void) -> RawError,
    set: impl FnOnce(*mut c_void) -> RawError,
) -> Result<Option<NonNull<c_void>>, Error> {
    let mut pointer = std::ptr::null_mut();
    // SAFETY: the caller guarantees both.
    unsafe {
        check(get(&mut pointer))?;
        check(set(std::ptr::null_mut()))?;
    }
    Ok(NonNull::new(pointer))
}

/// # Safety
///
/// `instance` is null or live, and its state null or what ModelInstanceInitialize stored; it
/// is not finalized during `'a`.
unsafe fn instance_cell<'a, B: Backend>(
    instance: *mut TRITONBACKEND_ModelInstance,
) -> Result<&'a InstanceCell<InstanceOf<B>>, Error> {
    let instance = non_null(instance, "model instance")?;
    let mut state = std::ptr::null_mut();
    // SAFETY: the caller guarantees the handle and its state.
    unsafe {
        check(sys::TRITONBACKEND_ModelInstanceState(instance.as_ptr(), &mut state))?;
        Ok(non_null(state, "state of the instance")?
            .cast::<InstanceCell<InstanceOf<B>>>()
            .as_ref())
    }
}
