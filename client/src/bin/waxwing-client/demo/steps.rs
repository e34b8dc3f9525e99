//! Progress: a spinner while a step runs, a line with its time when it is done.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use console::style;
use indicatif::{ProgressBar, ProgressStyle};

const TICK: Duration = Duration::from_millis(100);

pub struct Steps {
    total: usize,
    current: usize,
    began: Instant,
    running: Option<(ProgressBar, String, Instant)>,
}

impl Steps {
    pub fn new(total: usize) -> Self {
        Self { total, current: 0, began: Instant::now(), running: None }
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub async fn run<T>(&mut self, title: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.current += 1;
        let spinner = ProgressBar::new_spinner();
        if let Ok(look) = ProgressStyle::with_template("{spinner:.cyan} {msg} {elapsed:.dim}") {
            spinner.set_style(look);
        }
        let label = format!("{:>2} of {}  {title}", self.current, self.total);
        spinner.set_message(label.clone());
        spinner.enable_steady_tick(TICK);
        self.running = Some((spinner, label, Instant::now()));
        let answer = work.await.with_context(|| title.to_owned())?;
        self.finish("✔");
        Ok(answer)
    }

    /// Marks the running step as failed.
    pub fn fail(&mut self) {
        self.finish("✘");
    }

    fn finish(&mut self, mark: &str) {
        let Some((spinner, label, began)) = self.running.take() else { return };
        spinner.finish_and_clear();
        let mark = if mark == "✔" { style(mark).green() } else { style(mark).red() };
        println!("{mark} {label}  {}", style(format!("{:.1} s", began.elapsed().as_secs_f32())).dim());
    }
}

/// Something worth reading under the last step.
pub fn note(line: &str) {
    println!("             {}", style(crate::output::clean(line)).dim());
}
