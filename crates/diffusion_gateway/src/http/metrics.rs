//! Metrics of the gateway, in the text format of Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::CLIENT_CLOSED_REQUEST;

/// Upper ends of the buckets for durations, in seconds: those of the backend from 3 ms on.
const SECONDS: [f64; 11] = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];

/// Counts of all requests since the start.
#[derive(Default)]
pub struct Metrics {
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    in_flight: u64,
    routes: BTreeMap<String, Route>,
}

/// Counts of one route.
#[derive(Default)]
struct Route {
    statuses: BTreeMap<u16, u64>,
    /// Requests that took at most as long as the bucket's end.
    buckets: [u64; SECONDS.len()],
    seconds: f64,
    requests: u64,
}

/// A request in flight. It is counted when this is dropped.
pub struct InFlight {
    metrics: Arc<Metrics>,
    route: String,
    started: Instant,
    status: u16,
}

impl Metrics {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a request. `route` is the path of the route, not of the request.
    pub fn begin(self: &Arc<Self>, route: String) -> InFlight {
        self.counts().in_flight += 1;
        InFlight {
            metrics: Arc::clone(self),
            route,
            started: Instant::now(),
            status: CLIENT_CLOSED_REQUEST,
        }
    }

    /// Writes all metrics. `body_bytes` are the bytes of bodies that are being read or served.
    pub fn text(&self, body_bytes: usize) -> String {
        let counts = self.counts();
        let mut text = String::new();
        let head = |text: &mut String, name: &str, kind: &str, help: &str| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        let name = "diffusion_gateway_requests_in_flight";
        head(&mut text, name, "gauge", "Requests that are being served");
        let _ = writeln!(text, "{name} {}", counts.in_flight);
        let name = "diffusion_gateway_body_bytes";
        head(
            &mut text,
            name,
            "gauge",
            "Bytes of request bodies that are being read or served",
        );
        let _ = writeln!(text, "{name} {body_bytes}");
        let name = "diffusion_gateway_requests_total";
        head(
            &mut text,
            name,
            "counter",
            "Requests by route and HTTP status; 499: the client closed the connection",
        );
        for (route, counts) in &counts.routes {
            for (status, count) in &counts.statuses {
                let _ = writeln!(text, "{name}{{route=\"{route}\",status=\"{status}\"}} {count}");
            }
        }
        let name = "diffusion_gateway_request_seconds";
        head(
            &mut text,
            name,
            "histogram",
            "Seconds from the head of a request to its response, or to the end of a stream",
        );
        for (route, counts) in &counts.routes {
            for (end, count) in SECONDS.iter().zip(counts.buckets) {
                let _ = writeln!(text, "{name}_bucket{{route=\"{route}\",le=\"{end}\"}} {count}");
            }
            let requests = counts.requests;
            let _ = writeln!(text, "{name}_bucket{{route=\"{route}\",le=\"+Inf\"}} {requests}");
            let _ = writeln!(text, "{name}_sum{{route=\"{route}\"}} {}", counts.seconds);
            let _ = writeln!(text, "{name}_count{{route=\"{route}\"}} {requests}");
        }
        text
    }

    fn end(&self, route: &str, status: u16, taken: Duration) {
        let mut counts = self.counts();
        counts.in_flight = counts.in_flight.saturating_sub(1);
        let route = counts.routes.entry(route.to_owned()).or_default();
        *route.statuses.entry(status).or_default() += 1;
        route.requests += 1;
        route.seconds += taken.as_secs_f64();
        for (end, count) in SECONDS.iter().zip(&mut route.buckets) {
            *count += u64::from(taken.as_secs_f64() <= *end);
        }
    }
}

impl InFlight {
    /// Sets the status of the response. Without one, the client has closed the connection.
    pub fn answered(mut self, status: u16) {
        self.status = status;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.metrics.end(&self.route, self.status, self.started.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_route_and_status() {
        let metrics = Arc::new(Metrics::default());
        metrics.begin("/healthz".into()).answered(200);
        metrics.begin("/healthz".into()).answered(503);
        drop(metrics.begin("/v1/models".into()));
        let running = metrics.begin("/v1/models".into());
        let text = metrics.text(5);
        for line in [
            "diffusion_gateway_requests_in_flight 1",
            "diffusion_gateway_body_bytes 5",
            "diffusion_gateway_requests_total{route=\"/healthz\",status=\"200\"} 1",
            "diffusion_gateway_requests_total{route=\"/healthz\",status=\"503\"} 1",
            "diffusion_gateway_requests_total{route=\"/v1/models\",status=\"499\"} 1",
            "diffusion_gateway_request_seconds_count{route=\"/healthz\"} 2",
            "diffusion_gateway_request_seconds_bucket{route=\"/healthz\",le=\"300\"} 2",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
        drop(running);
        assert!(metrics.text(5).contains("diffusion_gateway_requests_in_flight 0\n"));
    }

    #[test]
    fn a_bucket_counts_what_is_not_slower() {
        let metrics = Metrics::default();
        metrics.counts().in_flight = 1;
        metrics.end("/", 200, Duration::from_millis(50));
        let text = metrics.text(5);
        assert!(text.contains("_bucket{route=\"/\",le=\"0.03\"} 0\n"), "{text}");
        assert!(text.contains("_bucket{route=\"/\",le=\"0.1\"} 1\n"), "{text}");
        assert!(text.contains("_bucket{route=\"/\",le=\"+Inf\"} 1\n"), "{text}");
    }
}
