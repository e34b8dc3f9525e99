//! The program as people start it: first start, second process, bad configuration, stop.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const ANY_PORTS: [&str; 3] =
    ["listen.client=127.0.0.1:0", "listen.federation=127.0.0.1:0", "listen.metrics=127.0.0.1:0"];

/// How long a command may take on a machine that has other work too.
const PATIENCE: Duration = Duration::from_secs(30);

fn waxwing(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_waxwing"));
    command.current_dir(folder).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("WAXWING_")) {
        command.env_remove(name);
    }
    for address in ANY_PORTS {
        command.args(["--set", address]);
    }
    // Of two flags for one setting the later counts.
    command.args(arguments);
    command
}

/// Runs a command that ends by itself, and fails when it does not.
fn ends(folder: &Path, arguments: &[&str]) -> (Output, String) {
    let mut child = waxwing(folder, arguments).spawn().unwrap();
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("waxwing {arguments:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

/// A server that is killed when a test fails.
struct Running {
    child: Child,
    said: Vec<String>,
    ready_after: Duration,
}

impl Running {
    fn start(folder: &Path, arguments: &[&str]) -> Running {
        let began = Instant::now();
        let mut child = waxwing(folder, arguments).spawn().unwrap();
        let mut said = Vec::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            said.push(line.unwrap());
            if said.last().unwrap().starts_with("ready ") {
                break;
            }
        }
        let running = Running { child, said, ready_after: began.elapsed() };
        assert!(running.said.last().is_some_and(|line| line.starts_with("ready ")), "{:?}", running.said);
        running
    }

    /// The address behind `name` in what the server printed.
    fn address(&self, name: &str) -> String {
        let line = self.said.iter().find(|line| line.trim_start().starts_with(name)).unwrap();
        let url = line.split_whitespace().last().unwrap();
        url.split("//").nth(1).unwrap().split('/').next().unwrap().to_owned()
    }

    fn get(&self, name: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(self.address(name)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn terminate(mut self) -> (bool, String) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let status = self.child.wait().unwrap();
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (status.success(), log)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already where the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_first_start_needs_no_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::start(folder.path(), &[]);
    // The promise is one second in a release build on an idle machine; tests share theirs.
    assert!(server.ready_after < Duration::from_secs(5), "{:?}", server.ready_after);
    assert_eq!(server.said[0], format!("Waxwing {} serves localhost", env!("CARGO_PKG_VERSION")));
    let versions = server.get("clients", "/_matrix/client/versions");
    assert!(versions.starts_with("HTTP/1.1 200") && versions.contains("\"versions\""), "{versions}");
    let metrics = server.get("metrics", "/metrics");
    assert!(metrics.contains("waxwing_build_info"), "{metrics}");
    for file in ["signing.key", "tls/key.pem", "waxwing.db"] {
        let mode = folder.path().join("waxwing-data").join(file).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{file} can be read by others");
    }
    let (success, log) = server.terminate();
    assert!(success && log.contains("stopped"), "{log}");
}

#[test]
fn the_second_start_has_the_same_key() {
    let folder = tempfile::tempdir().unwrap();
    let key = || std::fs::read_to_string(folder.path().join("waxwing-data/signing.key")).unwrap();
    Running::start(folder.path(), &[]).terminate();
    let first = key();
    Running::start(folder.path(), &["serve"]).terminate();
    assert_eq!(first, key());
}

#[test]
fn a_second_process_on_the_same_data_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::start(folder.path(), &[]);
    let (output, said) = ends(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("is in use by another server"), "{said}");
    assert!(said.contains(&server.child.id().to_string()), "{said}");
    server.terminate();
}

#[test]
fn a_taken_port_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::start(folder.path(), &[]);
    let taken = server.address("clients");
    let other = tempfile::tempdir().unwrap();
    let (output, said) = ends(other.path(), &["--set", &format!("listen.client={taken}")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("setting listen.client: cannot listen on") && said.contains(&taken), "{said}");
    server.terminate();
}

#[test]
fn a_typing_error_in_the_configuration_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("waxwing.toml"), "[listen]\nclinet = '127.0.0.1:1'\n").unwrap();
    let (output, said) = ends(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    let wanted = "waxwing: unknown setting `listen.clinet` in waxwing.toml; did you mean `listen.client`?\n";
    assert_eq!(said, wanted);
    assert!(!folder.path().join("waxwing-data").exists(), "nothing is made before the configuration is good");
}

#[test]
fn the_example_is_printed_without_reading_any_configuration() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("waxwing.toml"), "broken").unwrap();
    let (output, said) = ends(folder.path(), &["config"]);
    assert!(output.status.success(), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("#server_name = \"localhost\""));
}
