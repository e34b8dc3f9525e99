//! Thumbnails: of a few sizes, made once, off the threads that serve requests, a few at a time, and kept.
//! <https://spec.matrix.org/v1.19/client-server-api/#thumbnails>

use super::draw::{Drawn, draw, essence};
use super::objects::WriteError;
use super::{Ask, Key, Media, MediaError, MediaFile, check_id, tag_of};
use bytes::Bytes;
use image::ImageFormat;
use ruma::ServerName;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use waxwing_storage::{StoreError, ThumbnailKey};

/// Larger files are not held in memory: no thumbnail is made of them.
pub const MAX_SOURCE_BYTES: u64 = 50 * 1024 * 1024;
/// Thumbnails that may wait for their turn: the rest is told to come again.
const MAX_QUEUED: usize = 64;
/// The longest that one waits for its turn.
const MAX_TURN: Duration = Duration::from_secs(30);

/// The sizes that are made; a wish is served with the smallest that is not smaller.
const SIZES: [(u32, u32); 5] = [(32, 32), (96, 96), (320, 240), (640, 480), (800, 600)];
/// Stands for a picture of its own size.
const WHOLE: (u32, u32) = (0, 0);

/// What a client wants.
#[derive(Clone, Copy, Debug)]
pub struct ThumbnailWish {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Whether to crop to the shape, or to scale into it.
    pub crop: bool,
    /// Whether it may move.
    pub animated: bool,
}

impl ThumbnailWish {
    /// The thumbnail that is made for this wish: of a few sizes, so that nobody fills the disk with them. Above the
    /// largest: the picture itself.
    fn key(self) -> ThumbnailKey {
        let fits = |(width, height): &(u32, u32)| *width >= self.width && *height >= self.height;
        let (width, height) = SIZES.iter().copied().find(fits).unwrap_or(WHOLE);
        let crop = self.crop && (width, height) != WHOLE;
        ThumbnailKey { width, height, crop, animated: self.animated }
    }
}

/// What became of a thumbnail that was to be made.
#[derive(Clone, Debug)]
pub(super) enum Thumbnailed {
    /// The file is its own.
    AsItIs,
    /// A new one.
    New(Thumbnail),
    /// None can be made.
    None,
    /// Too many wait.
    Busy,
    /// This server's own fault.
    Failed(String),
}

/// A thumbnail in the object store.
#[derive(Clone, Debug)]
pub(super) struct Thumbnail {
    object: String,
    content_type: String,
    size: u64,
}

impl Thumbnail {
    fn file(self, file_name: Option<String>) -> MediaFile {
        MediaFile {
            content_type: Some(self.content_type),
            file_name,
            size: self.size,
            tag: tag_of(&self.object),
            object: self.object,
        }
    }
}

impl Media {
    /// A thumbnail of a file, made when it is first asked for. Of a file of another server that is too large for this
    /// one, that server is asked for a thumbnail.
    ///
    /// # Errors
    /// [`MediaError::NoThumbnail`] when the file is no picture that can be decoded within the limits.
    pub async fn thumbnail(
        &self,
        server: &ServerName,
        id: &str,
        wish: ThumbnailWish,
        ask: Ask,
    ) -> Result<MediaFile, MediaError> {
        check_id(id)?;
        let key = wish.key();
        let source = match self.find(server, id, ask).await {
            Err(MediaError::RemoteTooLarge(_)) => return self.remote_thumbnail(server, id, wish, ask).await,
            other => other?,
        };
        let made = self.core.store.read().await?.thumbnail_load(server, id, key).await?;
        if let Some((object, content_type, size)) = made {
            return Ok(Thumbnail { object, content_type, size: size as u64 }.file(source.file_name));
        }
        let media_key = (server.to_owned(), id.to_owned());
        if source.size > MAX_SOURCE_BYTES || self.shared.undrawable.contains_key(&media_key) {
            return Err(MediaError::NoThumbnail);
        }
        let begin = || {
            let (media, media_key, source) = (self.clone(), media_key.clone(), source.clone());
            async move {
                let made = media.make(&media_key, key, &source).await;
                if matches!(made, Ok(Thumbnailed::None)) {
                    media.shared.undrawable.insert(media_key, ());
                }
                made.unwrap_or_else(|error| Thumbnailed::Failed(error.to_string()))
            }
        };
        match self.shared.drafts.join((media_key.clone(), key), begin).await {
            Some(Thumbnailed::AsItIs) => Ok(source),
            Some(Thumbnailed::New(thumbnail)) => Ok(thumbnail.file(source.file_name)),
            // A decoder that panicked would do so again.
            None | Some(Thumbnailed::None) => Err(MediaError::NoThumbnail),
            Some(Thumbnailed::Busy) => Err(MediaError::Busy),
            Some(Thumbnailed::Failed(why)) => {
                tracing::warn!(why, "a thumbnail could not be made");
                Err(MediaError::NoThumbnail)
            }
        }
    }

