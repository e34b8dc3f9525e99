//! Runs Complement's compiled test packages against the runner and collects what they say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use regex::Regex;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::network::lock;
use crate::results::{Event, Outcome, Results, Test};

/// Of one start of a package. It is there for a test that hangs, and ends all that would have followed it.
const PACKAGE_TIMEOUT: &str = "20m";
/// A panic in one test ends the process; what is left is run again, but not without end.
const MOST_STARTS: usize = 12;
/// Of the output that is kept of one test, should it fail.
const LARGEST_OUTPUT: usize = 4 * 1024 * 1024;

/// One compiled package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    binary: PathBuf,
    tests: Vec<String>,
}

/// What is to be run, and how.
pub struct Plan {
    pub packages: Vec<Package>,
    /// Handed to the test binary as it is.
    pub only: Option<String>,
    pub jobs: usize,
    pub output: PathBuf,
    pub docker_host: String,
}

/// Finds the packages in a directory that has `NAME.test` for each and `tests.txt` with `package<TAB>test` lines, and
/// keeps those that have a test to run.
pub fn packages(directory: &Path, only: Option<&str>, wanted: Option<&str>) -> Result<Vec<Package>> {
    let index = directory.join("tests.txt");
    let index = fs::read_to_string(&index).with_context(|| format!("reading {}", index.display()))?;
    // One of Go's expressions may be none of ours: then every package is asked.
    let top = only.and_then(|only| Regex::new(&top_level(only)).ok());
    let mut tests: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for line in index.lines() {
        let (package, test) = line.split_once('\t').with_context(|| format!("tests.txt: {line}"))?;
        if top.as_ref().is_none_or(|top| top.is_match(test))
            && wanted.is_none_or(|name| package.ends_with(name))
        {
            tests.entry(package).or_default().push(test.to_owned());
        }
    }
    let packages = tests.into_iter().map(|(name, tests)| {
        let file = name.rsplit('/').next().unwrap_or(name);
        Package { name: name.to_owned(), binary: directory.join(format!("{file}.test")), tests }
    });
    Ok(packages.collect())
}

/// Puts those with the most to do first: they are what the rest can be run beside. How much that is, the list of
/// expected results knows better than the binaries, which only tell their top-level tests.
pub fn order(packages: &mut [Package], expected: &Results) {
    let known = |package: &Package| expected.keys().filter(|test| test.package == package.name).count();
    packages.sort_by_key(|package| std::cmp::Reverse(known(package).max(package.tests.len())));
}

/// What an expression for tests asks of top-level tests. Go splits it at each `|` into alternatives, and those at each
/// `/` into a part for each level, except inside brackets.
fn top_level(only: &str) -> String {
    let (mut top, mut depth, mut below) = (String::new(), 0_usize, false);
    let mut escaped = false;
    for c in only.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            '/' if depth == 0 => below = true,
            '|' if depth == 0 => below = false,
            _ => {}
        }
        if !below {
            top.push(c);
        }
    }
    top
}

pub struct Run {
    plan: Plan,
    total: usize,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    results: Results,
    seconds: BTreeMap<Test, f64>,
    done: usize,
    groups: BTreeSet<i32>,
}

impl Run {
    pub fn new(plan: Plan) -> Self {
        let total = plan.packages.iter().map(|package| package.tests.len()).sum();
        Self { plan, total, progress: Mutex::default() }
    }

    /// All results, of every level.
    pub async fn all(self: &Arc<Self>) -> Result<Results> {
        fs::create_dir_all(self.plan.output.join("failed"))?;
        let mut waiting = self.plan.packages.clone().into_iter();
        let mut running = JoinSet::new();
        loop {
            while running.len() < self.plan.jobs {
                let Some(package) = waiting.next() else { break };
                let run = self.clone();
                running.spawn(async move { run.package(&package).await });
            }
            match running.join_next().await {
                Some(result) => result??,
                None => break,
            }
        }
        self.write_times()?;
        Ok(lock(&self.progress).results.clone())
    }

