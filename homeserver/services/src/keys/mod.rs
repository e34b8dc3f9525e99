//! End-to-end keys: what devices publish so that others can encrypt to them and trust them. The server hands these keys
//! around; it never has what they open.
//! <https://spec.matrix.org/v1.19/client-server-api/#end-to-end-encryption>

mod announce;
mod changes;
mod claim;
mod cross_signing;
mod dehydrated;
mod error;
mod inbound;
mod known;
mod objects;
mod query;
mod remote;
mod signatures;
mod upload;

pub use announce::{device_changed, device_removed, sharing_changed};
pub(crate) use announce::{list_told_again, remote_list_changed};
pub use changes::{ListChanges, device_list_changes};
pub use claim::{Claimed, ClaimedKeys, Claims};
pub use cross_signing::SigningKeys;
pub use dehydrated::{DehydratedEvents, Dehydration};
pub use error::KeysError;
pub use query::{Queried, Wanted};
pub use signatures::SignatureFailures;
pub use upload::{KeyCounts, KeyUpload};

use crate::Core;
use std::sync::Arc;
use std::time::Duration;
use waxwing_federation::client::Client;

/// How long a query or claim may wait for other servers, whatever the client asks for.
/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysquery>
pub(crate) const REMOTE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests to other servers at the same time for one query or claim.
pub(crate) const REMOTE_PARALLEL: usize = 32;

/// The service.
#[derive(Clone)]
pub struct Keys {
    core: Core,
    client: Option<Client>,
    fetching: Arc<remote::Fetching>,
    known: Arc<known::Known>,
}

impl Keys {
    /// The service; without a client other servers are not asked.
    pub fn new(core: Core, client: Option<Client>) -> Keys {
        Keys { core, client, fetching: Arc::default(), known: Arc::default() }
    }
}
