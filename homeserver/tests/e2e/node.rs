//! Server processes: started as people start them, on loopback ports of their own, ended with the test.

use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

/// A server that is not ready by then will not be; machines that run tests have other work too.
const START_LIMIT: Duration = Duration::from_mins(1);
/// A server that has not ended by then hangs: its own limit for running requests is shorter.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Lines of the log that a failed test shows.
const SHOWN_LINES: usize = 80;
/// Ports below the range from which the kernel takes those of outgoing connections.
const FIRST_PORT: u16 = 10_000;
const PORTS: u16 = 10_000;

/// A port that nobody listens on. Each is given once by this process; others start elsewhere.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % u32::from(PORTS)).unwrap();
    for _ in 0..PORTS {
        let offset = (start + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS) % PORTS;
        if TcpListener::bind(("127.0.0.1", FIRST_PORT + offset)).is_ok() {
            return FIRST_PORT + offset;
        }
    }
    panic!("no port is free");
}

/// A server process and where it listens.
pub struct Node {
    pub folder: PathBuf,
    pub client_port: u16,
    pub federation_port: u16,
    program: PathBuf,
    settings: Vec<String>,
    running: Option<(Child, BufReader<ChildStdout>)>,
}

impl Node {
    /// A node that is not started yet. Of two settings with one name the later counts.
    pub fn new(folder: &Path, settings: &[String]) -> Node {
        fs::create_dir_all(folder).unwrap();
        let (client_port, federation_port) = (free_port(), free_port());
        let mut all = vec![
            format!("data_dir={}", folder.join("data").display()),
            format!("listen.client=127.0.0.1:{client_port}"),
            format!("listen.federation=127.0.0.1:{federation_port}"),
            "listen.metrics=".to_owned(),
            "registration=open".to_owned(),
            "rate_limits.enabled=false".to_owned(),
            "password.memory_kib=64".to_owned(),
            "password.iterations=1".to_owned(),
        ];
        all.extend_from_slice(settings);
        let program = PathBuf::from(env!("CARGO_BIN_EXE_waxwing"));
        Node {
            folder: folder.to_owned(),
            client_port,
            federation_port,
            program,
            settings: all,
            running: None,
        }
    }

    /// Another program than the one that was just built: an older one.
    pub fn is_run_by(&mut self, program: PathBuf) {
        self.program = program;
    }

    /// Adds a setting for the next start.
    pub fn set(&mut self, setting: String) {
        self.settings.push(setting);
    }

    pub fn client_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    pub fn federation_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.federation_port)
    }

    /// The server's folder, which outlives a restart.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.running.as_ref().and_then(|(child, _)| child.id()).expect("the node runs")
    }

    /// Starts the process and returns when it says that it is ready.
    pub async fn start(&mut self) {
        assert!(self.running.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
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
    }

    /// Ends the process as a service manager does.
    pub async fn stop(&mut self) {
        self.signal("TERM").await;
        let (mut child, _lines) = self.running.take().expect("the node runs");
        let status = tokio::time::timeout(STOP_LIMIT, child.wait()).await.expect("the server stops").unwrap();
        assert!(status.success(), "{status}\n{}", self.last_lines());
    }

    /// Sends the process a signal.
    pub async fn signal(&self, name: &str) {
        let id = self.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &id]).status().await.unwrap().success());
    }

    /// Ends the process as a power failure does.
    pub async fn kill(&mut self) {
        let (mut child, _lines) = self.running.take().expect("the node runs");
        child.kill().await.unwrap();
    }

    /// Runs the program to its end with this node's settings: `audit`, or a second server on the same folder.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        let output = self.command(arguments).stdin(Stdio::null()).output();
        tokio::time::timeout(START_LIMIT, output).await.expect("it ends").unwrap()
    }

    /// Starts the program with this node's settings, for one that reads its standard input.
    pub fn piped(&self, arguments: &[&str], input: Stdio) -> Child {
        self.command(arguments).stdin(input).stdout(Stdio::null()).spawn().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
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

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Everything that this node has logged.
    pub fn logged(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn last_lines(&self) -> String {
        let log = self.logged();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let logged = self.logged();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.folder.display(), self.last_lines());
        } else if logged.contains("panicked at") {
            panic!("a server panicked:\n{logged}");
        }
    }
}

/// Says something that the test runner does not keep to itself.
pub fn say(line: &str) {
    use io::Write;
    let _ = writeln!(io::stderr(), "{line}");
}
