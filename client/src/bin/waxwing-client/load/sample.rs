//! What the server and the driver use, as the kernel counts it. The server is whole process trees, so that the
//! database's processes count where they are named too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// `USER_HZ`: the unit of CPU time in `/proc`. It is 100 on every platform on which Linux runs today.
const TICKS: u64 = 100;

/// The processes and files of one server.
#[derive(Debug, Clone, Default)]
pub struct Sampler {
    roots: Vec<u32>,
    data: Vec<PathBuf>,
}

/// The state of things at one moment.
#[derive(Debug, Clone)]
pub struct Sample {
    at: Instant,
    driver: Duration,
    server: Option<Usage>,
}

/// What a process tree has used since it began, and the memory that it has.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Usage {
    cpu: Duration,
    /// Bytes that were sent towards the disk.
    written: u64,
    /// Resident memory; what processes share counts in each.
    rss: u64,
    /// The same with what is shared divided among those that share it.
    pss: u64,
    /// The part of it that is no file's: a database that is mapped into memory is in the rest.
    anonymous: u64,
}

/// The difference of two samples.
#[derive(Debug, Clone, Copy, Default)]
pub struct Used {
    pub seconds: f64,
    pub driver_cpu_ms: f64,
    /// `None` without `--pid`.
    pub server: Option<UsedByServer>,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct UsedByServer {
    pub cpu_ms: f64,
    pub written: f64,
    /// At the end, bytes.
    pub rss: f64,
    pub pss: f64,
    pub anonymous: f64,
}

impl Sampler {
    pub fn new(roots: Vec<u32>, data: Vec<PathBuf>) -> Result<Self> {
        for root in &roots {
            if !Path::new(&format!("/proc/{root}/stat")).exists() {
                bail!(
                    "there is no process {root}, or no /proc: --pid works on Linux, on the server's machine"
                );
            }
        }
        for path in &data {
            if !path.exists() {
                bail!("there is nothing at {}", path.display());
            }
        }
        Ok(Self { roots, data })
    }

    pub fn sample(&self) -> Sample {
        let own = std::process::id();
        let stats = stats();
        let driver = stats.get(&own).map(|stat| stat.cpu).unwrap_or_default();
        let server = (!self.roots.is_empty()).then(|| usage(&tree(&stats, &self.roots, own), &stats));
        Sample { at: Instant::now(), driver, server }
    }

    /// Bytes on disk of everything under the data paths; `None` without any.
    pub fn data_bytes(&self) -> Option<u64> {
        (!self.data.is_empty()).then(|| self.data.iter().map(|path| disk_bytes(path)).sum())
    }