    /// Ends the test processes that are still there.
    pub fn interrupt(&self) {
        for group in lock(&self.progress).groups.iter().filter_map(|group| Pid::from_raw(*group)) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    async fn package(&self, package: &Package) -> Result<()> {
        let mut left: BTreeSet<String> = package.tests.iter().cloned().collect();
        let events = self.plan.output.join(format!("{}.json", package.name.replace('/', "-")));
        let mut events = BufWriter::new(File::create(events)?);
        let mut only = self.plan.only.clone().unwrap_or_else(|| ".".to_owned());
        for _ in 0..MOST_STARTS {
            let before = left.len();
            let clean = self.start(package, &only, &mut left, &mut events).await?;
            // With a filter, what is left may just not have been asked for.
            if left.is_empty() || clean || left.len() == before || self.plan.only.is_some() {
                break;
            }
            println!("{} ended early; running the {} tests that are left", package.name, left.len());
            let names: Vec<_> = left.iter().map(String::as_str).collect();
            only = format!("^({})$", names.join("|"));
        }
        if self.plan.only.is_none() {
            for name in left {
                self.finish(&Test::new(&package.name, &name), Outcome::Fail, 0.0, "it did not run\n")?;
            }
        }
        Ok(())
    }

    /// Runs the binary once and takes the tests that came to an end out of `left`. True if it ended as it should.
    async fn start(
        &self,
        package: &Package,
        only: &str,
        left: &mut BTreeSet<String>,
        events: &mut impl Write,
    ) -> Result<bool> {
        let mut child = self.spawn(package, only)?;
        let group = child.id().context("the test process has no id")?.cast_signed();
        lock(&self.progress).groups.insert(group);
        let stdout = child.stdout.take().context("no pipe from the test process")?;
        let mut lines = BufReader::new(stdout).lines();
        let mut open = Open::default();
        while let Some(line) = lines.next_line().await? {
            writeln!(events, "{line}")?;
            let event: Event = serde_json::from_str(&line).with_context(|| format!("no event: {line}"))?;
            self.handle(package, &event, &mut open, left)?;
        }
        let status = child.wait().await?;
        lock(&self.progress).groups.remove(&group);
        // Whatever had begun when the process died has failed.
        for (name, output) in open.outputs {
            left.remove(&name);
            self.finish(&Test::new(&package.name, &name), Outcome::Fail, 0.0, &output)?;
        }
        if !open.any {
            bail!("{} did not start ({status}): {}", package.binary.display(), open.stray);
        }
        Ok(status.success() || open.ended)
    }

    fn spawn(&self, package: &Package, only: &str) -> Result<Child> {
        let mut command = Command::new("go");
        command.args(["tool", "test2json", "-t", "-p", &package.name]).arg(&package.binary);
        command.args(["-test.v=test2json", "-test.count=1"]);
        command.arg(format!("-test.timeout={PACKAGE_TIMEOUT}")).arg(format!("-test.run={only}"));
        for name in ["DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_API_VERSION"] {
            command.env_remove(name);
        }
        command.env("DOCKER_HOST", &self.plan.docker_host);
        command.env("COMPLEMENT_BASE_IMAGE", "waxwing");
        // One server for all tests of a package that do not ask for their own.
        command.env("COMPLEMENT_ENABLE_DIRTY_RUNS", "1");
        command.env("COMPLEMENT_SHARE_ENV_PREFIX", "PASS_");
        // Complement's own servers write their certificates to one place below it, one process over the other's.
        let temporary = self.plan.output.join("tmp").join(package.name.replace('/', "-"));
        fs::create_dir_all(&temporary).context("a folder for temporary files")?;
        command.env("TMPDIR", temporary);
        command.current_dir(&self.plan.output).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.spawn().context("starting go, which starts the tests")
    }

    fn handle(
        &self,
        package: &Package,
        event: &Event,
        open: &mut Open,
        left: &mut BTreeSet<String>,
    ) -> Result<()> {
        let Some(name) = &event.test else {
            open.stray.push_str(&event.output);
            open.ended |= event.outcome().is_some_and(|outcome| outcome != Outcome::Fail);
            return Ok(());
        };
        open.any = true;
        let test = Test::new(&package.name, name);
        let top = test.top();
        // The parts of a test can be reported after the whole.
        if !lock(&self.progress).results.contains_key(&top) {
            let output = open.outputs.entry(top.name.clone()).or_default();
            if output.len() < LARGEST_OUTPUT {
                output.push_str(&event.output);
            }
        }
        let Some(outcome) = event.outcome() else { return Ok(()) };
        if test == top {
            let output = open.outputs.remove(name).unwrap_or_default();
            left.remove(name);
            self.finish(&test, outcome, event.elapsed, &output)?;
        } else {
            lock(&self.progress).results.insert(test, outcome);
        }
        Ok(())
    }

    /// A top-level test has ended.
    fn finish(&self, test: &Test, outcome: Outcome, seconds: f64, output: &str) -> Result<()> {
        let mut progress = lock(&self.progress);
        progress.done += 1;
        progress.results.insert(test.clone(), outcome);
        progress.seconds.insert(test.clone(), seconds);
        let done = progress.done;
        println!("[{done:3}/{}] {outcome} {} {} ({seconds:.1} s)", self.total, test.package, test.name);
        if outcome == Outcome::Fail {
            let directory = self.plan.output.join("failed").join(test.package.replace('/', "-"));
            fs::create_dir_all(&directory)?;
            fs::write(directory.join(format!("{}.log", test.name)), output)?;
        }
        Ok(())
    }

    /// The top-level tests with the seconds they took, the slowest first.
    fn write_times(&self) -> Result<()> {
        let mut times: Vec<_> = lock(&self.progress).seconds.clone().into_iter().collect();
        times.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let lines = times.iter().map(|(test, took)| format!("{took:.2}\t{}\t{}\n", test.package, test.name));
        fs::write(self.plan.output.join("times.txt"), lines.collect::<String>())?;
        Ok(())
    }
}

/// What one process has begun and not ended.
#[derive(Default)]
struct Open {
    any: bool,
    ended: bool,
    /// By top-level test.
    outputs: BTreeMap<String, String>,
    /// Output of no test.
    stray: String,
}

/// Waits for the first of the signals that ask a program to end.
pub async fn asked_to_end() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    // A second signal ends the program at once, and the kernel then ends the servers.
    Ok(())
}

