//! Sending: a queue per destination, one transaction in flight for each.

mod queue;
mod sender;
mod slots;
mod transaction;
mod volatile;

pub use queue::{CATCH_UP_AFTER, Next, Queue};
pub use sender::{Sender, SenderLimits};
pub use volatile::{VolatileEdu, VolatileQueue};
