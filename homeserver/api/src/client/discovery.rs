use crate::error::ApiResult;
use crate::extract::Args;
use crate::state::Api;
use ruma::api::client::discovery::get_supported_versions;

/// Versions of the client-server API that are served.
const VERSIONS: &[&str] = &[
    "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11", "v1.12",
    "v1.13", "v1.14", "v1.15", "v1.16", "v1.17", "v1.18", "v1.19",
];

/// Features beyond these versions, or from before them, that clients look for. Only what exists here.
const FEATURES: &[&str] = &["org.matrix.msc3916.stable", "uk.tcpip.msc4133.stable", "org.matrix.msc4140"];

/// `GET /_matrix/client/versions`
pub(super) async fn versions(
    _api: Api,
    _args: Args<get_supported_versions::Request>,
) -> ApiResult<get_supported_versions::Response> {
    let mut response =
        get_supported_versions::Response::new(VERSIONS.iter().map(|version| (*version).to_owned()).collect());
    response.unstable_features = FEATURES.iter().map(|feature| ((*feature).to_owned(), true)).collect();
    Ok(response)
}
