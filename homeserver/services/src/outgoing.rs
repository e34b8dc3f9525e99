//! Where ephemeral data for other servers goes.

use ruma::ServerName;
use waxwing_federation::outbound::{Sender, VolatileEdu};

/// Takes ephemeral data for another server: it may be lost, and only its latest value counts.
pub trait Volatile: Send + Sync {
    /// Queues it. Never waits.
    fn push(&self, destination: &ServerName, edu: VolatileEdu);
}

impl Volatile for Sender {
    fn push(&self, destination: &ServerName, edu: VolatileEdu) {
        self.push_volatile(destination, edu);
    }
}

/// Without federation there is nobody to tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nowhere;

impl Volatile for Nowhere {
    fn push(&self, _: &ServerName, _: VolatileEdu) {}
}
