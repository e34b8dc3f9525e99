//! Receipts and read markers: <https://spec.matrix.org/v1.19/client-server-api/#receipts>

use crate::error::{ApiError, ApiResult};
use crate::extract::Args;
use crate::routes::RouterExt;
use crate::state::Api;
use axum::Router;
use ruma::api::client::read_marker::set_read_marker;
use ruma::api::client::receipt::create_receipt::{self, v3::ReceiptType};
use ruma::events::receipt::ReceiptThread;
use waxwing_services::receipts::{ReceiptError, ReceiptKind};

pub(super) fn routes() -> Router<Api> {
    Router::new().ruma(receipt).ruma(read_markers)
}

async fn receipt(
    api: Api,
    args: Args<create_receipt::v3::Request>,
) -> ApiResult<create_receipt::v3::Response> {
    let (request, user) = (args.request, &args.requester.user_id);
    let kind = match request.receipt_type {
        ReceiptType::Read => ReceiptKind::Read,
        ReceiptType::ReadPrivate => ReceiptKind::ReadPrivate,
        ReceiptType::FullyRead if request.thread == ReceiptThread::Unthreaded => {
            api.receipts.mark_fully_read(user, &request.room_id, request.event_id).await?;
            return Ok(create_receipt::v3::Response::new());
        }
        ReceiptType::FullyRead => return Err(ApiError::invalid_param("m.fully_read has no thread_id")),
        _ => return Err(ApiError::invalid_param("There is no such kind of receipt")),
    };
    api.receipts.read(user, &request.room_id, kind, &request.thread, request.event_id).await?;
    Ok(create_receipt::v3::Response::new())
}

async fn read_markers(
    api: Api,
    args: Args<set_read_marker::v3::Request>,
) -> ApiResult<set_read_marker::v3::Response> {
    let (request, user) = (args.request, &args.requester.user_id);
    if let Some(event) = request.fully_read {
        api.receipts.mark_fully_read(user, &request.room_id, event).await?;
    }
    let receipts =
        [(ReceiptKind::Read, request.read_receipt), (ReceiptKind::ReadPrivate, request.private_read_receipt)];
    for (kind, event) in receipts {
        if let Some(event) = event {
            api.receipts.read(user, &request.room_id, kind, &ReceiptThread::Unthreaded, event).await?;
        }
    }
    Ok(set_read_marker::v3::Response::new())
}

impl From<ReceiptError> for ApiError {
    fn from(error: ReceiptError) -> ApiError {
        match error {
            ReceiptError::Store(error) => ApiError::from(error),
            ReceiptError::NotInRoom => ApiError::forbidden("You are not in this room"),
            ReceiptError::NoEvent => ApiError::not_found("There is no such event in this room"),
            ReceiptError::BadThread(why) => ApiError::invalid_param(why),
        }
    }
}
