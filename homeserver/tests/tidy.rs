//! The rules of the code base that no lint knows. Long functions and bad habits are clippy's business.

use std::fs;
use std::path::{Path, PathBuf};

/// The most lines of a source file, its unit tests not counted.
const MOST_LINES: usize = 500;

/// Files that may be longer, each with the reason. Delete an entry that is no longer needed: it fails otherwise.
const LONGER: &[(&str, &str)] = &[];

/// A crate, who may name it (packages; folders end in a slash), and why nobody else may. `homeserver` is the
/// binary's own package.
const ONLY: &[(&str, &[&str], &str)] = &[
    ("sqlx", &["homeserver/storage", "homeserver/benches/"], "one package knows the database"),
    (
        "axum",
        &["homeserver/api", "homeserver", "federation/tests/"],
        "handlers live in api; the binary has listeners and metrics",
    ),
    ("rusqlite", &[], "the database is sqlx's"),
    ("openssl", &[], "TLS is rustls"),
    ("native_tls", &[], "TLS is rustls"),
    ("aws_lc_rs", &[], "the crypto provider is ring"),
];

/// Packages that are pure, and what they may therefore not name.
const PURE: &[&str] = &["homeserver/model", "homeserver/rooms"];
const IMPURE: &[&str] = &["tokio", "reqwest", "hyper", "std::net", "std::fs", "std::process", "std::thread"];

/// A package and those that it may not depend on: dependencies point down.
const UPWARD: &[(&str, &[&str])] = &[
    ("homeserver/model", &["rooms", "storage", "federation", "services", "api", "client"]),
    ("homeserver/rooms", &["storage", "federation", "services", "api", "client"]),
    ("homeserver/storage", &["federation", "services", "api", "client"]),
    ("federation", &["storage", "services", "api", "client"]),
    ("homeserver/services", &["api", "client"]),
    ("homeserver/api", &["storage", "client"]),
    ("client", &["model", "rooms", "storage", "federation", "services", "api"]),
    ("complement", &["model", "rooms", "storage", "federation", "services", "api", "client"]),
];

/// Text that no source may have. Spelt in two parts, so that this file does not have it.
const NEVER: &[(&str, &str, &str)] = &[
    ("todo", "!(", "finish it, or file it"),
    ("unimpl", "emented!(", "finish it, or file it"),
    ("#[al", "low(", "repair it, or `#[expect(…, reason = …)]`"),
    ("#![al", "low(", "repair it, or `#[expect(…, reason = …)]`"),
    ("FIX", "ME", "fix it, or file it"),
    ("XX", "X ", "fix it, or file it"),
    ("#[ign", "ore", "a test that does not run is none"),
];

/// Tests that only run when asked for, and who asks.
const ASKED_FOR: &[(&str, &str)] = &[("client/tests/live.rs", "test.sh starts a server and runs them")];

/// This file, which spells what it looks for.
const SELF: &str = "homeserver/tests/tidy.rs";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A source file: its path from the root, its package's folder, its text.
struct Source {
    path: String,
    package: String,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = root();
    let mut found = Vec::new();
    for package in packages() {
        for folder in ["src", "tests", "benches", "examples"] {
            walk(&root, &package, &root.join(&package).join(folder), &mut found);
        }
    }
    found
}

fn packages() -> Vec<String> {
    let manifest: toml::Table =
        toml::from_str(&fs::read_to_string(root().join("Cargo.toml")).unwrap()).unwrap();
    let members = manifest["workspace"]["members"].as_array().unwrap();
    members.iter().map(|member| member.as_str().unwrap().to_owned()).collect()
}

fn walk(root: &Path, package: &str, folder: &Path, found: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(root, package, &path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(Source {
                path: path.strip_prefix(root).unwrap().display().to_string(),
                package: package.to_owned(),
                text: fs::read_to_string(&path).unwrap(),
            });
        }
    }
}

/// Lines before the unit tests, which stand at the end.
fn code_lines(text: &str) -> usize {
    text.lines().position(|line| line.trim() == "mod tests {").unwrap_or(text.lines().count())
}

/// Whether code (not a comment) names a crate or a path.
fn names(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.lines().filter(|line| !line.trim_start().starts_with("//")).any(|line| {
        line.match_indices(word).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = &line[at + word.len()..];
            let starts = !before.is_some_and(|c| part(c) || c == '-' || c == '"' || c == ':');
            starts && (after.starts_with("::") || (after.starts_with(';') && line.contains("use ")))
        })
    })
}

fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs") || path.ends_with("_tests.rs")
}

fn none(broken: Vec<String>) {
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn files_are_short() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| !is_test(&source.path)) {
        let lines = code_lines(&source.text);
        let excepted = LONGER.iter().any(|(path, _)| *path == source.path);
        if lines > MOST_LINES && !excepted {
            broken.push(format!("{}: {lines} lines, more than {MOST_LINES}", source.path));
        }
        if lines <= MOST_LINES && excepted {
            broken.push(format!("{}: no longer needs its exception", source.path));
        }
    }
    none(broken);
}

#[test]
fn crates_are_named_where_they_belong() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| source.path != SELF) {
        for (name, allowed, why) in ONLY {
            let fits =
                |who: &&str| *who == source.package || (who.ends_with('/') && source.path.starts_with(who));
            if !allowed.iter().any(fits) && names(&source.text, name) {
                broken.push(format!("{}: names {name}, but {why}", source.path));
            }
        }
    }
    none(broken);
}

#[test]
fn pure_packages_are_pure() {
    let mut broken = Vec::new();
    let pure = |source: &&Source| PURE.contains(&source.package.as_str()) && !is_test(&source.path);
    for source in sources().iter().filter(pure) {
        let code: Vec<&str> = source.text.lines().take(code_lines(&source.text)).collect();
        for name in IMPURE.iter().filter(|name| names(&code.join("\n"), name)) {
            broken.push(format!("{}: names {name}, but {} does no IO", source.path, source.package));
        }
    }
    none(broken);
}

#[test]
fn dependencies_point_down() {
    let mut broken = Vec::new();
    for (package, above) in UPWARD {
        let text = fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = toml::from_str(&text).unwrap();
        let dependencies = manifest.get("dependencies").and_then(toml::Value::as_table);
        for name in dependencies.into_iter().flat_map(toml::Table::keys) {
            if above.iter().any(|above| *name == format!("waxwing-{above}")) {
                broken.push(format!("{package} depends on {name}, which stands above it"));
            }
        }
    }
    none(broken);
}

#[test]
fn versions_stand_in_the_workspace_alone() {
    let mut broken = Vec::new();
    for package in packages() {
        let text = fs::read_to_string(root().join(&package).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = toml::from_str(&text).unwrap();
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(kind).and_then(toml::Value::as_table) else { continue };
            for (name, value) in table {
                if value.get("workspace").and_then(toml::Value::as_bool) != Some(true) {
                    broken.push(format!("{package}: {name} has a version of its own"));
                }
            }
        }
        let lints = manifest.get("lints").and_then(|lints| lints.get("workspace"));
        if lints.and_then(toml::Value::as_bool) != Some(true) {
            broken.push(format!("{package}: does not take the workspace's lints"));
        }
    }
    none(broken);
}

#[test]
fn nothing_is_left_half_done() {
    let mut broken = Vec::new();
    for source in sources() {
        for (first, second, instead) in NEVER {
            let text = format!("{first}{second}");
            if text.contains("ignore") && ASKED_FOR.iter().any(|(path, _)| *path == source.path) {
                continue;
            }
            for (at, _) in source.text.match_indices(&text) {
                let line = source.text[..at].lines().count();
                broken.push(format!("{}:{line}: `{text}`: {instead}", source.path));
            }
        }
    }
    none(broken);
}

#[test]
fn migrations_have_equal_names() {
    let names = |engine: &str| {
        let mut names: Vec<_> = fs::read_dir(root().join("migrations").join(engine))
            .map(|entries| entries.map(|entry| entry.unwrap().file_name()).collect())
            .unwrap_or_default();
        names.sort();
        names
    };
    assert_eq!(names("sqlite"), names("postgres"));
}

#[test]
fn these_checks_see_what_they_look_for() {
    assert!(names("use sqlx::Row;", "sqlx"));
    assert!(names("    let x = sqlx::query(A);", "sqlx"));
    assert!(names("use sqlx;", "sqlx"));
    assert!(!names("// sqlx::Row", "sqlx"));
    assert!(!names("let mysqlx = 1;", "sqlx"));
    assert!(!names("use crate::axum_like::x;", "axum"));
    assert!(names("std::fs::read(path)", "std::fs"));
    assert_eq!(code_lines("a\nb\n#[cfg(test)]\nmod tests {\nc\n}"), 3);
    assert!(sources().len() > 20 && sources().iter().any(|source| source.path == "homeserver/src/main.rs"));
}
