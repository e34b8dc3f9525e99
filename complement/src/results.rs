//! What tests came to: read from the events of a test binary, written and read as lines of a file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Pass,
    Fail,
    Skip,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Skip => "skip",
        })
    }
}

impl Outcome {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "pass" => Self::Pass,
            "fail" => Self::Fail,
            "skip" => Self::Skip,
            _ => return None,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Test {
    pub package: String,
    pub name: String,
}

impl Test {
    pub fn new(package: &str, name: &str) -> Self {
        Self { package: package.to_owned(), name: name.to_owned() }
    }

    /// The top-level test it is part of.
    pub fn top(&self) -> Self {
        let top = self.name.split('/').next().unwrap_or_default();
        Self::new(&self.package, top)
    }
}

pub type Results = BTreeMap<Test, Outcome>;

/// Keeps the top-level tests and the leaves. What lies between only repeats what its leaves say.
pub fn listed(all: &Results) -> Results {
    let parents: BTreeSet<Test> = all
        .keys()
        .flat_map(|test| {
            let slashes = test.name.match_indices('/');
            slashes.map(|(at, _)| Test::new(&test.package, &test.name[..at])).collect::<Vec<_>>()
        })
        .collect();
    let is_listed = |test: &Test| !test.name.contains('/') || !parents.contains(test);
    all.iter().filter(|(test, _)| is_listed(test)).map(|(test, outcome)| (test.clone(), *outcome)).collect()
}

/// One line a test: `outcome<TAB>package<TAB>name`. Sorted by package and name, so that an outcome that changes is one
/// changed line.
pub fn render(results: &Results) -> String {
    let lines = results.iter().map(|(test, outcome)| format!("{outcome}\t{}\t{}\n", test.package, test.name));
    lines.collect()
}

pub fn parse(text: &str) -> Result<Results> {
    let mut results = Results::new();
    for (at, line) in text.lines().enumerate() {
        let number = at + 1;
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let parts: Vec<_> = line.split('\t').collect();
        let [outcome, package, name] = parts[..] else {
            bail!("line {number} is not of the form outcome<TAB>package<TAB>name: {line}");
        };
        let outcome = Outcome::parse(outcome).with_context(|| format!("line {number}: {outcome}?"))?;
        if results.insert(Test::new(package, name), outcome).is_some() {
            bail!("line {number}: {name} of {package} is listed twice");
        }
    }
    Ok(results)
}

/// What `go tool test2json` writes, a line an event.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Event {
    pub action: String,
    #[serde(default)]
    pub test: Option<String>,
    #[serde(default)]
    pub output: String,
    /// In seconds.
    #[serde(default)]
    pub elapsed: f64,
}

impl Event {
    /// Set when a test has ended.
    pub fn outcome(&self) -> Option<Outcome> {
        Outcome::parse(&self.action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tops_and_leaves_are_listed() {
        let names = ["A", "B", "B/one", "B/one/deep", "B/two", "B/POST_/x", "Bother"];
        let all = names.iter().map(|name| (Test::new("p", name), Outcome::Pass)).collect();
        let kept: Vec<_> = listed(&all).into_keys().map(|test| test.name).collect();
        assert_eq!(kept, ["A", "B", "B/POST_/x", "B/one/deep", "B/two", "Bother"]);
    }

    #[test]
    fn packages_do_not_mix() {
        let all = [("p", "A"), ("q", "A/x")].map(|(p, n)| (Test::new(p, n), Outcome::Skip)).into();
        assert_eq!(listed(&all).len(), 2);
    }

    #[test]
    fn a_list_survives_a_round_trip() {
        let text = "pass\ttests\tTestA\nfail\ttests/csapi\tTestB\nskip\ttests/csapi\tTestB/part\n";
        assert_eq!(render(&parse(text).unwrap()), text);
        for broken in ["pass\ttests", "maybe\ttests\tTestA", "pass\tt\tA\nfail\tt\tA"] {
            assert!(parse(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn events_of_tests_and_of_packages_are_read() {
        let event: Event =
            serde_json::from_str(r#"{"Action":"fail","Package":"p","Test":"A/b","Elapsed":1.5}"#).unwrap();
        assert_eq!((event.outcome(), event.test.as_deref()), (Some(Outcome::Fail), Some("A/b")));
        let event: Event = serde_json::from_str(r#"{"Action":"output","Output":"x\n"}"#).unwrap();
        assert_eq!((event.outcome(), event.output.as_str()), (None, "x\n"));
    }
}