    /// Proportional memory now, in bytes.
    pub fn memory(&self) -> Option<u64> {
        self.sample().server.map(|usage| usage.pss)
    }
}

impl Sample {
    /// What was used from this sample to the later one.
    pub fn until(&self, later: &Self) -> Used {
        let ms = |after: Duration, before: Duration| after.saturating_sub(before).as_secs_f64() * 1e3;
        let server = self.server.zip(later.server).map(|(before, after)| UsedByServer {
            cpu_ms: ms(after.cpu, before.cpu),
            written: after.written.saturating_sub(before.written) as f64,
            rss: after.rss as f64,
            pss: after.pss as f64,
            anonymous: after.anonymous as f64,
        });
        Used {
            seconds: later.at.duration_since(self.at).as_secs_f64(),
            driver_cpu_ms: ms(later.driver, self.driver),
            server,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Stat {
    parent: u32,
    /// Of the process and of its children that have ended: a tree's sum never falls.
    cpu: Duration,
}

fn stats() -> BTreeMap<u32, Stat> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter_map(|id: u32| Some((id, parse_stat(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)?)))
        .collect()
}

/// `PID (NAME) STATE PPID …`; the name may hold anything, blanks and parentheses too. See proc_pid_stat(5).
fn parse_stat(line: &str) -> Option<Stat> {
    let fields: Vec<&str> = line[line.rfind(')')? + 1..].split_ascii_whitespace().collect();
    let ticks: u64 = (11..=14).map(|at| fields.get(at)?.parse::<u64>().ok()).sum::<Option<u64>>()?;
    Some(Stat { parent: fields.get(1)?.parse().ok()?, cpu: Duration::from_millis(ticks * 1000 / TICKS) })
}

/// The roots and all that descend from them, each once, without the driver itself.
fn tree(stats: &BTreeMap<u32, Stat>, roots: &[u32], own: u32) -> BTreeSet<u32> {
    let mut found: BTreeSet<u32> = roots.iter().copied().filter(|id| stats.contains_key(id)).collect();
    loop {
        let before = found.len();
        let children = stats.iter().filter(|(_, stat)| found.contains(&stat.parent)).map(|(id, _)| *id);
        let children: Vec<u32> = children.filter(|id| *id != own).collect();
        found.extend(children);
        if found.len() == before {
            return found;
        }
    }
}

fn usage(ids: &BTreeSet<u32>, stats: &BTreeMap<u32, Stat>) -> Usage {
    let mut sum = Usage::default();
    for id in ids {
        let read = |file: &str| fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default();
        let memory = read("smaps_rollup");
        sum.cpu += stats.get(id).map(|stat| stat.cpu).unwrap_or_default();
        sum.rss += field(&memory, "Rss:") * 1024;
        sum.pss += field(&memory, "Pss:") * 1024;
        sum.anonymous += field(&memory, "Pss_Anon:") * 1024;
        sum.written += field(&read("io"), "write_bytes:");
    }
    sum
}

/// The number after a name at the beginning of a line.
fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.split_ascii_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// What a file, or everything under a folder, takes on disk. Links are not followed.
fn disk_bytes(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let own = metadata.blocks() * 512;
    if !metadata.is_dir() {
        return own;
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    own + entries.map(|entry| disk_bytes(&entry.path())).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_line_is_read_whatever_the_name() {
        let line = "42 (a) b (c)) S 7 42 42 0 -1 4194560 1 2 3 4 150 50 30 20 20 0 3 0 99";
        assert_eq!(parse_stat(line), Some(Stat { parent: 7, cpu: Duration::from_millis(2500) }));
        assert_eq!(parse_stat("42 (a) S 7"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn trees_have_grandchildren_once_and_never_the_driver() {
        let stat = |parent| Stat { parent, cpu: Duration::ZERO };
        let stats =
            BTreeMap::from([(1, stat(0)), (10, stat(1)), (9, stat(10)), (30, stat(9)), (40, stat(9))]);
        assert_eq!(tree(&stats, &[10, 9], 40), BTreeSet::from([9, 10, 30]));
        assert_eq!(tree(&stats, &[77], 40), BTreeSet::new());
    }

    #[test]
    fn fields_stand_at_the_beginning_of_lines() {
        let text = "Rss:   123 kB\nPss_Dirty: 7 kB\nPss:  100 kB\n";
        assert_eq!((field(text, "Pss:"), field(text, "Rss:"), field(text, "Swap:")), (100, 123, 0));
    }

    #[test]
    fn this_process_is_seen() {
        let sampler = Sampler::new(vec![std::process::id()], Vec::new()).unwrap();
        let before = sampler.sample();
        let began = Instant::now();
        let mut sum = 0_u64;
        while began.elapsed() < Duration::from_millis(60) {
            sum = sum.wrapping_mul(31).wrapping_add(std::hint::black_box(7));
        }
        let used = before.until(&sampler.sample());
        let server = used.server.unwrap();
        assert!(
            used.seconds >= 0.06 && server.cpu_ms >= 10.0 && server.anonymous > 100_000.0,
            "{used:?} {sum}"
        );
        assert!(server.rss >= server.pss && server.pss >= server.anonymous);
        assert!(Sampler::new(vec![u32::MAX], Vec::new()).is_err());
    }

    #[test]
    fn data_is_counted_as_it_lies_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("deep")).unwrap();
        fs::write(folder.path().join("deep/file"), vec![1; 100_000]).unwrap();
        let sampler = Sampler::new(Vec::new(), vec![folder.path().to_owned()]).unwrap();
        assert!(sampler.data_bytes().unwrap() >= 100_000);
        assert!(sampler.sample().server.is_none() && Sampler::default().data_bytes().is_none());
    }
}
