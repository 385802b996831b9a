//! Custom metrics on the server's metrics endpoint.
//!
//! On a server without metrics, creating a family fails and a backend should continue without
//! metrics. Each metric holds a reference to its family, because Triton requires the family to
//! outlive it. Metrics with equal names and labels share one value, across models too.

use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::error::{Error, check, non_null};
use crate::optional::{self, HistogramFunctions};
use crate::{log_warn, sys, text};

/// A family of counters, values that only grow.
#[derive(Debug, Clone)]
pub struct CounterFamily(Arc<Family>);

impl CounterFamily {
    /// Registers a family of counters (`TRITONSERVER_MetricFamilyNew`).
    ///
    /// # Errors
    ///
    /// UNSUPPORTED if the server has no metrics. INVALID_ARG if the name is not valid in
    /// Prometheus (letters, digits, `_` and `:`, no digit first).
    pub fn new(name: &str, description: &str) -> Result<Self, Error> {
        Family::new(sys::TRITONSERVER_METRIC_KIND_COUNTER, name, description).map(Self)
    }

    /// Returns the counter with these labels.
    ///
    /// # Errors
    ///
    /// INVALID_ARG if the name of a label is not valid in Prometheus.
    pub fn counter(&self, labels: &[(&str, &str)]) -> Result<Counter, Error> {
        Metric::new(&self.0, labels).map(Counter)
    }
}

/// A family of gauges, values that go up and down.
#[derive(Debug, Clone)]
pub struct GaugeFamily(Arc<Family>);

impl GaugeFamily {
    /// Registers a family of gauges (`TRITONSERVER_MetricFamilyNew`).
    ///
    /// # Errors
    ///
    /// Those of [`CounterFamily::new`].
    pub fn new(name: &str, description: &str) -> Result<Self, Error> {
        Family::new(sys::TRITONSERVER_METRIC_KIND_GAUGE, name, description).map(Self)
    }

    /// Returns the gauge with these labels.
    ///
    /// # Errors
    ///
    /// Those of [`CounterFamily::counter`].
    pub fn gauge(&self, labels: &[(&str, &str)]) -> Result<Gauge, Error> {
        Metric::new(&self.0, labels).map(Gauge)
    }
}

/// A value that only grows.
#[derive(Debug)]
pub struct Counter(Metric);

impl Counter {
    /// Adds `amount` (`TRITONSERVER_MetricIncrement`).
    ///
    /// # Errors
    ///
    /// INVALID_ARG if `amount` is negative or not a number.
    pub fn add(&self, amount: f64) -> Result<(), Error> {
        if amount.is_nan() || amount < 0.0 {
            return Err(Error::invalid_arg("a counter cannot decrease"));
        }
        self.0.increment(amount)
    }

    /// Returns the current value (`TRITONSERVER_MetricValue`).
    ///
    /// # Errors
    ///
    /// Triton cannot read the value.
    pub fn value(&self) -> Result<f64, Error> {
        self.0.value()
    }
}

/// A value that goes up and down.
#[derive(Debug)]
pub struct Gauge(Metric);

impl Gauge {
    /// Sets the value (`TRITONSERVER_MetricSet`).
    ///
    /// # Errors
    ///
    /// Triton rejects the value.
    pub fn set(&self, value: f64) -> Result<(), Error> {
        // SAFETY: the metric is live.
        unsafe { check(sys::TRITONSERVER_MetricSet(self.0.raw.as_ptr(), value)) }
    }

    /// Adds `amount`, which may be negative (`TRITONSERVER_MetricIncrement`).
    ///
    /// # Errors
    ///
    /// Triton rejects the value.
    pub fn add(&self, amount: f64) -> Result<(), Error> {
        self.0.increment(amount)
    }

    /// Returns the current value (`TRITONSERVER_MetricValue`).
    ///
    /// # Errors
    ///
    /// Triton cannot read the value.
    pub fn value(&self) -> Result<f64, Error> {
        self.0.value()
    }
}

/// A family of histograms, which count values in buckets. Servers before 24.08 have none.
#[derive(Debug, Clone)]
pub struct HistogramFamily {
    family: Arc<Family>,
    functions: HistogramFunctions,
    /// The upper ends of the buckets, ascending.
    buckets: Vec<f64>,
}