    async fn make(
        &self,
        media: &Key,
        key: ThumbnailKey,
        source: &MediaFile,
    ) -> Result<Thumbnailed, MediaError> {
        if self.shared.queued.fetch_add(1, Ordering::Relaxed) >= MAX_QUEUED {
            self.shared.queued.fetch_sub(1, Ordering::Relaxed);
            return Ok(Thumbnailed::Busy);
        }
        let turn = tokio::time::timeout(MAX_TURN, Arc::clone(&self.shared.drawing).acquire_owned()).await;
        self.shared.queued.fetch_sub(1, Ordering::Relaxed);
        let Ok(Ok(turn)) = turn else { return Ok(Thumbnailed::Busy) };
        let bytes = self.shared.objects.read_all(&source.object).await?;
        let declared = source.content_type.clone();
        let drawn = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            draw(&bytes, declared.as_deref(), key)
        });
        match drawn.await {
            Ok(Ok(Drawn::AsItIs)) => Ok(Thumbnailed::AsItIs),
            Ok(Ok(Drawn::New(picture, content_type))) => {
                self.keep(media, key, picture, content_type).await.map(Thumbnailed::New)
            }
            Ok(Err(_)) | Err(_) => Ok(Thumbnailed::None),
        }
    }

    async fn keep(
        &self,
        (server, id): &Key,
        key: ThumbnailKey,
        picture: Vec<u8>,
        content_type: &'static str,
    ) -> Result<Thumbnail, MediaError> {
        let object = self.promise(server, &format!("{id}-thumbnail")).await?;
        let body = futures_util::stream::iter([Ok(Bytes::from(picture))]);
        let written = self.shared.objects.write(&object.name, body, u64::MAX).await;
        let written = written.map_err(|error| match error {
            WriteError::Objects(error) => MediaError::Objects(error),
            other => MediaError::Broken(other.to_string()),
        })?;
        let input = Arc::new((server.clone(), id.clone(), object.settle()));
        let thumbnail =
            Thumbnail { object: input.2.clone(), content_type: content_type.to_owned(), size: written.size };
        let size = written.size as i64;
        let kept = self.core.store.write("thumbnail", Vec::new(), move |tx| {
            let input = Arc::clone(&input);
            Box::pin(async move {
                let (server, id, object) = &*input;
                // The file may have gone meanwhile, or another node have been faster: then the new one is garbage,
                // and served until it is removed.
                if tx.media_load(server, id).await?.is_some()
                    && tx.thumbnail_insert(server, id, key, object, content_type, size).await?
                {
                    tx.media_garbage_drop(object).await?;
                }
                Ok::<_, StoreError>(())
            })
        });
        kept.await?;
        Ok(thumbnail)
    }

    /// The other server's own thumbnail, kept like a file: under an id that no file has.
    async fn remote_thumbnail(
        &self,
        server: &ServerName,
        id: &str,
        wish: ThumbnailWish,
        ask: Ask,
    ) -> Result<MediaFile, MediaError> {
        let mut key = wish.key();
        if (key.width, key.height) == WHOLE {
            (key.width, key.height) = SIZES[SIZES.len() - 1];
        }
        let stored = stored_id(id, key);
        let here = Ask { remote: false, wait: Duration::ZERO, ..ask };
        let file = match self.find_stored(server, &stored, here).await {
            Err(MediaError::NotFound) => {
                self.fetch_thumbnail(server, id, stored.clone(), key, ask.wait).await?;
                self.find_stored(server, &stored, here).await?
            }
            other => other?,
        };
        // What another server calls a thumbnail may be anything.
        let kind = file.content_type.as_deref().map(essence).unwrap_or_default();
        if ImageFormat::from_mime_type(kind).is_some() { Ok(file) } else { Err(MediaError::NoThumbnail) }
    }
}

/// Under what id another server's thumbnail of its file is kept.
fn stored_id(id: &str, key: ThumbnailKey) -> String {
    let method = if key.crop { "crop" } else { "scale" };
    format!("{id}~{}x{}-{method}-{}", key.width, key.height, key.animated)
}

/// The ids under which thumbnails of another server's file may be kept.
pub(super) fn fetched_ids(id: &str) -> impl Iterator<Item = String> + '_ {
    let shapes = [(true, true), (true, false), (false, true), (false, false)];
    SIZES.into_iter().flat_map(move |(width, height)| {
        shapes.map(|(crop, animated)| stored_id(id, ThumbnailKey { width, height, crop, animated }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_rounded_up_to_the_sizes_that_are_made() {
        let key = |width, height| {
            let key = ThumbnailWish { width, height, crop: true, animated: false }.key();
            (key.width, key.height, key.crop)
        };
        assert_eq!(key(30, 30), (32, 32, true));
        assert_eq!(key(33, 20), (96, 96, true));
        assert_eq!(key(300, 200), (320, 240, true));
        assert_eq!(key(5000, 5000), (0, 0, false));
    }
}
