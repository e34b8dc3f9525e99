use http::Method;
use ruma::api::federation::device::get_devices;
use ruma::api::federation::directory::get_public_rooms_filtered;
use ruma::api::federation::discovery::get_server_version;
use ruma::api::federation::keys::{claim_keys, get_keys};
use ruma::api::federation::openid::get_openid_userinfo;
use ruma::api::federation::query::{get_profile_information, get_room_information};
use ruma::api::federation::space::get_hierarchy;
use ruma::profile::ProfileFieldName;
use ruma::{OwnedRoomAliasId, OwnedServerName, OwnedServerSigningKeyId, OwnedUserId, RoomId, ServerName};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::time::Duration;

use super::{Call, Client, ClientError, LIST_BODY, QUICK, path, to_body};

/// A key document has a handful of keys.
const KEYS_BODY: usize = 256 << 10;
/// A device list or a claim may have to wait for the other server's database, and a client of ours waits too.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
struct KeyDocuments {
    #[serde(default)]
    server_keys: Vec<Box<RawValue>>,
}

#[derive(Serialize)]
struct KeyQuery<'a> {
    server_keys: &'a BTreeMap<OwnedServerName, BTreeMap<OwnedServerSigningKeyId, KeyCriteria>>,
}

/// What a notary is asked of one key.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct KeyCriteria {
    pub(crate) minimum_valid_until_ts: u64,
}

impl Client {
    /// `GET /version`.
    pub async fn version(
        &self,
        destination: &ServerName,
    ) -> Result<get_server_version::v1::Response, ClientError> {
        let request = get_server_version::v1::Request::new();
        self.typed(destination, request, |call| call.unsigned().timeout(QUICK)).await
    }

    /// `GET /_matrix/key/v2/server`: a server's own key document.
    pub async fn server_keys(&self, destination: &ServerName) -> Result<Box<RawValue>, ClientError> {
        let call = Call::get(destination, path(&["_matrix", "key", "v2", "server"]));
        self.json(call.unsigned().insistent().timeout(QUICK).limit(KEYS_BODY)).await
    }

    /// `POST /_matrix/key/v2/query`: what a notary knows.
    pub(crate) async fn notary_query(
        &self,
        notary: &ServerName,
        query: &BTreeMap<OwnedServerName, BTreeMap<OwnedServerSigningKeyId, KeyCriteria>>,
    ) -> Result<Vec<Box<RawValue>>, ClientError> {
        let body = to_body(&KeyQuery { server_keys: query })?;
        let call = Call::new(notary, Method::POST, path(&["_matrix", "key", "v2", "query"])).body(&body);
        let answer: KeyDocuments = self.json(call.limit(LIST_BODY)).await?;
        Ok(answer.server_keys)
    }

    /// `GET /query/directory`: the room behind an alias.
    pub async fn query_directory(
        &self,
        destination: &ServerName,
        alias: OwnedRoomAliasId,
    ) -> Result<get_room_information::v1::Response, ClientError> {
        let request = get_room_information::v1::Request::new(alias);
        self.typed(destination, request, |call| call.timeout(QUICK)).await
    }

    /// `GET /query/profile`: a user's profile, or one field of it.
    pub async fn query_profile(
        &self,
        destination: &ServerName,
        user: OwnedUserId,
        field: Option<ProfileFieldName>,
    ) -> Result<get_profile_information::v1::Response, ClientError> {
        let mut request = get_profile_information::v1::Request::new(user);
        request.field = field;
        self.typed(destination, request, |call| call.timeout(QUICK)).await
    }

    /// `GET /user/devices/{userId}`.
    pub async fn user_devices(
        &self,
        destination: &ServerName,
        user: OwnedUserId,
    ) -> Result<get_devices::v1::Response, ClientError> {
        let request = get_devices::v1::Request::new(user);
        self.typed(destination, request, |call| call.timeout(DEVICE_TIMEOUT).limit(LIST_BODY)).await
    }

    /// `POST /user/keys/query`.
    pub async fn keys_query(
        &self,
        destination: &ServerName,
        request: get_keys::v1::Request,
    ) -> Result<get_keys::v1::Response, ClientError> {
        self.typed(destination, request, |call| call.timeout(DEVICE_TIMEOUT).limit(LIST_BODY)).await
    }

    /// `POST /user/keys/claim`.
    pub async fn keys_claim(
        &self,
        destination: &ServerName,
        request: claim_keys::v1::Request,
    ) -> Result<claim_keys::v1::Response, ClientError> {
        self.typed(destination, request, |call| call.timeout(DEVICE_TIMEOUT).limit(LIST_BODY)).await
    }

    /// `POST /publicRooms`.
    pub async fn public_rooms(
        &self,
        destination: &ServerName,
        request: get_public_rooms_filtered::v1::Request,
    ) -> Result<get_public_rooms_filtered::v1::Response, ClientError> {
        self.typed(destination, request, |call| call.limit(LIST_BODY)).await
    }

    /// `GET /hierarchy/{roomId}`.
    pub async fn hierarchy(
        &self,
        destination: &ServerName,
        room: &RoomId,
        suggested_only: bool,
    ) -> Result<get_hierarchy::v1::Response, ClientError> {
        let mut request = get_hierarchy::v1::Request::new(room.to_owned());
        request.suggested_only = suggested_only;
        self.typed(destination, request, |call| call.limit(LIST_BODY)).await
    }

    /// `GET /openid/userinfo`: whom an OpenID token belongs to. The caller checks that the user is of that server.
    pub async fn openid_userinfo(
        &self,
        destination: &ServerName,
        token: String,
    ) -> Result<OwnedUserId, ClientError> {
        let request = get_openid_userinfo::v1::Request::new(token);
        Ok(self.typed(destination, request, |call| call.unsigned().timeout(QUICK)).await?.sub)
    }
}
