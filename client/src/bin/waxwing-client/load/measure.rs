//! One measured thing: how many, how fast, at what cost to the server, and at what cost to the driver.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use futures_util::future;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    context::Context,
    histogram::Histogram,
    http::{Connection, Failure, Server},
    sample::Used,
};

/// A loop in which this many calls failed is ended: the server is down, or refuses what the driver does.
const MOST_FAILURES: u64 = 1000;
/// After a broken connection the next call waits this long, so that a server that is down is not hammered.
const AFTER_BREAKAGE: Duration = Duration::from_millis(50);

/// What is printed of one measured thing. Figures "each" are per operation that went well.
#[derive(Debug, Clone, Serialize)]
pub struct Measure {
    pub name: String,
    /// Operations that went well.
    pub count: u64,
    /// Failures by status.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<String, u64>,
    pub seconds: f64,
    #[serde(flatten)]
    pub figures: Map<String, Value>,
}

/// Durations and failures while something is measured.
#[derive(Debug, Default)]
pub struct Tally {
    pub times: Histogram,
    pub errors: BTreeMap<String, u64>,
    pub failures: u64,
    pub bytes: u64,
    pub last_failure: Option<String>,
}

impl Tally {
    /// Adds all that the other counted.
    pub fn merge(&mut self, other: &Self) {
        self.times.merge(&other.times);
        for (kind, count) in &other.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
        self.failures += other.failures;
        self.bytes += other.bytes;
        self.last_failure = self.last_failure.take().or_else(|| other.last_failure.clone());
    }

    pub fn note(&mut self, took: Duration, outcome: &Result<u64, Failure>) {
        match outcome {
            Ok(bytes) => {
                self.times.add(took);
                self.bytes += bytes;
            }
            Err(failure) => {
                self.failures += 1;
                *self.errors.entry(failure.kind()).or_default() += 1;
                self.last_failure = Some(failure.to_string());
            }
        }
    }
}

impl Measure {
    /// Puts together what was counted and what was used meanwhile.
    pub fn new(name: &str, tally: &Tally, used: &Used) -> Self {
        let count = tally.times.count();
        let mut measure = Self {
            name: name.to_owned(),
            count,
            errors: tally.errors.clone(),
            seconds: round(used.seconds),
            figures: Map::new(),
        };
        measure.set("per_second", count as f64 / used.seconds);
        measure.set_some("p50_ms", tally.times.quantile(0.5));
        measure.set_some("p99_ms", tally.times.quantile(0.99));
        measure.set_some("max_ms", tally.times.max());
        measure.set_costs(count, used);
        if tally.bytes > 0 && count > 0 {
            measure.set("answer_bytes_each", tally.bytes as f64 / count as f64);
        }
        measure
    }

    /// The costs of `count` operations.
    pub fn set_costs(&mut self, count: u64, used: &Used) {
        let each = count.max(1) as f64;
        self.set("driver_cpu_ms_each", used.driver_cpu_ms / each);
        let Some(server) = &used.server else { return };
        self.set("cpu_ms_each", server.cpu_ms / each);
        self.set("cpu_cores", server.cpu_ms / 1e3 / used.seconds);
        self.set("written_bytes_each", server.written / each);
        self.set("rss_mb", server.rss / 1e6);
        self.set("pss_mb", server.pss / 1e6);
        self.set("anonymous_mb", server.anonymous / 1e6);
    }

    /// Adds a figure, rounded to what can be told from noise.
    pub fn set(&mut self, name: &str, figure: f64) {
        self.figures.insert(name.to_owned(), json!(round(figure)));
    }

    pub fn set_some(&mut self, name: &str, figure: Option<f64>) {
        if let Some(figure) = figure {
            self.set(name, figure);
        }
    }

    pub fn figure(&self, name: &str) -> Option<f64> {
        self.figures.get(name)?.as_f64()
    }
}

/// Four significant digits.
pub fn round(figure: f64) -> f64 {
    if figure == 0.0 || !figure.is_finite() {
        return 0.0;
    }
    let scale = 10_f64.powi(3 - figure.abs().log10().floor() as i32);
    (figure * scale).round() / scale
}

/// A closed loop: each of the connections makes its next call when it has the answer to the last.
#[derive(Debug, Clone)]
pub struct Loop<'a> {
    pub name: &'a str,
    pub connections: usize,
    /// How long it lasts at most.
    pub seconds: f64,
    /// How many calls are made at most.
    pub most: u64,
}

/// Whose turn it is in a closed loop, and which turn.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    pub connection: usize,
    pub number: u64,
}

/// Runs a closed loop against the server and measures it. `work` makes one operation and returns the bytes of its
/// answer; it is timed whole.
pub async fn closed_loop(
    context: &Context,
    server: &Server,
    plan: &Loop<'_>,
    work: impl AsyncFn(&mut Connection, Turn) -> Result<u64, Failure>,
) -> Result<Measure> {
    let (tally, next) = (RefCell::new(Tally::default()), Cell::new(0_u64));
    let mut connections: Vec<Connection> = (0..plan.connections).map(|_| Connection::new(server)).collect();
    future::try_join_all(connections.iter_mut().map(Connection::open)).await?;
    let before = context.sample();
    let deadline = Instant::now() + Duration::from_secs_f64(plan.seconds);
    let worker = async |(number, mut connection): (usize, Connection)| {
        while next.get() < plan.most && Instant::now() < deadline && tally.borrow().failures < MOST_FAILURES {
            let turn = Turn { connection: number, number: next.replace(next.get() + 1) };
            let began = Instant::now();
            let outcome = work(&mut connection, turn).await;
            tally.borrow_mut().note(began.elapsed(), &outcome);
            if matches!(outcome, Err(Failure::Connection(_))) {
                tokio::time::sleep(AFTER_BREAKAGE).await;
            }
            context.progress.show(|| format!("{}: {}", plan.name, tally.borrow().times.count()));
        }
    };
    future::join_all(connections.into_iter().enumerate().map(worker)).await;
    let used = before.until(&context.sample());
    let tally = tally.into_inner();
    if tally.times.count() == 0 {
        bail!("{}: nothing went well: {}", plan.name, tally.last_failure.unwrap_or_default());
    }
    Ok(Measure::new(plan.name, &tally, &used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_four_digits() {
        let figures = [123_456.0, 0.001_234_56, -1.5, 0.0, f64::NAN, f64::INFINITY];
        let rounded = figures.map(|figure| round(figure).to_string());
        assert_eq!(rounded, ["123500", "0.001235", "-1.5", "0", "0", "0"]);
    }

    #[test]
    fn costs_are_for_what_went_well() {
        let mut tally = Tally::default();
        for _ in 0..4 {
            tally.note(Duration::from_millis(2), &Ok(100));
        }
        tally.note(Duration::from_secs(9), &Err(Failure::Malformed("next_batch")));
        let used = Used { seconds: 2.0, driver_cpu_ms: 8.0, server: None };
        let measure = Measure::new("x", &tally, &used);
        assert_eq!((measure.count, measure.errors["malformed"]), (4, 1));
        assert_eq!(measure.figure("per_second"), Some(2.0));
        assert_eq!(measure.figure("driver_cpu_ms_each"), Some(2.0));
        assert_eq!(measure.figure("answer_bytes_each"), Some(100.0));
        assert_eq!(measure.figure("cpu_ms_each"), None);
        assert_eq!(measure.figure("max_ms"), Some(2.0));
    }
}
