use ruma::{DeviceId, OwnedDeviceId, OwnedUserId};
use std::sync::Arc;

/// Who makes a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requester {
    /// The user.
    pub user_id: OwnedUserId,
    /// The device of the access token; none for an application service that names no device.
    pub device_id: Option<OwnedDeviceId>,
    /// A guest may do little: <https://spec.matrix.org/v1.19/client-server-api/#guest-access>.
    pub is_guest: bool,
    /// An administrator of this server.
    pub is_admin: bool,
    /// A locked account can do nothing but log out.
    pub is_locked: bool,
    /// A suspended account can read, leave and log out.
    pub is_suspended: bool,
    /// The id of the application service that makes the request, for itself or for one of its users.
    pub appservice: Option<Arc<str>>,
}

impl Requester {
    /// The device id, empty for an application service without one: for keys of repeated requests.
    pub fn device_or_empty(&self) -> &str {
        self.device_id.as_deref().map_or("", DeviceId::as_str)
    }
}
