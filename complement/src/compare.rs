//! Compares a run with the list of expected results. The list has to stay true in both directions: a test that fails
//! though it is listed as passing is a regression, and one that passes unlisted means that the list is out of date.

use std::collections::BTreeSet;
use std::fmt;

use crate::results::{Outcome, Results, Test};

#[derive(Default)]
pub struct Comparison {
    /// Passed, and listed so.
    passed: usize,
    /// Failed or skipped, and listed so.
    known: usize,
    differences: Vec<Difference>,
}

struct Difference {
    test: Test,
    expected: Option<Outcome>,
    found: Option<Outcome>,
}

/// Both are lists of top-level tests and leaves.
pub fn compare(expected: &Results, found: &Results) -> Comparison {
    // How far a test gets before it fails decides which of its parts are reported at all, and that may vary.
    let fails_as_listed = |test: &Test| {
        let top = test.top();
        [expected, found].iter().all(|results| results.get(&top) == Some(&Outcome::Fail))
    };
    let mut comparison = Comparison::default();
    let tests: BTreeSet<&Test> = expected.keys().chain(found.keys()).collect();
    for test in tests {
        match (expected.get(test).copied(), found.get(test).copied()) {
            (Some(Outcome::Pass), Some(Outcome::Pass)) => comparison.passed += 1,
            (expected, found) if expected == found => comparison.known += 1,
            (None | Some(Outcome::Fail | Outcome::Skip), None | Some(Outcome::Fail | Outcome::Skip))
                if fails_as_listed(test) =>
            {
                comparison.known += 1;
            }
            (expected, found) => {
                comparison.differences.push(Difference { test: test.clone(), expected, found });
            }
        }
    }
    comparison
}

impl Comparison {
    pub fn agrees(&self) -> bool {
        self.differences.is_empty()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for difference in &self.differences {
            writeln!(f, "{difference}")?;
        }
        let differences = self.differences.len();
        if differences > 0 {
            writeln!(f, "{differences} of the results are not as listed.")?;
        }
        write!(f, "{} passed, {differences} failed, {} skipped", self.passed, self.known)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Test { package, name } = &self.test;
        let kind = if self.expected == Some(Outcome::Pass) { "regression" } else { "not as listed" };
        let expected =
            self.expected.map_or("not listed".to_owned(), |expected| format!("listed as {expected}"));
        let found = self.found.map_or("did not run".to_owned(), |found| format!("is {found}"));
        write!(f, "{kind}: {package} {name} ({expected}, {found})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::parse;

    fn run(expected: &str, found: &str) -> (bool, String) {
        let results = |text: &str| parse(&text.replace(' ', "\t")).unwrap();
        let comparison = compare(&results(expected), &results(found));
        (comparison.agrees(), comparison.to_string())
    }

    #[test]
    fn what_is_as_listed_agrees() {
        let same = "pass p A\nfail p B\nskip p C";
        assert_eq!(run(same, same), (true, "1 passed, 0 failed, 2 skipped".to_owned()));
    }

    #[test]
    fn a_regression_does_not_agree() {
        for found in ["fail p A", "skip p A", ""] {
            let (agrees, text) = run("pass p A", found);
            assert!(!agrees && text.starts_with("regression: "), "{text}");
            assert!(text.ends_with("\n0 passed, 1 failed, 0 skipped"), "{text}");
        }
    }

    #[test]
    fn an_unlisted_pass_does_not_agree() {
        for expected in ["fail p A", "skip p A", ""] {
            assert!(!run(expected, "pass p A").0, "{expected}");
        }
    }

    #[test]
    fn a_part_that_passes_is_noticed_though_the_whole_fails() {
        assert!(!run("fail p A\nfail p A/x", "fail p A\npass p A/x").0);
        assert!(!run("fail p A\npass p A/x", "fail p A\nfail p A/x").0);
    }

    #[test]
    fn the_parts_of_a_listed_failure_may_vary() {
        assert!(run("fail p A\nfail p A/x", "fail p A\nfail p A/y").0);
        assert!(!run("fail p A\nfail p A/x", "pass p A").0);
        assert!(!run("pass p A\npass p A/x", "fail p A\nfail p A/y").0);
    }

    #[test]
    fn an_unlisted_failure_does_not_agree() {
        assert!(!run("", "fail p A").0);
        assert!(!run("skip p A", "fail p A").0);
        assert!(!run("fail p A", "").0);
    }
}