impl HistogramFamily {
    /// Registers a family of histograms (`TRITONSERVER_MetricFamilyNew`). `buckets` are their upper ends, ascending; one
    /// more bucket has no end.
    ///
    /// # Errors
    ///
    /// UNSUPPORTED if the server has no metrics or no histograms, and those of [`CounterFamily::new`].
    pub fn new(name: &str, description: &str, buckets: &[f64]) -> Result<Self, Error> {
        let functions = optional::histograms()
            .ok_or_else(|| Error::unsupported("the server has no histograms; Triton has them since 24.08"))?;
        Ok(Self {
            family: Family::new(sys::TRITONSERVER_METRIC_KIND_HISTOGRAM, name, description)?,
            functions,
            buckets: buckets.to_vec(),
        })
    }

    /// Returns the histogram with these labels.
    ///
    /// # Errors
    ///
    /// Those of [`CounterFamily::counter`].
    pub fn histogram(&self, labels: &[(&str, &str)]) -> Result<Histogram, Error> {
        let args = HistogramArgs::new(self.functions, &self.buckets)?;
        let metric = Metric::create(&self.family, labels, |raw, family, labels, count| {
            // SAFETY: `Metric::create` passes live objects, and Triton copies the buckets.
            unsafe { (self.functions.new_metric)(raw, family, labels, count, args.raw.as_ptr()) }
        })?;
        Ok(Histogram {
            metric,
            functions: self.functions,
        })
    }
}

/// Values, counted in buckets.
#[derive(Debug)]
pub struct Histogram {
    metric: Metric,
    functions: HistogramFunctions,
}

impl Histogram {
    /// Counts a value (`TRITONSERVER_MetricObserve`).
    ///
    /// # Errors
    ///
    /// Triton rejects the value.
    pub fn observe(&self, value: f64) -> Result<(), Error> {
        // SAFETY: the metric is live.
        unsafe { check((self.functions.observe)(self.metric.raw.as_ptr(), value)) }
    }
}

/// An owned `TRITONSERVER_MetricArgs`.
struct HistogramArgs {
    raw: NonNull<sys::TRITONSERVER_MetricArgs>,
    functions: HistogramFunctions,
}

impl HistogramArgs {
    fn new(functions: HistogramFunctions, buckets: &[f64]) -> Result<Self, Error> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the result points to a local; new arguments belong to the caller.
        unsafe { check((functions.new_args)(&mut raw))? };
        let args = Self {
            raw: non_null(raw, "arguments of a metric")?,
            functions,
        };
        // SAFETY: the arguments are live; Triton copies the buckets.
        unsafe {
            check((functions.set_buckets)(
                args.raw.as_ptr(),
                buckets.as_ptr(),
                buckets.len() as u64,
            ))?;
        }
        Ok(args)
    }
}

impl Drop for HistogramArgs {
    fn drop(&mut self) {
        // SAFETY: owned by `self` and deleted here only.
        if let Err(error) = unsafe { check((self.functions.delete_args)(self.raw.as_ptr())) } {
            log_warn!("cannot delete the arguments of a metric: {error}");
        }
    }
}

/// An owned `TRITONSERVER_MetricFamily`.
#[derive(Debug)]
struct Family {
    raw: NonNull<sys::TRITONSERVER_MetricFamily>,
}

// SAFETY: Triton guards a family with a mutex; any thread may use it.
unsafe impl Send for Family {}
// SAFETY: as above.
unsafe impl Sync for Family {}

impl Family {
    fn new(kind: sys::TRITONSERVER_MetricKind, name: &str, description: &str) -> Result<Arc<Self>, Error> {
        check_name(name, true)?;
        let name = text::to_c(name);
        let description = text::to_c(description);
        let mut raw = std::ptr::null_mut();
        // SAFETY: both strings are copied; a new family belongs to the caller.
        unsafe {
            check(sys::TRITONSERVER_MetricFamilyNew(
                &mut raw,
                kind,
                name.as_ptr(),
                description.as_ptr(),
            ))?;
        }
        Ok(Arc::new(Self {
            raw: non_null(raw, "metric family")?,
        }))
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        // SAFETY: owned by `self` and deleted here only; each metric holds an `Arc` to its
        // family, so none is left.
        let deleted = unsafe { check(sys::TRITONSERVER_MetricFamilyDelete(self.raw.as_ptr())) };
        if let Err(error) = deleted {
            log_warn!("cannot delete a metric family: {error}");
        }
    }
}

/// An owned `TRITONSERVER_Metric`.
#[derive(Debug)]
struct Metric {
    raw: NonNull<sys::TRITONSERVER_Metric>,
    /// Keeps the family alive until the metric is deleted.
    _family: Arc<Family>,
}

