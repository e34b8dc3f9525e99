//! A PostgreSQL of the test's own: a primary with a streaming replica that every commit waits for.

use crate::node::{free_port, say};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const VERSION: &str = "15";
const USER: &str = "waxwing";
const PASSWORD: &str = "waxwing";

/// Where Debian puts the programs.
fn programs() -> PathBuf {
    PathBuf::from(format!("/usr/lib/postgresql/{VERSION}/bin"))
}

/// Whether PostgreSQL is there.
///
/// # Panics
/// Where it is not although `CI` is set: there, nothing is skipped.
pub fn available() -> bool {
    let there = programs().join("initdb").exists();
    if !there {
        assert!(std::env::var_os("CI").is_none(), "PostgreSQL {VERSION} is missing");
        say("NOT RUN: PostgreSQL is missing; run scripts/postgres.sh install");
    }
    there
}

/// PostgreSQL refuses to run as root; then somebody else owns its folders.
fn owner() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let there = Command::new("id").arg("postgres").output().is_ok_and(|output| output.status.success());
    Some(if there { "postgres" } else { "nobody" })
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let program = programs().join(program);
    let mut command = match owner() {
        Some(owner) => {
            let mut command = Command::new("runuser");
            command.args(["-u", owner, "--"]).arg(&program);
            command
        }
        None => Command::new(&program),
    };
    command
        .args(arguments)
        .current_dir("/")
        .env("PGPASSWORD", PASSWORD)
        .output()
        .expect("PostgreSQL's program")
}

fn must(program: &str, arguments: &[&str]) {
    let output = run(program, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

/// One server of the two.
struct Member {
    folder: PathBuf,
    port: u16,
    running: bool,
}

impl Member {
    fn data(&self) -> String {
        self.folder.join("data").display().to_string()
    }

    /// Starts it; `settings` are for this time only.
    fn start(&mut self, settings: &str) {
        let log = self.folder.join("log").display().to_string();
        let options = format!(
            "-c listen_addresses=127.0.0.1 -c port={} -c unix_socket_directories={} -c max_connections=200 -c fsync=on \
             -c wal_retrieve_retry_interval=200ms {settings}",
            self.port,
            self.folder.display(),
        );
        let data = self.data();
        // Its output must not be a pipe of ours, which would stay open as long as it runs.
        let output = run("pg_ctl", &["-D", &data, "-w", "-t", "60", "-l", &log, "-o", &options, "start"]);
        let log = fs::read_to_string(&log).unwrap_or_default();
        assert!(output.status.success(), "PostgreSQL does not start: {log}");
        self.running = true;
    }

    /// `fast` lets it finish; `immediate` is a crash.
    fn stop(&mut self, mode: &str) {
        must("pg_ctl", &["-D", &self.data(), "-w", "-m", mode, "stop"]);
        self.running = false;
    }

    fn execute(&self, statement: &str) -> String {
        let url = format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{}/postgres", self.port);
        let output = run("psql", &["-q", "-X", "-A", "-t", &url, "-c", statement]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{statement}: {said}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if self.running {
            let _ = run("pg_ctl", &["-D", &self.data(), "-m", "immediate", "stop"]);
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The primary and its replica.
pub struct Cluster {
    primary: Member,
    replica: Member,
    folder: PathBuf,
    made: usize,
}

/// Every commit waits until the replica has it: what was acknowledged survives the primary.
const SYNCHRONOUS: &str = "-c synchronous_standby_names=*";

impl Cluster {
    /// Makes and starts both.
    pub fn start(folder: &Path) -> Cluster {
        fs::create_dir_all(folder).unwrap();
        let (primary, replica) = (member(folder, 1), member(folder, 2));
        let mut cluster = Cluster { primary, replica, folder: folder.to_owned(), made: 2 };
        let password = cluster.primary.folder.join("password");
        fs::write(&password, PASSWORD).unwrap();
        give(&cluster.primary.folder);
        let (data, password) = (cluster.primary.data(), format!("--pwfile={}", password.display()));
        must(
            "initdb",
            &["-D", &data, "-U", USER, &password, "--auth=password", "--encoding=UTF8", "--locale=C"],
        );
        // The replica does not exist yet: nobody is waited for.
        cluster.primary.start("");
        cluster.copy();
        cluster.primary.stop("fast");
        cluster.primary.start(SYNCHRONOUS);
        cluster.replica.start("");
        cluster.wait_for_replica();
        cluster
    }

    /// The port of the primary.
    pub fn port(&self) -> u16 {
        self.primary.port
    }

    /// How a server finds it at `port`.
    pub fn url(port: u16) -> String {
        format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{port}/postgres?sslmode=disable")
    }

    /// Makes the replica's data from the primary's.
    fn copy(&self) {
        give(&self.replica.folder);
        let (port, data) = (self.primary.port.to_string(), self.replica.data());
        must(
            "pg_basebackup",
            &["-h", "127.0.0.1", "-p", &port, "-U", USER, "-D", &data, "-R", "-X", "stream", "-c", "fast"],
        );
    }

    fn wait_for_replica(&self) {
        for _ in 0..600 {
            let found =
                self.primary.execute("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'");
            if found == "1" {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("the replica does not follow");
    }

    /// Stops the primary and starts it again.
    pub fn restart(&mut self, mode: &str) {
        self.primary.stop(mode);
        self.primary.start(SYNCHRONOUS);
    }

    /// The primary crashes and the replica takes its place, alone for now. The new port.
    pub fn fail_over(&mut self) -> u16 {
        self.primary.stop("immediate");
        must("pg_ctl", &["-D", &self.replica.data(), "-w", "-t", "60", "promote"]);
        std::mem::swap(&mut self.primary, &mut self.replica);
        self.primary.port
    }

    /// Gives the lone primary a new replica, that every commit waits for from now on.
    pub fn mend(&mut self) {
        self.made += 1;
        self.replica = member(&self.folder, self.made);
        self.copy();
        // Set after the copy: the next primary, made of that copy, must not wait for a replica that it does not have.
        self.primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'");
        self.primary.execute("SELECT pg_reload_conf()");
        self.replica.start("");
        self.wait_for_replica();
    }
}

fn member(folder: &Path, number: usize) -> Member {
    let folder = folder.join(format!("postgres-{number}"));
    fs::create_dir_all(&folder).unwrap();
    Member { folder, port: free_port(), running: false }
}

/// The folder is PostgreSQL's from now on.
fn give(folder: &Path) {
    let path = folder.display().to_string();
    assert!(Command::new("chmod").args(["0700", &path]).status().unwrap().success());
    if let Some(owner) = owner() {
        // The folders above must let it through.
        for above in folder.ancestors().skip(1).take_while(|above| above.starts_with(std::env::temp_dir())) {
            let above = above.display().to_string();
            if above != std::env::temp_dir().display().to_string() {
                assert!(Command::new("chmod").args(["a+x", &above]).status().unwrap().success());
            }
        }
        assert!(Command::new("chown").args(["-R", owner, &path]).status().unwrap().success());
    }
}
