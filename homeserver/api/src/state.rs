use crate::limits::Limits;
use std::ops::Deref;
use std::sync::Arc;
use waxwing_services::Core;
use waxwing_services::accounts::Accounts;
use waxwing_services::federation::Federation;
use waxwing_services::rooms_read::RoomReader;
use waxwing_services::timeline::Timeline;

/// What handlers call. One line for each service.
pub struct Parts {
    /// Who we are, the settings.
    pub core: Core,
    /// Rate limits.
    pub limits: Limits,
    /// Accounts, devices, tokens.
    pub accounts: Arc<Accounts>,
    /// Other servers; none when federation is off.
    pub federation: Option<Federation>,
    /// Rooms as they grow.
    pub timeline: Timeline,
    /// Reading rooms.
    pub reader: RoomReader,
}

/// The state of every route: a handle to [`Parts`], cheap to clone.
#[derive(Clone)]
pub struct Api(Arc<Parts>);

impl Api {
    /// Wraps the parts.
    pub fn new(parts: Parts) -> Api {
        Api(Arc::new(parts))
    }
}

impl Deref for Api {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}
