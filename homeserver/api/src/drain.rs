//! Bodies that nobody read to their end: a request that is refused by its head, or whose body is too large. A client
//! that is cut off while it still sends sees a broken connection in place of the answer, and asks again. So what is left
//! of the body is let go by, within bounds, before the answer goes out.

use axum::body::{Body, BodyDataStream, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::header;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

/// What is let go by of one body: more than the largest body with a token (16 MiB), and than most pictures. Nothing of
/// it is kept. A client that goes on longer is cut off, as it would be without this.
const DISCARDED_BYTES: u64 = 32 * 1024 * 1024;
/// For how long at most: a slow sender holds no connection for ever.
const DISCARDED_FOR: Duration = Duration::from_secs(10);

/// Where a body goes whose reader has had enough of it.
type Rest = Arc<Mutex<Option<BodyDataStream>>>;

/// A body that comes back when its reader drops it.
struct Lent {
    body: Option<BodyDataStream>,
    rest: Rest,
}

impl Stream for Lent {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let piece = body.poll_next_unpin(context);
        if matches!(piece, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        piece
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(body) = self.body.take() {
            *self.rest.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}

/// The middleware. Around everything that reads bodies.
pub(crate) async fn drain(request: Request, next: Next) -> Response {
    // Who waits to be asked for the body has not sent it.
    if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
        return next.run(request).await;
    }
    let rest = Rest::default();
    let lent =
        |body: Body| Body::from_stream(Lent { body: Some(body.into_data_stream()), rest: Arc::clone(&rest) });
    let response = next.run(request.map(lent)).await;
    let left = rest.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(left) = left {
        discard(left).await;
    }
    response
}

/// Reads on until the end, or until it was enough.
async fn discard(mut body: BodyDataStream) {
    let mut seen = 0;
    let reading = async {
        while let Some(Ok(piece)) = body.next().await {
            seen += piece.len() as u64;
            if seen > DISCARDED_BYTES {
                break;
            }
        }
    };
    // Whether it ended in time or not, the answer is the same.
    let _ = tokio::time::timeout(DISCARDED_FOR, reading).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::routing::post;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tower::ServiceExt;

    const PIECE: usize = 64 * 1024;

    /// How much of a body of so many pieces is taken from the client of a handler that reads one.
    async fn taken(pieces: u64, expects: bool) -> u64 {
        let count = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&count);
        let body = futures_util::stream::iter((0..pieces).map(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok::<_, std::io::Error>(Bytes::from(vec![7; PIECE]))
        }));
        let router = Router::new()
            .route(
                "/",
                post(|body: Body| async move {
                    let first = body.into_data_stream().next().await;
                    first.and_then(Result::ok).map_or(0, |piece| piece.len()).to_string()
                }),
            )
            .layer(axum::middleware::from_fn(drain));
        let mut request = Request::post("/");
        if expects {
            request = request.header(header::EXPECT, "100-continue");
        }
        let response = router.oneshot(request.body(Body::from_stream(body)).unwrap()).await.unwrap();
        let answer = axum::body::to_bytes(response.into_body(), 100).await.unwrap();
        assert_eq!(answer, PIECE.to_string());
        count.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn what_is_left_of_a_body_goes_by_within_bounds() {
        assert_eq!(taken(100, false).await, 100);
        let most = DISCARDED_BYTES / PIECE as u64;
        assert_eq!(taken(10 * most, false).await, most + 2);
        assert_eq!(taken(100, true).await, 1);
    }
}
