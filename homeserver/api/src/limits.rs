//! Rate limits for each account or address.

use crate::error::ApiError;
use crate::load::Load;
use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How many checks pass between two clean-ups of keys that have nothing left to remember.
const CLEAN_UP_EVERY: u32 = 10_000;

/// Changes of events that wait, for each address: a heart-beat every few seconds from each device in a call, and an
/// organisation may sit behind one address. Far too slow for guessing ids.
const DELAYED: Rate = Rate { per_second: 50.0, burst: 200 };

/// Tokens of letters that are tried, for each address: a link is opened, confirmed, opened once more. Each session counts
/// its wrong ones besides.
const TOKENS: Rate = Rate { per_second: 1.0, burst: 30 };
/// Letters asked for, for each address of the network and for each address that is written to. An organisation sits
/// behind few of the former, and on its first day everybody registers.
const LETTERS: Rate = Rate { per_second: 0.2, burst: 10 };
/// Places where devices meet, for each address: one for each sign-in, read every second or two meanwhile.
const MEETINGS: Rate = Rate { per_second: 20.0, burst: 100 };
/// Previews of pages, for each account: a client that opens a room asks for every link that it shows.
const PREVIEWS: Rate = Rate { per_second: 2.0, burst: 60 };

/// So many a second on the long run, so many at once.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Requests a second on the long run.
    pub per_second: f64,
    /// Requests at once.
    pub burst: u32,
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limited {
    /// Messages, state and redactions, by account.
    Message,
    /// Logins and other uses of a password, by address; those that authenticate a request (`client/uia.rs`) by
    /// account too.
    Login,
    /// Registrations, by address.
    Registration,
    /// Joins and knocks, by account.
    Join,
    /// Invitations, by account.
    Invite,
    /// Rooms created, by account.
    CreateRoom,
    /// Uploads, by account.
    Upload,
    /// Previews of pages, by account.
    Preview,
    /// Changes of events that wait to be sent, by address: they need no token.
    Delayed,
    /// Tokens of letters, by address.
    Token,
    /// Letters, by address and by whom they go to.
    Mail,
    /// Rendezvous sessions, by address.
    Meeting,
}

impl Limited {
    /// Whether it is counted by address, before anybody is known to be who they say.
    pub fn by_address(self) -> bool {
        matches!(
            self,
            Limited::Login
                | Limited::Registration
                | Limited::Delayed
                | Limited::Token
                | Limited::Mail
                | Limited::Meeting
        )
    }
}

type Limiter = RateLimiter<String, DashMapStateStore<String>, DefaultClock>;

struct Limit {
    limiter: Limiter,
    checks: AtomicU32,
}

impl Limit {
    /// None for a rate that limits nothing.
    fn new(rate: Rate) -> Option<Limit> {
        let burst = NonZeroU32::new(rate.burst)?;
        if !rate.per_second.is_finite() || rate.per_second <= 0.0 {
            return None;
        }
        let quota = Quota::with_period(Duration::try_from_secs_f64(1.0 / rate.per_second).ok()?)?;
        let limiter = RateLimiter::keyed(quota.allow_burst(burst));
        Some(Limit { limiter, checks: AtomicU32::new(0) })
    }

    fn check(&self, key: &str) -> Result<(), ApiError> {
        if self.checks.fetch_add(1, Ordering::Relaxed) % CLEAN_UP_EVERY == CLEAN_UP_EVERY - 1 {
            self.limiter.retain_recent();
        }
        self.limiter
            .check_key(&key.to_owned())
            .map_err(|until| ApiError::limit_exceeded(until.wait_time_from(DefaultClock::default().now())))
    }
}

/// The limits of a node. `Limits::off()` limits nothing.
#[derive(Default)]
pub struct Limits {
    message: Option<Limit>,
    login: Option<Limit>,
    registration: Option<Limit>,
    join: Option<Limit>,
    invite: Option<Limit>,
    create_room: Option<Limit>,
    upload: Option<Limit>,
    preview: Option<Limit>,
    delayed: Option<Limit>,
    token: Option<Limit>,
    mail: Option<Limit>,
    meeting: Option<Limit>,
    federation: Option<Limit>,
    /// What the node has taken on, whoever asked for it.
    pub(crate) load: Load,
}

/// The rates of [`Limits::new`].
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Messages, state and redactions, for each account.
    pub message: Rate,
    /// Logins, for each address.
    pub login: Rate,
    /// Registrations, for each address.
    pub registration: Rate,
    /// Joins and knocks, for each account.
    pub join: Rate,
    /// Invitations, for each account.
    pub invite: Rate,
    /// Rooms created, for each account.
    pub create_room: Rate,
    /// Uploads, for each account.
    pub upload: Rate,
    /// Requests of one other server.
    pub federation: Rate,
}

impl Limits {
    /// Nothing is limited.
    pub fn off() -> Limits {
        Limits::default()
    }

    /// Limits with these rates; a rate with a burst or a long run of zero limits nothing.
    pub fn new(rates: Rates) -> Limits {
        Limits {
            message: Limit::new(rates.message),
            login: Limit::new(rates.login),
            registration: Limit::new(rates.registration),
            join: Limit::new(rates.join),
            invite: Limit::new(rates.invite),
            create_room: Limit::new(rates.create_room),
            upload: Limit::new(rates.upload),
            preview: Limit::new(PREVIEWS),
            delayed: Limit::new(DELAYED),
            token: Limit::new(TOKENS),
            mail: Limit::new(LETTERS),
            meeting: Limit::new(MEETINGS),
            federation: Limit::new(rates.federation),
            load: Load::default(),
        }
    }

    /// Counts one request of `key`, an account or an address.
    ///
    /// # Errors
    /// 429 `M_LIMIT_EXCEEDED` with the time to wait.
    pub(crate) fn check(&self, limited: Limited, key: &str) -> Result<(), ApiError> {
        let limit = match limited {
            Limited::Message => &self.message,
            Limited::Login => &self.login,
            Limited::Registration => &self.registration,
            Limited::Join => &self.join,
            Limited::Invite => &self.invite,
            Limited::CreateRoom => &self.create_room,
            Limited::Upload => &self.upload,
            Limited::Preview => &self.preview,
            Limited::Delayed => &self.delayed,
            Limited::Token => &self.token,
            Limited::Mail => &self.mail,
            Limited::Meeting => &self.meeting,
        };
        limit.as_ref().map_or(Ok(()), |limit| limit.check(key))
    }

    /// Counts one request of another server.
    pub(crate) fn check_server(&self, origin: &str) -> Result<(), ApiError> {
        self.federation.as_ref().map_or(Ok(()), |limit| limit.check(origin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_waits_and_another_does_not() {
        let limit = Limit::new(Rate { per_second: 0.1, burst: 2 }).unwrap();
        assert!(limit.check("a").is_ok() && limit.check("a").is_ok());
        let refused = limit.check("a").unwrap_err();
        assert_eq!(refused.status.as_u16(), 429);
        assert!(refused.retry_after.unwrap() > Duration::from_secs(5));
        assert!(limit.check("b").is_ok());
        assert!(Limit::new(Rate { per_second: 0.0, burst: 2 }).is_none());
    }
}
