use crate::ports::DestinationState;
use ruma::ServerName;

/// The wait after the first failure: a restart of the other side takes about this long.
const FIRST_INTERVAL: u64 = 2_000;
/// The wait after a first failure for which we are perhaps to blame: what was in flight when we went is refused by a server
/// that could not fetch our key meanwhile, and we are back now.
pub const SOON: u64 = 250;
/// An outage that began so shortly before a queue is taken up (milliseconds) perhaps was our own: its wait ends then.
pub const PERHAPS_OURS: u64 = 60 * 1000;
/// No wait is longer. A server that returns speaks to us, which ends the wait at once; this is for those that return
/// silently.
const MAX_INTERVAL: u64 = 4 * 60 * 60 * 1000;
/// A destination that was unreachable for longer (milliseconds) gets the newest event of each room instead of all that
/// it missed: it fetches what it wants of the rest.
pub const CATCH_UP_AFTER: u64 = 60 * 60 * 1000;

/// What to do for a destination now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Send the next batch.
    Send {
        /// Skip what is not the newest event of its room.
        catch_up: bool,
    },
    /// Nothing before this time (milliseconds since the epoch).
    Wait(u64),
    /// Nothing until woken.
    Idle,
}

/// When to send to one destination: knows time and outcomes, not the network nor the rows.
///
/// Invariants: at most one transaction is in flight; while failing, none is sent before `retry_at`; a wake during a
/// transaction is not lost.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    in_flight: bool,
    waiting: bool,
    catch_up: bool,
    failing_since: Option<u64>,
    retry_at: Option<u64>,
    interval: u64,
}

impl Queue {
    /// Continues at `now` with what the database remembers. A destination that failed only a moment ago, before this
    /// server started, is tried again soon; `chance` is drawn from 0 to 1 and spreads many of them.
    pub fn resume(state: &DestinationState, now: u64, chance: f64) -> Queue {
        let mut queue = Queue {
            waiting: true,
            failing_since: state.failing_since,
            retry_at: state.retry_at,
            interval: state.interval.unwrap_or(0).min(MAX_INTERVAL),
            ..Queue::default()
        };
        if state.failing_since.is_some_and(|since| now.saturating_sub(since) < PERHAPS_OURS) {
            let soon = now.saturating_add(spread(SOON, chance));
            queue.retry_at = queue.retry_at.map(|at| at.min(soon));
            queue.interval = 0;
        }
        queue
    }

    /// There is something to send.
    pub fn wake(&mut self) {
        self.waiting = true;
    }

    /// What to do at `now`. [`Next::Send`] counts as begun: exactly one of [`Queue::succeeded`] and [`Queue::failed`]
    /// follows.
    pub fn next(&mut self, now: u64) -> Next {
        if self.in_flight || !self.waiting {
            return Next::Idle;
        }
        if let Some(at) = self.retry_at.filter(|at| *at > now) {
            return Next::Wait(at);
        }
        if self.failing_since.is_some_and(|since| now.saturating_sub(since) >= CATCH_UP_AFTER) {
            self.catch_up = true;
        }
        self.in_flight = true;
        self.waiting = false;
        Next::Send { catch_up: self.catch_up }
    }

    /// When [`Queue::next`] will next say [`Next::Send`], as far as can be told now.
    pub fn due(&self, now: u64) -> Option<u64> {
        (self.waiting && !self.in_flight).then(|| self.retry_at.map_or(now, |at| at.max(now)))
    }

    /// The transaction was accepted; `more` when the queue held more than fitted. Catching up ends with the queue.
    pub fn succeeded(&mut self, more: bool) {
        debug_assert!(self.in_flight, "an answer without a question");
        self.in_flight = false;
        self.waiting |= more;
        self.catch_up &= more;
        self.clear();
    }

    /// The transaction was not accepted. `at_least` is the wait that the destination asked for (milliseconds),
    /// `perhaps_ours` whether the failure may be of our making, and is over soon: the first wait is [`SOON`] then. `chance`
    /// is drawn from 0 to 1 and spreads the retries of many servers.
    pub fn failed(&mut self, now: u64, at_least: Option<u64>, perhaps_ours: bool, chance: f64) {
        debug_assert!(self.in_flight, "an answer without a question");
        self.in_flight = false;
        self.waiting = true;
        self.failing_since.get_or_insert(now);
        let doubled = match self.interval {
            0 if perhaps_ours => SOON,
            0 => FIRST_INTERVAL,
            before => before.saturating_mul(2),
        };
        self.interval = doubled.max(at_least.unwrap_or(0)).min(MAX_INTERVAL);
        self.retry_at = Some(now.saturating_add(self.interval).saturating_add(spread(self.interval, chance)));
    }

    /// The transaction was not tried for a reason of our own (the database was away): try again soon, and hold nothing
    /// against the destination.
    pub fn postponed(&mut self, now: u64) {
        self.in_flight = false;
        self.waiting = true;
        self.retry_at = Some(now.saturating_add(FIRST_INTERVAL));
    }

    /// The destination spoke to us. Whether there was a failure to forget.
    pub fn heard_from(&mut self) -> bool {
        if self.in_flight {
            return false;
        }
        let failing = self.failing_since.is_some();
        // What the outage means for the backlog stays true although the wait is over.
        if failing {
            self.waiting = true;
        }
        self.retry_at = None;
        self.interval = 0;
        failing
    }

    /// Whether nothing is known that a new queue would not know.
    pub fn is_idle(&self) -> bool {
        !self.in_flight && !self.waiting && self.failing_since.is_none()
    }

    /// Whether a transaction is in flight.
    pub fn is_in_flight(&self) -> bool {
        self.in_flight
    }

