//! What this server does not have, as the specification lets it say so: no TURN server, no bridged networks.

use super::plain::{JsonAnswer, plain_request};
use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use ruma::api::auth_scheme::AccessToken;

plain_request!(
    /// `GET /voip/turnServer`: an empty object says that there is none.
    TurnServer, GET, AccessToken, {
        1.0 => "/_matrix/client/r0/voip/turnServer",
        1.1 => "/_matrix/client/v3/voip/turnServer",
    }
);
plain_request!(
    /// `GET /thirdparty/protocols`
    Protocols, GET, AccessToken, {
        1.0 => "/_matrix/client/r0/thirdparty/protocols",
        1.1 => "/_matrix/client/v3/thirdparty/protocols",
    }
);
plain_request!(
    /// `GET /thirdparty/protocol/{protocol}`
    Protocol, GET, AccessToken, {
        1.0 => "/_matrix/client/r0/thirdparty/protocol/{protocol}",
        1.1 => "/_matrix/client/v3/thirdparty/protocol/{protocol}",
    }
);
plain_request!(
    /// `GET /thirdparty/location/{protocol}`
    LocationsOf, GET, AccessToken, {
        1.0 => "/_matrix/client/r0/thirdparty/location/{protocol}",
        1.1 => "/_matrix/client/v3/thirdparty/location/{protocol}",
    }
);
plain_request!(
    /// `GET /thirdparty/user/{protocol}`
    UsersOf, GET, AccessToken, {
        1.0 => "/_matrix/client/r0/thirdparty/user/{protocol}",
        1.1 => "/_matrix/client/v3/thirdparty/user/{protocol}",
    }
);
plain_request!(
    /// `GET /thirdparty/location`
    Locations, GET, AccessToken, {
        1.0 => "/_matrix/client/r0/thirdparty/location",
        1.1 => "/_matrix/client/v3/thirdparty/location",
    }
);
plain_request!(
    /// `GET /thirdparty/user`
    Users, GET, AccessToken, {
        1.0 => "/_matrix/client/r0/thirdparty/user",
        1.1 => "/_matrix/client/v3/thirdparty/user",
    }
);

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .ruma(|_: Api, _: Args<TurnServer>| async { Ok(JsonAnswer::empty()) })
        .ruma(|_: Api, _: Args<Protocols>| async { Ok(JsonAnswer::empty()) })
        .ruma(|_: Api, _: Args<Protocol>| async { unknown() })
        .ruma(|_: Api, _: Args<LocationsOf>| async { unknown() })
        .ruma(|_: Api, _: Args<UsersOf>| async { unknown() })
        .ruma(|_: Api, _: Args<Locations>| async { unknown() })
        .ruma(|_: Api, _: Args<Users>| async { unknown() })
}

fn unknown() -> ApiResult<JsonAnswer> {
    Err(ApiError::not_found("There is no bridge to another network"))
}
