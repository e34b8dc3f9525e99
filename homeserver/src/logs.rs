//! Log lines. They carry ids and counts, never secrets and never the content of messages.

use crate::config::{Log, LogFormat};
use anyhow::Context;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Packages that say more at a level than an operator wants to know at it.
const QUIET: &str = "ruma_state_res=warn";

/// Starts writing log lines to standard error.
pub fn start(log: &Log) -> anyhow::Result<()> {
    // The authorisation rules log every step of every event at `info`.
    let level = if log.level.contains('=') { log.level.clone() } else { format!("{},{QUIET}", log.level) };
    let filter = EnvFilter::try_new(level)
        .with_context(|| format!("setting log.level: `{}` is not a level", log.level))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // It fails where a log is running already, as in tests: that one is as good.
    let _ = match log.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_is_none_is_refused() {
        let log = Log { level: "waxwing=loud".to_owned(), ..Log::default() };
        let error = start(&log).unwrap_err().to_string();
        assert!(error.contains("log.level"), "{error}");
    }
}
