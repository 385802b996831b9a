//! Custom metrics on the server's metrics endpoint.
//!
//! A server can be built or started without metrics; making a family fails then, and a backend
//! should do without. A family outlives its metrics, as Triton demands: each holds on to it.
//! Triton keeps the values of equal names and labels together, across models too.

use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::error::{Error, check, non_null};
use crate::{log_warn, sys, text};

/// A family of counters, values that only grow.
#[derive(Debug, Clone)]
pub struct CounterFamily(Arc<Family>);

impl CounterFamily {
    /// `TRITONSERVER_MetricFamilyNew`.
    ///
    /// # Errors
    ///
    /// UNSUPPORTED if the server has no metrics. INVALID_ARG if the name is not one that
    /// Prometheus takes (letters, digits, `_` and `:`, no digit first).
    pub fn new(name: &str, description: &str) -> Result<Self, Error> {
        Family::new(sys::TRITONSERVER_METRIC_KIND_COUNTER, name, description).map(Self)
    }

    /// The counter with these labels.
    ///
    /// # Errors
    ///
    /// INVALID_ARG if a label's name is not one that Prometheus takes.
    pub fn counter(&self, labels: &[(&str, &str)]) -> Result<Counter, Error> {
        Metric::new(&self.0, labels).map(Counter)
    }
}

/// A family of gauges, values that go up and down.
#[derive(Debug, Clone)]
pub struct GaugeFamily(Arc<Family>);

impl GaugeFamily {
    /// `TRITONSERVER_MetricFamilyNew`.
    ///
    /// # Errors
    ///
    /// As [`CounterFamily::new`].
    pub fn new(name: &str, description: &str) -> Result<Self, Error> {
        Family::new(sys::TRITONSERVER_METRIC_KIND_GAUGE, name, description).map(Self)
    }

    /// The gauge with these labels.
    ///
    /// # Errors
    ///
    /// As [`CounterFamily::counter`].
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
    /// INVALID_ARG if it is negative or not a number.
    pub fn add(&self, amount: f64) -> Result<(), Error> {
        if amount.is_nan() || amount < 0.0 {
            return Err(Error::invalid_arg("a counter only grows"));
        }
        self.0.increment(amount)
    }

    /// The current value (`TRITONSERVER_MetricValue`).
    ///
    /// # Errors
    ///
    /// If Triton does not tell.
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
    /// If Triton rejects it.
    pub fn set(&self, value: f64) -> Result<(), Error> {
        // SAFETY: the metric is live.
        unsafe { check(sys::TRITONSERVER_MetricSet(self.0.raw.as_ptr(), value)) }
    }

    /// Adds `amount`, which may be negative (`TRITONSERVER_MetricIncrement`).
    ///
    /// # Errors
    ///
    /// If Triton rejects it.
    pub fn add(&self, amount: f64) -> Result<(), Error> {
        self.0.increment(amount)
    }

    /// The current value (`TRITONSERVER_MetricValue`).
    ///
    /// # Errors
    ///
    /// If Triton does not tell.
    pub fn value(&self) -> Result<f64, Error> {
        self.0.value()
    }
}

/// A `TRITONSERVER_MetricFamily` that this side owns.
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
        // SAFETY: both strings are copied; a new family is the caller's.
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
            log_warn!("a metric family was not deleted: {error}");
        }
    }
}

/// A `TRITONSERVER_Metric` that this side owns.
#[derive(Debug)]
struct Metric {
    raw: NonNull<sys::TRITONSERVER_Metric>,
    /// Declared for its drop, which comes after the metric's.
    _family: Arc<Family>,
}

// SAFETY: a metric's value is atomic in Triton; any thread may use it.
unsafe impl Send for Metric {}
// SAFETY: as above.
unsafe impl Sync for Metric {}

impl Metric {
    fn new(family: &Arc<Family>, labels: &[(&str, &str)]) -> Result<Self, Error> {
        let labels = labels
            .iter()
            .map(|(name, value)| Label::new(name, value))
            .collect::<Result<Vec<_>, _>>()?;
        let mut pointers: Vec<_> = labels.iter().map(|label| label.0.cast_const()).collect();
        let mut raw = std::ptr::null_mut();
        // SAFETY: the family is live; the labels outlive the call, which copies them; a new
        // metric is the caller's.
        unsafe {
            check(sys::TRITONSERVER_MetricNew(
                &mut raw,
                family.raw.as_ptr(),
                pointers.as_mut_ptr(),
                pointers.len() as u64,
            ))?;
        }
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
            log_warn!("a metric was not deleted: {error}");
        }
    }
}

/// A `TRITONSERVER_Parameter` that this side owns.
struct Label(*mut sys::TRITONSERVER_Parameter);

impl Label {
    fn new(name: &str, value: &str) -> Result<Self, Error> {
        check_name(name, false)?;
        let name: CString = text::to_c(name);
        let value = text::to_c(value);
        // SAFETY: both strings are copied; a new parameter is the caller's.
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

/// Prometheus' rule for names, checked here because its library throws a C++ exception.
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
            "'{name}' is not a name for a metric or a label"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_prometheus() {
        for name in ["a", "_a9", "unet_calls_total"] {
            assert!(check_name(name, false).is_ok(), "{name}");
        }
        assert!(check_name("sd:unet", true).is_ok());
        for name in ["", "9a", "a-b", "a b", "ä", "a:b"] {
            assert!(check_name(name, false).is_err(), "{name}");
        }
    }
}
