//! The limit of open files, which is one of connections.

use anyhow::{Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the driver opens beside its connections.
const OTHERS: u64 = 200;

/// Raises the limit of open files, as far as this process may, so that so many connections can be held; says so if
/// it may not.
pub fn files(connections: usize) -> Result<()> {
    let wanted = connections as u64 + OTHERS;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    if limit.maximum.is_some_and(|maximum| maximum < wanted) {
        bail!("{wanted} open files are needed: raise the limit first, with `ulimit -n {wanted}`");
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_within_what_is_allowed() {
        let allowed = getrlimit(Resource::Nofile).maximum.unwrap_or(100_000);
        files(allowed as usize - OTHERS as usize).unwrap();
        assert!(getrlimit(Resource::Nofile).current.is_none_or(|current| current >= allowed));
        if getrlimit(Resource::Nofile).maximum.is_some() {
            assert!(files(allowed as usize).unwrap_err().to_string().contains("ulimit"));
        }
    }
}
