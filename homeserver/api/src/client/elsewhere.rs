//! What other servers have and this one has not, answered as the specification says for them: single sign-on, OAuth 2.0,
//! a policy server.

use super::user::plain::{JsonAnswer, plain_request};
use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use axum::routing::get;
use ruma::api::auth_scheme::NoAccessToken;

plain_request!(
    /// `GET /auth_metadata`: <https://spec.matrix.org/v1.19/client-server-api/#server-metadata-discovery>
    AuthMetadata, GET, NoAccessToken, {
        unstable("org.matrix.msc2965") => "/_matrix/client/unstable/org.matrix.msc2965/auth_metadata",
        1.15 => "/_matrix/client/v1/auth_metadata",
    }
);
plain_request!(
    /// `GET /login/sso/redirect`: <https://spec.matrix.org/v1.19/client-server-api/#client-login-via-sso>
    SsoRedirect, GET, NoAccessToken, {
        1.0 => "/_matrix/client/r0/login/sso/redirect",
        1.1 => "/_matrix/client/v3/login/sso/redirect",
    }
);
plain_request!(
    /// `GET /login/sso/redirect/{idpId}`
    SsoRedirectTo, GET, NoAccessToken, {
        1.0 => "/_matrix/client/r0/login/sso/redirect/{idp_id}",
        1.1 => "/_matrix/client/v3/login/sso/redirect/{idp_id}",
    }
);

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .ruma(|_: Api, _: Args<AuthMetadata>| async { Err::<JsonAnswer, ApiError>(ApiError::unrecognized()) })
        .ruma(|_: Api, _: Args<SsoRedirect>| async { no_single_sign_on() })
        .ruma(|_: Api, _: Args<SsoRedirectTo>| async { no_single_sign_on() })
        .route(
            "/.well-known/matrix/policy_server",
            get(|| async { ApiError::not_found("This is no policy server") }),
        )
}

fn no_single_sign_on() -> ApiResult<JsonAnswer> {
    Err(ApiError::not_found("This server has no single sign-on"))
}