// SAFETY: a metric's value is atomic in Triton; any thread may use it.
unsafe impl Send for Metric {}
// SAFETY: as above.
unsafe impl Sync for Metric {}

impl Metric {
    fn new(family: &Arc<Family>, labels: &[(&str, &str)]) -> Result<Self, Error> {
        Self::create(family, labels, |raw, family, labels, count| {
            // SAFETY: `create` passes live objects.
            unsafe { sys::TRITONSERVER_MetricNew(raw, family, labels, count) }
        })
    }

    /// Makes a metric with `new`, which gets the place for it, the family and the labels, all of them live.
    fn create(
        family: &Arc<Family>,
        labels: &[(&str, &str)],
        new: impl FnOnce(
            *mut *mut sys::TRITONSERVER_Metric,
            *mut sys::TRITONSERVER_MetricFamily,
            *mut *const sys::TRITONSERVER_Parameter,
            u64,
        ) -> *mut sys::TRITONSERVER_Error,
    ) -> Result<Self, Error> {
        let labels = labels
            .iter()
            .map(|(name, value)| Label::new(name, value))
            .collect::<Result<Vec<_>, _>>()?;
        let mut pointers: Vec<_> = labels.iter().map(|label| label.0.cast_const()).collect();
        let mut raw = std::ptr::null_mut();
        let count = pointers.len() as u64;
        // SAFETY: the family is live; the labels outlive the call, which copies them; a new metric, or the error, belongs to
        // the caller.
        unsafe { check(new(&mut raw, family.raw.as_ptr(), pointers.as_mut_ptr(), count))? };
        Ok(Self {
            raw: non_null(raw, "metric")?,
            _family: Arc::clone(family),
        })
    }

    fn increment(&self, amount: f64) -> Result<(), Error> {
        // SAFETY: the metric is live.
        unsafe { check(sys::TRITONSERVER_MetricIncrement(self.raw.as_ptr(), amount)) }
    }

    fn value(&self) -> Result<f64, Error> {
        let mut value = 0.0;
        // SAFETY: the metric is live and the result points to a local.
        unsafe { check(sys::TRITONSERVER_MetricValue(self.raw.as_ptr(), &mut value))? };
        Ok(value)
    }
}

impl Drop for Metric {
    fn drop(&mut self) {
        // SAFETY: owned by `self` and deleted here only, before its family.
        if let Err(error) = unsafe { check(sys::TRITONSERVER_MetricDelete(self.raw.as_ptr())) } {
            log_warn!("cannot delete a metric: {error}");
        }
    }
}

/// An owned `TRITONSERVER_Parameter`.
struct Label(*mut sys::TRITONSERVER_Parameter);

impl Label {
    fn new(name: &str, value: &str) -> Result<Self, Error> {
        check_name(name, false)?;
        let name: CString = text::to_c(name);
        let value = text::to_c(value);
        // SAFETY: both strings are copied; a new parameter belongs to the caller.
        let raw = unsafe {
            sys::TRITONSERVER_ParameterNew(name.as_ptr(), sys::TRITONSERVER_PARAMETER_STRING, value.as_ptr().cast())
        };
        Ok(Self(non_null(raw, "label")?.as_ptr()))
    }
}

impl Drop for Label {
    fn drop(&mut self) {
        // SAFETY: owned by `self` and deleted here only.
        unsafe { sys::TRITONSERVER_ParameterDelete(self.0) }
    }
}

/// Checks a name by Prometheus' rule, because Prometheus' library throws a C++ exception instead.
fn check_name(name: &str, colon: bool) -> Result<(), Error> {
    let good = |(index, letter): (usize, char)| {
        letter.is_ascii_alphabetic()
            || letter == '_'
            || (colon && letter == ':')
            || (index > 0 && letter.is_ascii_digit())
    };
    if !name.is_empty() && name.chars().enumerate().all(good) {
        Ok(())
    } else {
        Err(Error::invalid_arg(format!(
            "'{name}' is not a valid name of a metric or a label"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_name_follows_prometheus() {
        for name in ["a", "_a9", "unet_calls_total"] {
            assert!(check_name(name, false).is_ok(), "{name}");
        }
        assert!(check_name("sd:unet", true).is_ok());
        for name in ["", "9a", "a-b", "a b", "ä", "a:b"] {
            assert!(check_name(name, false).is_err(), "{name}");
        }
    }
}
