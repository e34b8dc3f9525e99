//! Small pictures of large ones.

use super::{Media, MediaError, MediaFile, check_id};
use bytes::Bytes;
use image::{DynamicImage, ImageFormat, ImageReader, Limits};
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
const SIZES: [(u32, u32, bool); 5] =
    [(32, 32, true), (96, 96, true), (320, 240, false), (640, 480, false), (800, 600, false)];

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
    /// The size that is made for this wish.
    fn key(self) -> ThumbnailKey {
        let fits = |(width, height, crop): &(u32, u32, bool)| {
            *crop == self.crop && *width >= self.width && *height >= self.height
        };
        let (width, height, crop) = SIZES.iter().copied().find(fits).unwrap_or(if self.crop {
            // Larger crops are rare; they get the shape asked for, within the largest size.
            (self.width.clamp(1, 800), self.height.clamp(1, 600), true)
        } else {
            (800, 600, false)
        });
        ThumbnailKey { width, height, crop, animated: false }
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
        let key = wish.key();
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
        let bytes = self.read_all(&source.object).await?;
        let _turn = self.drawing.acquire().await.map_err(|_| MediaError::NoThumbnail)?;
        let drawn = tokio::task::spawn_blocking(move || draw(&bytes, key))
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

/// Decodes, scales and encodes; `None` when the picture is not larger than the thumbnail would be.
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
    let picture = reader.decode().map_err(no)?;
    let small = if key.crop {
        picture.resize_to_fill(
            key.width.min(width),
            key.height.min(height),
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
        let key = |width, height, crop| {
            let key = ThumbnailWish { width, height, crop }.key();
            (key.width, key.height)
        };
        assert_eq!(key(30, 30, true), (32, 32));
        assert_eq!(key(33, 20, true), (96, 96));
        assert_eq!(key(300, 200, false), (320, 240));
        assert_eq!(key(5000, 5000, false), (800, 600));
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
