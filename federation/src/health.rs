use moka::sync::Cache;
use ruma::{OwnedServerName, ServerName};
use waxwing_model::Clock;

/// Unreachable servers remembered at once. Forgetting one costs a time-out.
const SERVERS: u64 = 50_000;
/// How long an unreachable server is left alone after the first failure; doubles with each further one.
const FIRST_PAUSE: u64 = 1_000;
/// The longest pause. A request that fails fast for longer would keep somebody waiting for a server that is back.
const MAX_PAUSE: u64 = 5 * 60 * 1000;

#[derive(Clone, Copy)]
struct Failing {
    pause: u64,
    until: u64,
}

/// Which servers could not be reached lately, so that a profile look-up on a dead server fails at once instead of after
/// a time-out. In memory only, and separate from the queues' backoff: this one is short, and requests that a user
/// waits for (joins) pass it by.
pub struct Health {
    failing: Cache<OwnedServerName, Failing>,
    clock: Clock,
}

impl Health {
    /// Everybody is well.
    pub fn new(clock: Clock) -> Health {
        Health { failing: Cache::new(SERVERS), clock }
    }

    /// Whether a request to `server` is worth a try.
    pub fn may_try(&self, server: &ServerName) -> bool {
        self.failing.get(server).is_none_or(|failing| failing.until <= self.clock.millis())
    }

    /// It could not be reached.
    pub fn failed(&self, server: &ServerName) {
        let now = self.clock.millis();
        let before = self.failing.get(server);
        // Requests that were under way together fail together: that is one failure.
        if before.is_some_and(|failing| failing.until > now) {
            return;
        }
        let pause = before.map_or(FIRST_PAUSE, |failing| (failing.pause * 2).min(MAX_PAUSE));
        self.failing.insert(server.to_owned(), Failing { pause, until: now + pause });
    }

    /// It answered, or spoke to us.
    pub fn recovered(&self, server: &ServerName) {
        if self.failing.contains_key(server) {
            self.failing.invalidate(server);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_end_with_a_word() {
        let clock = Clock::manual(0);
        let health = Health::new(clock.clone());
        let server = <&ServerName>::try_from("a.example").unwrap();
        assert!(health.may_try(server));
        health.failed(server);
        health.failed(server);
        assert!(!health.may_try(server));
        clock.advance(FIRST_PAUSE);
        assert!(health.may_try(server));
        health.failed(server);
        clock.advance(FIRST_PAUSE);
        assert!(!health.may_try(server));
        clock.advance(FIRST_PAUSE);
        assert!(health.may_try(server));
        health.failed(server);
        health.recovered(server);
        assert!(health.may_try(server));
    }
}
