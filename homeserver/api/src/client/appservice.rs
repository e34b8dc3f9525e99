use crate::error::ApiResult;
use crate::state::Api;
use http::request::Parts;
use std::sync::Arc;
use waxwing_services::accounts::Requester;

/// Who an application service speaks for, when the token is one's.
pub(crate) async fn identify(_api: &Api, _token: &str, _parts: &Parts) -> ApiResult<Option<Arc<Requester>>> {
    Ok(None)
}
