use ruma::{OwnedServerName, ServerName};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// A destination that takes longer is slow: others need not wait for its place any more.
pub(super) const SLOW_AFTER: Duration = Duration::from_secs(5);
/// One in so many places is for destinations that failed or were slow the last time: most such transactions end in a
/// time-out, and the places of the others must be free.
const SUSPECT_SHARE: usize = 4;
/// Transactions in flight, the slow ones too, as a multiple of the places: bounds memory and connections.
const MOST: usize = 4;

/// Transactions in flight. Destinations that answer promptly have places of their own, so that however many servers are
/// dead or dawdle, the others are served.
#[derive(Debug)]
pub(super) struct Slots {
    places: usize,
    flights: BTreeMap<OwnedServerName, (Instant, bool)>,
}

impl Slots {
    /// With so many places for prompt destinations.
    pub fn new(places: usize) -> Slots {
        Slots { places, flights: BTreeMap::new() }
    }

    /// Whether a transaction may start, to a destination that is `suspect` or not.
    pub fn may_start(&self, suspect: bool, now: Instant) -> bool {
        if self.flights.len() >= self.places * MOST {
            return false;
        }
        if suspect {
            let taken = self.flights.values().filter(|(_, suspect)| *suspect).count();
            return taken < self.places.div_ceil(SUSPECT_SHARE);
        }
        self.prompt(now).count() < self.places
    }

    /// When the next place of a prompt destination becomes free although nothing ended.
    pub fn next_change(&self, now: Instant) -> Option<Duration> {
        let oldest = self.prompt(now).min()?;
        Some((oldest + SLOW_AFTER).saturating_duration_since(now))
    }

    fn prompt(&self, now: Instant) -> impl Iterator<Item = Instant> {
        let flights = self.flights.values().filter(|(_, suspect)| !suspect).map(|(began, _)| *began);
        flights.filter(move |began| now.saturating_duration_since(*began) < SLOW_AFTER)
    }

    /// A transaction starts.
    pub fn start(&mut self, destination: OwnedServerName, suspect: bool, now: Instant) {
        self.flights.insert(destination, (now, suspect));
    }

    /// It ended. Gives whether the destination was slow.
    pub fn end(&mut self, destination: &ServerName, now: Instant) -> bool {
        let flight = self.flights.remove(destination);
        flight.is_some_and(|(began, _)| now.saturating_duration_since(began) >= SLOW_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> OwnedServerName {
        format!("s{number}.test").try_into().unwrap()
    }

    #[test]
    fn the_dead_and_the_slow_do_not_take_the_places_of_the_others() {
        let (mut slots, mut now) = (Slots::new(8), Instant::now());
        for number in 0..2 {
            assert!(slots.may_start(true, now));
            slots.start(name(number), true, now);
        }
        assert!(!slots.may_start(true, now));
        for number in 2..10 {
            assert!(slots.may_start(false, now));
            slots.start(name(number), false, now);
        }
        assert!(!slots.may_start(false, now));
        assert_eq!(slots.next_change(now), Some(SLOW_AFTER));
        // Who dawdles loses its place, up to a limit for all.
        for round in 1..3 {
            now += SLOW_AFTER;
            for number in 0..8 {
                assert!(slots.may_start(false, now));
                slots.start(name(10 * round + number), false, now);
            }
        }
        now += SLOW_AFTER;
        for number in 30..36 {
            slots.start(name(number), false, now);
        }
        assert!(!slots.may_start(false, now) && !slots.may_start(true, now));
        assert!(slots.end(&name(2), now));
        assert!(!slots.end(&name(31), now));
        assert!(slots.may_start(false, now));
    }
}
