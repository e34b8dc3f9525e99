//! Reporting content: <https://spec.matrix.org/v1.19/client-server-api/#reporting-content>

use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use ruma::api::client::reporting::report_user;
use ruma::api::client::room::{report_content, report_room};
use waxwing_services::reports::ReportError;

pub(super) fn routes() -> Router<Api> {
    Router::new().ruma(event).ruma(room).ruma(user)
}

async fn event(api: Api, args: Args<report_content::v3::Request>) -> ApiResult<report_content::v3::Response> {
    let request = args.request;
    api.reports.event(&args.requester.user_id, &request.room_id, &request.event_id, request.reason).await?;
    Ok(report_content::v3::Response::new())
}

async fn room(api: Api, args: Args<report_room::v3::Request>) -> ApiResult<report_room::v3::Response> {
    let request = args.request;
    api.reports.room(&args.requester.user_id, &request.room_id, request.reason).await?;
    Ok(report_room::v3::Response::new())
}

async fn user(api: Api, args: Args<report_user::v3::Request>) -> ApiResult<report_user::v3::Response> {
    let request = args.request;
    api.reports.user(&args.requester.user_id, &request.user_id, request.reason).await?;
    Ok(report_user::v3::Response::new())
}

impl From<ReportError> for ApiError {
    fn from(error: ReportError) -> ApiError {
        match error {
            ReportError::Store(error) => ApiError::from(error),
            ReportError::NotFound => ApiError::not_found("There is no such event or room"),
        }
    }
}
