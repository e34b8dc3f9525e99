//! Server processes that tests treat badly.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

/// A server that is not ready by then will not be; machines that run tests have other work too.
const START_LIMIT: Duration = Duration::from_mins(1);
/// A server that has not ended by then hangs.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Lines of the log that a failed test shows.
const SHOWN_LINES: usize = 60;
/// Ports below the range from which the kernel takes those of outgoing connections, and not those of `e2e`.
const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 10_000;

/// A port that nobody listens on. Each is given once by this process; others start elsewhere.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % u32::from(PORTS)) as u16;
    for _ in 0..PORTS {
        let offset = (start + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS) % PORTS;
        if TcpListener::bind(("127.0.0.1", FIRST_PORT + offset)).is_ok() {
            return FIRST_PORT + offset;
        }
    }
    panic!("no port is free");
}

/// A server process and where it listens.
pub struct Server {
    folder: PathBuf,
    port: u16,
    settings: Vec<String>,
    running: Option<(Child, BufReader<ChildStdout>)>,
}

impl Server {
    /// One that is not started yet. Of two settings with one name the later counts.
    pub fn new(folder: &Path, settings: &[String]) -> Server {
        fs::create_dir_all(folder).unwrap();
        let port = free_port();
        let mut all = vec![
            format!("data_dir={}", folder.join("data").display()),
            format!("listen.client=127.0.0.1:{port}"),
            "listen.metrics=".to_owned(),
            "federation.enabled=false".to_owned(),
            "push.enabled=false".to_owned(),
            "registration=open".to_owned(),
            "rate_limits.enabled=false".to_owned(),
            "password.memory_kib=64".to_owned(),
            "password.iterations=1".to_owned(),
        ];
        all.extend_from_slice(settings);
        Server { folder: folder.to_owned(), port, settings: all, running: None }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Starts the process; how long it took to say that it is ready.
    pub async fn start(&mut self) -> Duration {
        assert!(self.running.is_none(), "it runs already");
        let began = Instant::now();
        let log = File::options().create(true).append(true).open(self.folder.join("log")).unwrap();
        let mut child = self.command(&[]).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let ready = async {
            let mut line = String::new();
            loop {
                line.clear();
                let count = lines.read_line(&mut line).await.unwrap();
                if line.starts_with("ready ") || count == 0 {
                    return count > 0;
                }
            }
        };
        let ready = tokio::time::timeout(START_LIMIT, ready).await.unwrap_or(false);
        assert!(ready, "the server did not start:\n{}", self.last_lines());
        self.running = Some((child, lines));
        began.elapsed()
    }

    /// Ends the process as a power failure does.
    pub async fn kill(&mut self) {
        let (mut child, _lines) = self.running.take().expect("it runs");
        child.kill().await.unwrap();
    }

    /// Ends the process as a service manager does.
    pub async fn stop(&mut self) {
        self.signal("TERM").await;
        let (mut child, _lines) = self.running.take().expect("it runs");
        let status = tokio::time::timeout(STOP_LIMIT, child.wait()).await.expect("the server stops").unwrap();
        assert!(status.success(), "{status}\n{}", self.last_lines());
    }

    /// Sends the process a signal.
    pub async fn signal(&self, name: &str) {
        let id = self.running.as_ref().and_then(|(child, _)| child.id()).expect("it runs").to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &id]).status().await.unwrap();
        assert!(sent.success());
    }

    /// Runs the program to its end with this server's settings, and gives what it printed.
    ///
    /// # Panics
    /// Where it fails.
    pub async fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).stdin(Stdio::null()).output();
        let output = tokio::time::timeout(START_LIMIT, output).await.expect("it ends").unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (printed, errors) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {}\n{printed}\n{errors}", output.status);
        printed
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waxwing"));
        command.current_dir(&self.folder).kill_on_drop(true);
        // Settings of the surrounding shell are for another server.
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("WAXWING_"))
        {
            command.env_remove(name);
        }
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        command.args(arguments);
        command
    }

    fn logged(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn last_lines(&self) -> String {
        let log = self.logged();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.folder.display(), self.last_lines());
        } else if self.logged().contains("panicked at") {
            panic!("a server panicked:\n{}", self.logged());
        }
    }
}
