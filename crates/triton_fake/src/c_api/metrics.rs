//! Metrics. As in Triton, equal names and labels share one value.

use std::collections::BTreeMap;
use std::ffi::c_char;

use triton_api::sys::*;

use super::{RawError, call, copy, put};
use crate::state::{Failure, FamilyObject, MetricObject, ParameterObject, id, raw};

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_MetricFamilyNew(
    family: *mut *mut TRITONSERVER_MetricFamily,
    kind: TRITONSERVER_MetricKind,
    name: *const c_char,
    _description: *const c_char,
) -> RawError {
    call(|state| {
        if !state.settings.metrics {
            return Err(Failure::new(TRITONSERVER_ERROR_UNSUPPORTED, "metrics not supported"));
        }
        // SAFETY: the caller passes a C string and `out` is null or valid.
        unsafe {
            let name = copy(name);
            let object = FamilyObject { kind, name, metrics: 0 };
            put(family, state.insert_raw(object));
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_MetricFamilyDelete(family: *mut TRITONSERVER_MetricFamily) -> RawError {
    const NAME: &str = "TRITONSERVER_MetricFamilyDelete";
    call(|state| {
        let metrics = state.get::<FamilyObject>(NAME, family)?.metrics;
        if metrics > 0 {
            state.violation(format!("{NAME}: the family still has {metrics} metrics"));
            return Err(Failure::new(
                TRITONSERVER_ERROR_INTERNAL,
                "Must call MetricDelete on all dependent metrics first",
            ));
        }
        state.remove::<FamilyObject>(NAME, family, "deleted")?;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_MetricNew(
    metric: *mut *mut TRITONSERVER_Metric,
    family: *mut TRITONSERVER_MetricFamily,
    labels: *mut *const TRITONSERVER_Parameter,
    label_count: u64,
) -> RawError {
    const NAME: &str = "TRITONSERVER_MetricNew";
    call(|state| {
        let mut map = BTreeMap::new();
        for index in 0..usize::try_from(label_count).unwrap_or(0) {
            // SAFETY: the caller passes that many labels.
            let label = unsafe { *labels.add(index) };
            let label = state.get::<ParameterObject>(NAME, label)?;
            map.insert(label.name.clone(), label.value.clone());
        }
        let parent = state.get::<FamilyObject>(NAME, family)?;
        parent.metrics += 1;
        let object = MetricObject {
            family: id(family),
            kind: parent.kind,
            key: (parent.name.clone(), map),
        };
        state.metric_values.entry(object.key.clone()).or_default();
        // SAFETY: the result pointer is null or valid.
        unsafe { put(metric, state.insert_raw(object)) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_MetricDelete(metric: *mut TRITONSERVER_Metric) -> RawError {
    const NAME: &str = "TRITONSERVER_MetricDelete";
    call(|state| {
        let metric = state.remove::<MetricObject>(NAME, metric, "deleted")?;
        let family = raw::<FamilyObject>(metric.family);
        state.get::<FamilyObject>(NAME, family)?.metrics -= 1;
        Ok(())
    })
}

fn change(
    function: &str,
    metric: *mut TRITONSERVER_Metric,
    change: impl FnOnce(TRITONSERVER_MetricKind, &mut f64) -> Result<(), Failure>,
) -> RawError {
    call(|state| {
        let metric = state.get::<MetricObject>(function, metric)?;
        let (kind, key) = (metric.kind, metric.key.clone());
        change(kind, state.metric_values.entry(key).or_default())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_MetricValue(
    metric: *mut TRITONSERVER_Metric,
    value: *mut f64,
) -> RawError {
    change("TRITONSERVER_MetricValue", metric, |_, current| {
        // SAFETY: the result pointer is null or valid.
        unsafe { put(value, *current) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_MetricIncrement(metric: *mut TRITONSERVER_Metric, value: f64) -> RawError {
    change("TRITONSERVER_MetricIncrement", metric, |kind, current| {
        if kind == TRITONSERVER_METRIC_KIND_COUNTER && value < 0.0 {
            return Err(Failure::new(
                TRITONSERVER_ERROR_INVALID_ARG,
                "a counter can only be incremented by non-negative values",
            ));
        }
        *current += value;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn TRITONSERVER_MetricSet(metric: *mut TRITONSERVER_Metric, value: f64) -> RawError {
    change("TRITONSERVER_MetricSet", metric, |kind, current| {
        if kind != TRITONSERVER_METRIC_KIND_GAUGE {
            return Err(Failure::new(TRITONSERVER_ERROR_UNSUPPORTED, "only a gauge can be set"));
        }
        *current = value;
        Ok(())
    })
}