/// For a person: how long something took.
pub fn minutes(took: Duration) -> String {
    format!("{} min {:02} s", took.as_secs() / 60, took.as_secs() % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(only: Option<&str>, wanted: Option<&str>) -> Vec<(String, usize)> {
        let directory = tempfile::tempdir().unwrap();
        let lines = "tests\tTestA\ntests/csapi\tTestA\ntests/csapi\tTestLogin\n";
        fs::write(directory.path().join("tests.txt"), lines).unwrap();
        let found = packages(directory.path(), only, wanted).unwrap();
        found.into_iter().map(|package| (package.name, package.tests.len())).collect()
    }

    #[test]
    fn the_largest_package_is_first() {
        let package = |name: &str, tests: usize| Package {
            name: name.to_owned(),
            binary: PathBuf::new(),
            tests: vec![String::new(); tests],
        };
        let mut packages = [package("a", 1), package("b", 2), package("c", 1)];
        order(&mut packages, &crate::results::parse("pass\tc\tT/1\npass\tc\tT/2\npass\tc\tT/3").unwrap());
        assert_eq!(packages.map(|package| package.name), ["c", "b", "a"]);
    }

    #[test]
    fn a_package_without_a_wanted_test_is_left_out() {
        assert_eq!(index(Some("^TestLogin$/part"), None), [("tests/csapi".to_owned(), 1)]);
        assert_eq!(index(Some("TestA"), Some("tests")), [("tests".to_owned(), 1)]);
        assert!(index(Some("TestB"), None).is_empty());
    }

    #[test]
    fn levels_and_alternatives_are_told_apart() {
        assert_eq!(top_level("TestA/x|^TestB$/(y|z)/w|TestC"), "TestA|^TestB$|TestC");
        assert_eq!(top_level("Test(A|B)/x"), "Test(A|B)");
        assert_eq!(top_level(r"Test[/|]\||A"), r"Test[/|]\||A");
    }

    #[test]
    fn binaries_are_named_after_the_last_part() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("tests.txt"), "tests/csapi\tTestA\n").unwrap();
        let found = packages(directory.path(), None, None).unwrap();
        assert_eq!(found[0].binary, directory.path().join("csapi.test"));
        fs::write(directory.path().join("tests.txt"), "TestA\n").unwrap();
        assert!(packages(directory.path(), None, None).is_err());
    }

    /// Ends in the middle of `TestB`, as a panic does, unless it is asked for `TestC`.
    const PANICS: &str = r#"#!/bin/sh
        say() { printf '\026%s\n' "$1"; }
        case "$*" in *TestC*) say '=== RUN   TestC'; say '--- PASS: TestC (0.01s)'; echo PASS; exit 0 ;; esac
        say '=== RUN   TestA'; say '=== RUN   TestA/x'
        say '--- PASS: TestA (0.00s)'; say '    --- PASS: TestA/x (0.00s)'
        say '=== RUN   TestB'; echo 'panic: no'; exit 2
    "#;

    #[tokio::test]
    async fn a_panic_costs_its_own_test_only() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::write(path.join("p.test"), PANICS).unwrap();
        fs::set_permissions(path.join("p.test"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(path.join("tests.txt"), "p\tTestA\np\tTestB\np\tTestC\n").unwrap();
        let run = Arc::new(Run::new(Plan {
            packages: packages(path, None, None).unwrap(),
            only: None,
            jobs: 1,
            output: path.to_owned(),
            docker_host: String::new(),
        }));
        let expected = [("TestA", Outcome::Pass), ("TestA/x", Outcome::Pass), ("TestB", Outcome::Fail)];
        let mut expected: Results = expected.map(|(name, outcome)| (Test::new("p", name), outcome)).into();
        expected.insert(Test::new("p", "TestC"), Outcome::Pass);
        assert_eq!(run.all().await.unwrap(), expected);
        assert!(fs::read_to_string(path.join("failed/p/TestB.log")).unwrap().contains("panic: no"));
    }
}
