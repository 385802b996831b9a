//! The phases of a batch element, for response parameters, metrics and traces.

use std::time::Instant;

use crate::pipelines::Timings;

/// The names of the phases, in order.
pub const PHASES: [&str; 6] = ["queue", "text_encoding", "preparation", "steps", "decoding", "encoding"];

/// When the phases of a batch element ended. Each phase begins where the one before ends.
#[derive(Clone, Copy, Debug)]
pub struct Phases {
    received: Instant,
    ends: [Instant; PHASES.len()],
}

impl Phases {
    /// Joins the times of the pipeline with those around it: when the request was received, and when its images were encoded
    /// to files.
    pub fn new(received: Instant, pipeline: &Timings, encoded: Instant) -> Self {
        Self {
            received,
            ends: [
                pipeline.started,
                pipeline.text_encoded,
                pipeline.prepared,
                pipeline.stepped,
                pipeline.decoded,
                encoded,
            ],
        }
    }

    /// Returns each phase with its begin and its end.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, Instant, Instant)> {
        let begins = std::iter::once(self.received).chain(self.ends);
        let named = PHASES.into_iter().zip(begins).zip(self.ends);
        named.map(|((name, begin), end)| (name, begin, end))
    }

    /// Returns the text of a JSON object with the durations in milliseconds, in the order of the phases.
    pub fn milliseconds(&self) -> String {
        let durations = self.iter().map(|(name, begin, end)| {
            let milliseconds = end.saturating_duration_since(begin).as_secs_f64() * 1e3;
            format!("\"{name}\": {milliseconds:.3}")
        });
        format!("{{{}}}", durations.collect::<Vec<_>>().join(", "))
    }

    /// Returns the activities of a trace: begin and end of each phase in nanoseconds of the steady clock, which is `now_ns`
    /// at `now`.
    pub fn activities(&self, now: Instant, now_ns: u64) -> Vec<(String, u64)> {
        let at = |time: Instant| {
            let before = now.saturating_duration_since(time).as_nanos();
            now_ns.saturating_sub(u64::try_from(before).unwrap_or(u64::MAX))
        };
        self.iter()
            .flat_map(|(name, begin, end)| {
                let name = name.to_ascii_uppercase();
                [(format!("{name}_START"), at(begin)), (format!("{name}_END"), at(end))]
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn phases(start: Instant) -> Phases {
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let timings = Timings {
            started: at(1),
            text_encoded: at(3),
            prepared: at(6),
            stepped: at(106),
            decoded: at(150),
        };
        Phases::new(start, &timings, at(157))
    }

    #[test]
    fn milliseconds_of_each_phase() {
        let expected = "{\"queue\": 1.000, \"text_encoding\": 2.000, \"preparation\": 3.000, \"steps\": 100.000, \
                        \"decoding\": 44.000, \"encoding\": 7.000}";
        assert_eq!(phases(Instant::now()).milliseconds(), expected);
    }

    #[test]
    fn activities_have_the_time_of_the_steady_clock() {
        let start = Instant::now();
        let now = start + Duration::from_millis(200);
        let activities = phases(start).activities(now, 1_000_000_000);
        assert_eq!(activities.len(), 12);
        assert_eq!(activities[0], ("QUEUE_START".to_owned(), 800_000_000));
        assert_eq!(activities[7], ("STEPS_END".to_owned(), 906_000_000));
        assert_eq!(activities[11], ("ENCODING_END".to_owned(), 957_000_000));
    }
}
