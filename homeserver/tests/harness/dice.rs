//! Chance that comes out the same for the same seed.

use crate::node::say;
use std::sync::atomic::{AtomicU64, Ordering};

/// Dice that many tasks may throw: each throw is the next of one sequence.
pub struct Dice(AtomicU64);

impl Dice {
    /// From the variable `name`, or anew; says which, so that it can be done again.
    pub fn from_environment(name: &str) -> Dice {
        use std::hash::{BuildHasher, RandomState};
        let given = std::env::var(name).ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| RandomState::new().hash_one(std::process::id()) >> 32);
        say(&format!("{name}={seed}"));
        Dice(AtomicU64::new(seed))
    }

    /// A number below `end`.
    pub fn below(&self, end: u64) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut mixed = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end.max(1)
    }
}

/// A number from the environment.
pub fn number(name: &str, default: f64) -> f64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
