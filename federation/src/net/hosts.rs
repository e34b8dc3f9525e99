use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

/// A hosts file larger than this is not read: no machine has one by hand, and it is parsed on the spot.
const MAX_BYTES: u64 = 1 << 20;

/// The system's hosts file, read again when it changes: containers get their neighbours' names written into it while
/// they run.
pub(super) struct HostsFile {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    modified: Option<SystemTime>,
    names: BTreeMap<String, Vec<IpAddr>>,
}

impl HostsFile {
    pub(super) fn new(path: impl Into<PathBuf>) -> HostsFile {
        HostsFile { path: path.into(), state: Mutex::default() }
    }

    /// The addresses written beside `name`; none when it is not there or there is no such file.
    pub(super) fn addresses(&self, name: &str) -> Vec<IpAddr> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let modified = std::fs::metadata(&self.path)
            .ok()
            .filter(|meta| meta.is_file() && meta.len() <= MAX_BYTES)
            .and_then(|meta| meta.modified().ok());
        let mut state = self.state.lock();
        if state.modified != modified || modified.is_none() {
            let text = modified.and_then(|_| std::fs::read_to_string(&self.path).ok()).unwrap_or_default();
            *state = State { modified, names: parse(&text) };
        }
        state.names.get(&name).cloned().unwrap_or_default()
    }
}

fn parse(text: &str) -> BTreeMap<String, Vec<IpAddr>> {
    let mut names: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else { continue };
        for name in words {
            names.entry(name.trim_end_matches('.').to_ascii_lowercase()).or_default().push(address);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_aliases_and_comments() {
        let names = parse(
            "127.0.0.1 localhost # here\n::1 localhost ip6\n# 9.9.9.9 no\n\n10.0.0.2\tHS2 hs2.local.\nbad x",
        );
        assert_eq!(names["localhost"].len(), 2);
        assert_eq!(names["hs2"], ["10.0.0.2".parse::<IpAddr>().unwrap()]);
        assert!(names.contains_key("hs2.local") && !names.contains_key("no") && !names.contains_key("x"));
    }

    #[test]
    fn no_file_means_no_names() {
        assert!(HostsFile::new("/nonexistent/hosts").addresses("localhost").is_empty());
    }
}
