//! Bodies of requests, read whole into memory: how much all of them together take, from when they are read until they are
//! dropped, has a limit, because everybody may begin to send one, and take their time.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Bytes of each body that are read without asking: almost every request fits into them.
const FREE: usize = 64 * 1024;
/// What is asked for at a time beyond that.
const PIECE: usize = 256 * 1024;
/// Pieces that bodies may have together: 128 MB. What fits into [`FREE`] waits for nobody.
const PIECES: usize = 512;
/// Whoever finds no piece left waits so long for one.
const PATIENCE: Duration = Duration::from_secs(5);

static PLACES: Semaphore = Semaphore::const_new(PIECES);

/// Why a body was not read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ReadError {
    /// It is larger than the limit.
    TooLarge,
    /// The connection broke.
    Broken,
    /// Others take all the memory that there is for bodies.
    NoPlace,
}

/// Reads a body of at most `limit` bytes. It may take for ever: whoever calls sets a time.
pub(crate) async fn read(mut body: Body, limit: usize) -> Result<Bytes, ReadError> {
    let mut held: Option<SemaphorePermit<'static>> = None;
    // Most bodies come in one frame, which is not copied.
    let (mut first, mut whole) = (Bytes::new(), BytesMut::new());
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| ReadError::Broken)?.into_data() else { continue };
        size += data.len();
        if size > limit {
            return Err(ReadError::TooLarge);
        }
        let wanted = size.saturating_sub(FREE).div_ceil(PIECE).min(PIECES);
        let more = wanted - held.as_ref().map_or(0, SemaphorePermit::num_permits);
        if more > 0 {
            let permit = tokio::time::timeout(PATIENCE, PLACES.acquire_many(more as u32)).await;
            let Ok(Ok(permit)) = permit else { return Err(ReadError::NoPlace) };
            match &mut held {
                Some(held) => held.merge(permit),
                None => held = Some(permit),
            }
        }
        if first.is_empty() && whole.is_empty() {
            first = data;
        } else {
            if whole.is_empty() {
                whole.extend_from_slice(&std::mem::take(&mut first));
            }
            whole.extend_from_slice(&data);
        }
    }
    let bytes = if whole.is_empty() { first } else { whole.freeze() };
    Ok(match held {
        Some(held) => Bytes::from_owner(Kept { bytes, _held: held }),
        None => bytes,
    })
}

/// A body with its places, which are free again when nobody has any of it.
struct Kept {
    bytes: Bytes,
    _held: SemaphorePermit<'static>,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{StreamExt, stream};

    fn body(frames: usize, size: usize) -> Body {
        Body::from_stream(
            stream::iter(std::iter::repeat_n(Bytes::from(vec![b'x'; size]), frames))
                .map(Ok::<_, std::io::Error>),
        )
    }

    #[tokio::test]
    async fn dawdlers_share_what_they_hold_and_small_bodies_wait_for_nobody() {
        assert_eq!(read(body(3, 10), 30).await.unwrap().len(), 30);
        assert_eq!(read(body(3, 10), 29).await, Err(ReadError::TooLarge));
        assert_eq!(read(Body::empty(), 0).await.unwrap().len(), 0);
        let broken = Body::from_stream(stream::iter([Err::<Bytes, _>(std::io::Error::other("gone"))]));
        assert_eq!(read(broken, 10).await, Err(ReadError::Broken));

        // Each sends a megabyte and then nothing more.
        let dawdler = || {
            let begun = stream::once(async { Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; 1 << 20])) });
            Body::from_stream(begun.chain(stream::pending()))
        };
        let tasks: Vec<_> = (0..PIECES).map(|_| tokio::spawn(read(dawdler(), 16 << 20))).collect();
        for _ in 0..1000 {
            if PLACES.available_permits() < 4 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(PLACES.available_permits() < 4, "{}", PLACES.available_permits());
        let small = tokio::time::timeout(Duration::from_secs(5), read(body(8, FREE / 8), FREE)).await;
        assert_eq!(small.unwrap().unwrap().len(), FREE);
        let large =
            tokio::time::timeout(Duration::from_millis(100), read(body(2, FREE + PIECE), 16 << 20)).await;
        assert!(large.is_err(), "it waits");
        for task in &tasks {
            task.abort();
        }
        for task in tasks {
            assert!(task.await.unwrap_err().is_cancelled());
        }
        assert_eq!(PLACES.available_permits(), PIECES);
        let whole = read(body(2, FREE + PIECE), 16 << 20).await.unwrap();
        assert_eq!((whole.len(), PLACES.available_permits()), (2 * (FREE + PIECE), PIECES - 3));
        drop(whole);
        assert_eq!(PLACES.available_permits(), PIECES);
    }
}