    /// Whether the last attempt failed.
    pub fn is_failing(&self) -> bool {
        self.failing_since.is_some()
    }

    /// For the database.
    pub fn state(&self, destination: &ServerName) -> DestinationState {
        DestinationState {
            destination: destination.to_owned(),
            failing_since: self.failing_since,
            retry_at: self.retry_at,
            interval: (self.interval > 0).then_some(self.interval),
        }
    }

    fn clear(&mut self) {
        self.failing_since = None;
        self.retry_at = None;
        self.interval = 0;
    }
}

/// Up to a quarter of a wait.
fn spread(interval: u64, chance: f64) -> u64 {
    (interval as f64 * 0.25 * chance.clamp(0.0, 1.0)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn waits_double_and_end_with_success() {
        let mut queue = Queue::default();
        queue.wake();
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..16 {
            assert!(matches!(queue.next(now), Next::Send { .. }));
            queue.failed(now, None, false, 0.0);
            let Next::Wait(at) = queue.next(now) else { panic!("must wait") };
            waits.push(at - now);
            now = at;
        }
        assert_eq!(waits[..4], [2_000, 4_000, 8_000, 16_000]);
        assert_eq!(waits[15], MAX_INTERVAL);
        assert_eq!(queue.next(now), Next::Send { catch_up: true });
        queue.succeeded(true);
        assert_eq!(queue.next(now), Next::Send { catch_up: true });
        queue.succeeded(false);
        assert_eq!(queue.next(now), Next::Idle);
        queue.wake();
        assert_eq!(queue.next(now), Next::Send { catch_up: false });
    }

    #[test]
    fn a_voice_ends_the_wait_but_not_the_catching_up() {
        let mut queue = Queue::default();
        queue.wake();
        queue.next(0);
        queue.failed(0, Some(10_000), true, 0.0);
        assert_eq!(queue.next(1), Next::Wait(10_000));
        assert!(queue.heard_from());
        assert_eq!(queue.next(2 * CATCH_UP_AFTER), Next::Send { catch_up: true });
    }

    #[test]
    fn survives_a_restart() {
        let mut queue = Queue::default();
        queue.wake();
        queue.next(0);
        let now = 2 * PERHAPS_OURS;
        queue.failed(0, None, false, 0.0);
        queue.next(FIRST_INTERVAL);
        queue.failed(now, None, false, 0.0);
        let name = <&ServerName>::try_from("a.example").unwrap();
        let mut resumed = Queue::resume(&queue.state(name), now + 1, 0.0);
        assert_eq!(resumed.next(now + 1), Next::Wait(now + 2 * FIRST_INTERVAL));
    }

    #[test]
    fn what_failed_when_we_went_is_tried_again_when_we_are_back() {
        let name = <&ServerName>::try_from("a.example").unwrap();
        let mut queue = Queue::default();
        queue.wake();
        queue.next(0);
        queue.failed(0, None, false, 1.0);
        let mut resumed = Queue::resume(&queue.state(name), 500, 0.0);
        assert!(matches!(resumed.next(500), Next::Send { .. }));
        let mut waits = Vec::new();
        for _ in 0..5 {
            resumed.failed(500, None, true, 0.0);
            let Next::Wait(at) = resumed.next(500) else { panic!("must wait") };
            waits.push(at - 500);
            resumed.next(at);
        }
        assert_eq!(waits, [SOON, 2 * SOON, 4 * SOON, 8 * SOON, 16 * SOON]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Wake,
        Next,
        Succeed(bool),
        Fail(Option<u64>, bool, f64),
        Postpone,
        Voice,
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Wake),
            Just(Step::Next),
            any::<bool>().prop_map(Step::Succeed),
            (proptest::option::of(0u64..1_000_000_000), any::<bool>(), 0f64..1.0)
                .prop_map(|(a, o, c)| Step::Fail(a, o, c)),
            Just(Step::Postpone),
            Just(Step::Voice),
            (0u64..10_000_000).prop_map(Step::Pass),
        ]
    }

    proptest! {
        #[test]
        fn one_in_flight_no_early_retry_no_lost_wake(steps in proptest::collection::vec(step(), 0..200)) {
            let mut queue = Queue::default();
            let (mut now, mut owed, mut flying) = (0u64, false, false);
            let mut not_before = 0u64;
            for step in steps {
                match step {
                    Step::Wake => { queue.wake(); owed = true; }
                    Step::Next => match queue.next(now) {
                        Next::Send { .. } => {
                            prop_assert!(!flying && owed && now >= not_before);
                            flying = true;
                            owed = false;
                        }
                        Next::Wait(at) => { prop_assert!(!flying && owed && at > now && at == not_before); }
                        Next::Idle => prop_assert!(flying || !owed),
                    },
                    Step::Succeed(more) if flying => {
                        queue.succeeded(more); flying = false; owed |= more; not_before = 0;
                    }
                    Step::Fail(at_least, ours, chance) if flying => {
                        queue.failed(now, at_least, ours, chance); flying = false; owed = true;
                        let at = queue.state(<&ServerName>::try_from("a.b").unwrap()).retry_at.unwrap();
                        let soonest = now + SOON * if ours { 1 } else { 2 };
                        prop_assert!(at >= soonest);
                        prop_assert!(at <= now + MAX_INTERVAL + MAX_INTERVAL / 4);
                        not_before = at;
                    }
                    Step::Postpone if flying => {
                        queue.postponed(now); flying = false; owed = true; not_before = now + FIRST_INTERVAL;
                    }
                    Step::Voice => {
                        let failing = queue.heard_from();
                        if !flying { not_before = 0; owed |= failing; }
                    }
                    Step::Pass(time) => now += time,
                    Step::Succeed(_) | Step::Fail(..) | Step::Postpone => {}
                }
            }
        }
    }
}
