//! Fresh databases in the cluster that `WAXWING_TEST_POSTGRES` names.

use super::node::say;
use std::process::Command;

/// A database of its own, dropped with the test.
pub struct Database {
    cluster: String,
    name: String,
}

impl Database {
    /// A fresh database, or `None` where no cluster is named.
    ///
    /// # Panics
    /// Where no cluster is named although `CI` is set: there, nothing is skipped.
    pub fn create() -> Option<Database> {
        let Ok(cluster) = std::env::var("WAXWING_TEST_POSTGRES") else {
            assert!(std::env::var_os("CI").is_none(), "WAXWING_TEST_POSTGRES is not set");
            say("NOT RUN on PostgreSQL: needs `eval \"$(scripts/postgres.sh start)\"`");
            return None;
        };
        let name = format!("waxwing_{:016x}", unique());
        psql(&cluster, &format!("CREATE DATABASE {name}"));
        Some(Database { cluster, name })
    }

    /// Where servers find it.
    pub fn url(&self) -> String {
        let (base, _) = self.cluster.rsplit_once('/').expect("postgres://…/NAME");
        format!("{base}/{}", self.name)
    }

    /// Runs one statement in it.
    pub fn execute(&self, statement: &str) {
        psql(&self.url(), statement);
    }
}

fn psql(url: &str, statement: &str) {
    let output = Command::new("psql").args(["-q", "-X", url, "-c", statement]).output().expect("psql");
    assert!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Drop for Database {
    fn drop(&mut self) {
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let _ = Command::new("psql").args(["-q", "-X", &self.cluster, "-c", &statement]).output();
    }
}

/// A number that no other test has: from the hash map's random keys.
fn unique() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
