//! A fresh database in the cluster that `WAXWING_TEST_POSTGRES` names.

use crate::harness::dice::say;
use std::process::Command;

pub struct Database {
    cluster: String,
    name: String,
}

impl Database {
    /// `None` where no cluster is named.
    ///
    /// # Panics
    /// Where no cluster is named although `CI` is set: there, nothing is skipped.
    pub fn create() -> Option<Database> {
        let Ok(cluster) = std::env::var("WAXWING_TEST_POSTGRES") else {
            assert!(std::env::var_os("CI").is_none(), "WAXWING_TEST_POSTGRES is not set");
            say("NOT RUN on PostgreSQL: needs `eval \"$(scripts/postgres.sh start)\"`");
            return None;
        };
        let name = format!("waxwing_crash_{}", std::process::id());
        let database = Database { cluster, name };
        let made = database.execute(&format!("CREATE DATABASE {}", database.name));
        assert!(made, "the database could not be made");
        Some(database)
    }

    pub fn url(&self) -> String {
        let (base, _) = self.cluster.rsplit_once('/').expect("postgres://…/NAME");
        format!("{base}/{}", self.name)
    }

    fn execute(&self, statement: &str) -> bool {
        let output = Command::new("psql").args(["-q", "-X", &self.cluster, "-c", statement]).output();
        output.expect("psql").status.success()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.execute(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
    }
}
