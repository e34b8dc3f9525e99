//! A NATS server of a test's own, on a loopback port.

use super::node::{free_port, say};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// It starts within some ten milliseconds.
const START_LIMIT: Duration = Duration::from_secs(20);

pub struct NatsServer {
    pub port: u16,
    program: PathBuf,
    options: Vec<String>,
    running: Option<Child>,
}

impl NatsServer {
    /// One that is not started yet, with these options beside its address. `None` where there is no such server.
    ///
    /// # Panics
    /// Where there is none although `CI` is set: there, nothing is skipped.
    pub fn new(options: &[&str]) -> Option<NatsServer> {
        let Some(program) = std::env::var_os("WAXWING_TEST_NATS_SERVER") else {
            assert!(std::env::var_os("CI").is_none(), "WAXWING_TEST_NATS_SERVER is not set");
            say("NOT RUN over NATS: needs `eval \"$(scripts/nats.sh install)\"`");
            return None;
        };
        let options = options.iter().map(|&option| option.to_owned()).collect();
        Some(NatsServer { port: free_port(), program: program.into(), options, running: None })
    }

    /// Starts it, and waits until it takes connections.
    pub fn start(&mut self) {
        assert!(self.running.is_none(), "it runs already");
        let mut command = Command::new(&self.program);
        command.args(["--addr", "127.0.0.1", "--port", &self.port.to_string()]).args(&self.options);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("nats-server starts");
        self.running = Some(child);
        let deadline = Instant::now() + START_LIMIT;
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < deadline, "NATS does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it without a word.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.running.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}
