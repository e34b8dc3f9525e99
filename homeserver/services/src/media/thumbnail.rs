//! Small pictures of large ones.

use super::{Media, MediaError, MediaFile, check_id};
use bytes::Bytes;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use ruma::ServerName;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;
use waxwing_storage::ThumbnailKey;

/// Larger files are served as they are: decoding them costs more than a thumbnail is worth.
pub const MAX_SOURCE_BYTES: u64 = 20 * 1024 * 1024;
/// Pixels of a picture that is decoded: guards against small files that unpack to gigabytes.
pub const MAX_PIXELS: u64 = 40_000_000;

/// The sizes that are made; a wish is served with the smallest that is not smaller.
/// <https://spec.matrix.org/v1.19/client-server-api/#thumbnails>
const SIZES: [(u32, u32); 5] = [(32, 32), (96, 96), (320, 240), (640, 480), (800, 600)];

/// What a client wants.
#[derive(Clone, Copy, Debug)]
pub struct ThumbnailWish {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Whether to crop to the shape, or to scale into it.
    pub crop: bool,
}

impl ThumbnailWish {
    /// The size that is made for this wish: one of a few, so that nobody fills the disk with sizes. None: only the
    /// picture itself may be large enough.
    fn key(self) -> Option<ThumbnailKey> {
        let fits = |(width, height): &(u32, u32)| *width >= self.width && *height >= self.height;
        let (width, height) = SIZES.iter().copied().find(fits)?;
        Some(ThumbnailKey { width, height, crop: self.crop, animated: false })
    }
}

impl Media {
    /// A thumbnail of a file, made when it is first asked for.
    ///
    /// # Errors
    /// [`MediaError::NoThumbnail`] when the file is no picture that can be decoded within the limits.
    pub async fn thumbnail(
        &self,
        server: &ServerName,
        id: &str,
        wish: ThumbnailWish,
        wait: Duration,
        remote: bool,
    ) -> Result<MediaFile, MediaError> {
        check_id(id)?;
        let source = self.find(server, id, wait, remote).await?;
        let Some(key) = wish.key() else {
            let kind = source.content_type.as_deref().unwrap_or_default();
            return if is_picture(kind) { Ok(source) } else { Err(MediaError::NoThumbnail) };
        };
        let made = self.core.store.read().await?.thumbnail_load(server, id, key).await?;
        if let Some((object, content_type, size)) = made {
            return Ok(MediaFile {
                content_type: Some(content_type),
                file_name: source.file_name,
                size: size as u64,
                object,
            });
        }
        if source.size > MAX_SOURCE_BYTES {
            return Err(MediaError::NoThumbnail);
        }
        let turn = Arc::clone(&self.drawing).acquire_owned().await.map_err(|_| MediaError::NoThumbnail)?;
        let bytes = self.read_all(&source.object).await?;
        let drawn = tokio::task::spawn_blocking(move || {
            // The thread goes on when the client has gone, and keeps its turn.
            let _turn = turn;
            draw(&bytes, key)
        })
        .await
        .map_err(|_| MediaError::NoThumbnail)??;
        let Some((picture, content_type)) = drawn else {
            // Never upscale: a picture that is small enough is its own thumbnail.
            return Ok(source);
        };
        self.keep(server, id, key, source.file_name, picture, content_type).await
    }

    async fn keep(
        &self,
        server: &ServerName,
        id: &str,
        key: ThumbnailKey,
        file_name: Option<String>,
        picture: Vec<u8>,
        content_type: &'static str,
    ) -> Result<MediaFile, MediaError> {
        let name = format!("{id}-{}x{}-{}", key.width, key.height, key.crop);
        let object = format!("thumbnails/{}", super::store::object_name(server, &name));
        let size = picture.len() as u64;
        let body = futures_util::stream::iter([Ok::<_, std::convert::Infallible>(Bytes::from(picture))]);
        self.write(&object, body, u64::MAX).await?;
        let input = Arc::new((server.to_owned(), id.to_owned(), object.clone()));
        self.core
            .store
            .write("thumbnail", Vec::new(), move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    tx.thumbnail_insert(&input.0, &input.1, key, &input.2, content_type, size as i64).await
                })
            })
            .await?;
        Ok(MediaFile { content_type: Some(content_type.to_owned()), file_name, size, object })
    }
}

/// Whether the uploader said that it is a picture of a kind that is decoded here.
fn is_picture(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    ImageFormat::from_mime_type(essence).is_some_and(|format| format.reading_enabled())
}

/// Decodes, turns upright, scales and encodes; `None` when the picture is not larger than the thumbnail would be.
fn draw(bytes: &[u8], key: ThumbnailKey) -> Result<Option<(Vec<u8>, &'static str)>, MediaError> {
    let no = |_| MediaError::NoThumbnail;
    let mut reader =
        ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|_| MediaError::NoThumbnail)?;
    let format = reader.format().ok_or(MediaError::NoThumbnail)?;
    let (width, height) =
        ImageReader::with_format(Cursor::new(bytes), format).into_dimensions().map_err(no)?;
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(MediaError::NoThumbnail);
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_PIXELS * 8);
    reader.limits(limits);
    if width <= key.width && height <= key.height {
        return Ok(None);
    }
    let mut decoder = reader.into_decoder().map_err(no)?;
    let orientation = decoder.orientation().map_err(no)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(no)?;
    picture.apply_orientation(orientation);
    let small = if key.crop {
        picture.resize_to_fill(
            key.width.min(picture.width()),
            key.height.min(picture.height()),
            image::imageops::FilterType::Triangle,
        )
    } else {
        picture.resize(key.width, key.height, image::imageops::FilterType::Triangle)
    };
    encode(&small, format).map(Some)
}

fn encode(picture: &DynamicImage, source: ImageFormat) -> Result<(Vec<u8>, &'static str), MediaError> {
    let mut bytes = Cursor::new(Vec::new());
    let (format, content_type) = if source == ImageFormat::Jpeg {
        (ImageFormat::Jpeg, "image/jpeg")
    } else {
        (ImageFormat::Png, "image/png")
    };
    picture.write_to(&mut bytes, format).map_err(|_| MediaError::NoThumbnail)?;
    Ok((bytes.into_inner(), content_type))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_rounded_up_to_the_sizes_that_are_made() {
        let key = |width, height| {
            let key = ThumbnailWish { width, height, crop: true }.key();
            key.map(|key| (key.width, key.height))
        };
        assert_eq!(key(30, 30), Some((32, 32)));
        assert_eq!(key(33, 20), Some((96, 96)));
        assert_eq!(key(300, 200), Some((320, 240)));
        assert_eq!(key(5000, 5000), None);
    }

    #[test]
    fn a_picture_is_never_made_larger_and_nonsense_is_no_picture() {
        let picture = DynamicImage::new_rgb8(100, 50);
        let (bytes, _) = encode(&picture, ImageFormat::Png).unwrap();
        let key = ThumbnailKey { width: 320, height: 240, crop: false, animated: false };
        assert!(draw(&bytes, key).unwrap().is_none());
        let key = ThumbnailKey { width: 32, height: 32, crop: true, animated: false };
        assert!(draw(&bytes, key).unwrap().is_some());
        assert!(draw(b"no picture at all", key).is_err());
    }
}
