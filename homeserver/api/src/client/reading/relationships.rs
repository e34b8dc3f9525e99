use super::viewer;
use crate::client::user::plain::{JsonAnswer, plain_request};
use crate::error::ApiResult;
use crate::extract::Args;
use crate::state::Api;
use ruma::api::auth_scheme::AccessToken;
use waxwing_services::relationships::RelationshipsQuery;

plain_request!(
    /// `POST /event_relationships` (MSC2836)
    EventRelationships, POST, AccessToken, {
        unstable("org.matrix.msc2836") => "/_matrix/client/unstable/event_relationships",
    }
);

/// `POST /event_relationships`
pub(super) async fn relationships(api: Api, args: Args<EventRelationships>) -> ApiResult<JsonAnswer> {
    let query: RelationshipsQuery = crate::extract::json(&args.json)?;
    let found = api.relationships.of_user(&viewer(&args.requester), &query).await?;
    JsonAnswer::new(&serde_json::json!({ "events": found.events, "limited": found.limited }))
}
