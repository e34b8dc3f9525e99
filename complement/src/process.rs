//! One server process: its own process group in its own mount namespace, ended with the runner whatever happens.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

/// The mounts are the namespace's own: no other process of the machine sees them.
const ENTER: &str =
    r#"mount --bind "$1" /etc/hosts && mount --bind "$2" /etc/resolv.conf && shift 2 && exec "$@""#;
/// What a server may see of the runner's own environment.
const INHERITED: [&str; 3] = ["PATH", "RUST_LOG", "RUST_BACKTRACE"];

pub struct Spec<'a> {
    pub binary: &'a Path,
    pub config: &'a Path,
    pub hosts: &'a Path,
    pub resolv_conf: &'a Path,
    pub env: &'a [(String, String)],
    pub directory: &'a Path,
    pub log: &'a Path,
}

pub struct Process {
    group: Pid,
    exited: watch::Receiver<Option<String>>,
    paused: bool,
}

impl Process {
    pub fn spawn(spec: &Spec) -> Result<Self> {
        let log = append(spec.log)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "unshare", "--mount", "--propagation", "private"]);
        if !rustix::process::getuid().is_root() {
            command.arg("--map-root-user");
        }
        command.args(["--", "sh", "-c", ENTER, "sh"]).args([spec.hosts, spec.resolv_conf]);
        command.arg(spec.binary).arg("serve").arg("--config").arg(spec.config);
        command.env_clear().envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.envs(spec.env.iter().map(|(key, value)| (key, value)));
        command.current_dir(spec.directory).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = command.spawn().context("starting setpriv, which starts the server")?;
        let id = child.id().context("the server has no process id")?;
        let group = Pid::from_raw(id.cast_signed()).context("a process id of 0")?;
        let (send, exited) = watch::channel(None);
        tokio::spawn(report_exit(child, send));
        Ok(Self { group, exited, paused: false })
    }

    /// How it ended, once it has.
    pub fn exit(&self) -> Option<String> {
        self.exited.borrow().clone()
    }

    /// Sees the end of the process even after this value is gone.
    pub fn watch(&self) -> watch::Receiver<Option<String>> {
        self.exited.clone()
    }

    pub fn is_paused(&self) -> bool {
        self.paused
    }

    pub fn pause(&mut self) {
        self.signal(Signal::STOP);
        self.paused = true;
    }

    pub fn unpause(&mut self) {
        self.signal(Signal::CONT);
        self.paused = false;
    }

    /// Asks it to end, and ends it after `patience`.
    pub async fn stop(&mut self, patience: Duration) {
        self.signal(Signal::TERM);
        if self.paused {
            self.unpause();
        }
        let mut exited = self.exited.clone();
        if timeout(patience, exited.wait_for(Option::is_some)).await.is_err() {
            self.kill().await;
        }
    }

    pub async fn kill(&mut self) {
        self.signal(Signal::KILL);
        // The sender is only dropped after it reported the end.
        let _ = self.exited.wait_for(Option::is_some).await;
    }

    fn signal(&self, signal: Signal) {
        if self.exit().is_none() {
            // It may have ended since; then there is nothing left to tell.
            let _ = kill_process_group(self.group, signal);
        }
    }
}

async fn report_exit(mut child: Child, send: watch::Sender<Option<String>>) {
    let end = match child.wait().await {
        Ok(status) => status.to_string(),
        Err(error) => format!("unknown end: {error}"),
    };
    let _ = send.send(Some(end));
}

fn append(path: &Path) -> Result<File> {
    let open = OpenOptions::new().create(true).append(true).open(path);
    open.with_context(|| format!("opening the log {}", path.display()))
}

/// The last `limit` bytes of a log, from the beginning of a line, with a note of what was left out.
pub fn log_tail(path: &PathBuf, limit: usize) -> Vec<u8> {
    let Ok(log) = std::fs::read(path) else { return Vec::new() };
    if log.len() <= limit {
        return log;
    }
    let tail = &log[log.len() - limit..];
    let line = tail.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let mut out = format!("[the whole log is {}]\n", path.display()).into_bytes();
    out.extend_from_slice(&tail[line..]);
    out
}
