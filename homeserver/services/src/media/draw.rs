//! Small pictures of large ones: pure work on bytes, within limits that keep small files from unpacking to gigabytes.

use super::animate;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::codecs::gif::GifDecoder;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType as PngFilter, PngDecoder, PngEncoder};
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{AnimationDecoder, DynamicImage, ImageDecoder, ImageEncoder, ImageFormat, ImageReader, Limits};
use std::io::Cursor;
use waxwing_storage::ThumbnailKey;

/// Pixels of a picture that is decoded: more than any camera in a pocket makes, and what two decoders may hold.
const MAX_PIXELS: u64 = 50_000_000;
/// Pixels of a side: above it formats and filters have corners that nobody tests.
const MAX_SIDE: u32 = 30_000;
/// Bytes that a decoder may take.
pub(super) const MAX_MEMORY: u64 = 256 << 20;
/// The quality of JPEG thumbnails, of a hundred.
const JPEG_QUALITY: u8 = 82;
/// Colour profiles above this are left out: those of cameras and screens have a few hundred bytes.
const MAX_PROFILE: usize = 8 << 10;

/// No thumbnail can be made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoPicture;

impl<E: std::error::Error> From<E> for NoPicture {
    fn from(_: E) -> NoPicture {
        NoPicture
    }
}

/// What became of a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Drawn {
    /// It is small enough, is what its uploader says, and moves only if it may: it is its own thumbnail.
    AsItIs,
    /// A new one, with its content type.
    New(Vec<u8>, &'static str),
}

/// Makes a thumbnail that is no larger than `key` says (a key without a size: as large as the picture).
/// `declared`: the content type that the uploader said.
pub(super) fn draw(bytes: &[u8], declared: Option<&str>, key: ThumbnailKey) -> Result<Drawn, NoPicture> {
    let format = format_of(bytes)?;
    let (width, height) = checked_size(bytes, format)?;
    let moves = moves(bytes, format)?;
    let fits = key.width == 0 || width <= key.width && height <= key.height;
    let honest = declared.map(essence).is_some_and(|kind| kind == format.to_mime_type());
    if fits && honest && (!moves || key.animated) {
        return Ok(Drawn::AsItIs);
    }
    if moves
        && key.animated
        && let Some(moving) = animate::shrink(bytes, format, key)
    {
        return Ok(Drawn::New(moving, "image/webp"));
    }
    let (bytes, content_type) = still(bytes, format, key)?;
    Ok(Drawn::New(bytes, content_type))
}

/// Width and height of a picture of a kind that is decoded here, upright; none if it is none or too large.
pub(crate) fn dimensions(bytes: &[u8]) -> Option<(u32, u32)> {
    let format = format_of(bytes).ok()?;
    let (width, height) = checked_size(bytes, format).ok()?;
    let mut decoder = ImageReader::with_format(Cursor::new(bytes), format).into_decoder().ok()?;
    let turned = decoder.orientation().is_ok_and(turned);
    Some(if turned { (height, width) } else { (width, height) })
}

/// What the content type is without its parameters.
pub(super) fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// By the first bytes alone: what the uploader says counts for nothing.
fn format_of(bytes: &[u8]) -> Result<ImageFormat, NoPicture> {
    let format = image::guess_format(bytes)?;
    if format.reading_enabled() { Ok(format) } else { Err(NoPicture) }
}

fn checked_size(bytes: &[u8], format: ImageFormat) -> Result<(u32, u32), NoPicture> {
    let (width, height) = ImageReader::with_format(Cursor::new(bytes), format).into_dimensions()?;
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 || pixels > MAX_PIXELS || width.max(height) > MAX_SIDE {
        return Err(NoPicture);
    }
    Ok((width, height))
}

pub(super) fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_MEMORY);
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits
}

/// Whether there is more than one frame.
fn moves(bytes: &[u8], format: ImageFormat) -> Result<bool, NoPicture> {
    Ok(match format {
        ImageFormat::Gif => {
            let mut decoder = GifDecoder::new(Cursor::new(bytes))?;
            decoder.set_limits(limits())?;
            decoder.into_frames().take(2).flatten().count() > 1
        }
        ImageFormat::Png => PngDecoder::with_limits(Cursor::new(bytes), limits())?.is_apng()?,
        ImageFormat::WebP => WebPDecoder::new(Cursor::new(bytes))?.has_animation(),
        _ => false,
    })
}

/// The first frame, upright and scaled.
fn still(bytes: &[u8], format: ImageFormat, key: ThumbnailKey) -> Result<(Vec<u8>, &'static str), NoPicture> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits());
    let mut decoder = reader.into_decoder()?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let profile = decoder.icc_profile().ok().flatten().filter(|profile| profile.len() <= MAX_PROFILE);
    let picture = DynamicImage::from_decoder(decoder)?;
    // Turned while it is small.
    let turned = turned(orientation);
    let wish = if turned { ThumbnailKey { width: key.height, height: key.width, ..key } } else { key };
    let mut small = scale(picture, wish)?;
    small.apply_orientation(orientation);
    encode(&small, format, profile)
}

/// Whether width and height change places.
fn turned(orientation: Orientation) -> bool {
    matches!(
        orientation,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    )
}

/// The size of the thumbnail of a picture of this size: never larger than the picture.
pub(super) fn target(width: u32, height: u32, key: ThumbnailKey) -> (u32, u32) {
    if key.width == 0 {
        return (width, height);
    }
    if key.crop {
        return (key.width.min(width), key.height.min(height));
    }
    let across = f64::from(key.width) / f64::from(width);
    let down = f64::from(key.height) / f64::from(height);
    let ratio = across.min(down).min(1.0);
    let side = |side: u32| ((f64::from(side) * ratio).round() as u32).max(1);
    (side(width), side(height))
}

/// Scales, and crops around the middle where that is wanted.
pub(super) fn scale(picture: DynamicImage, key: ThumbnailKey) -> Result<DynamicImage, NoPicture> {
    let (width, height) = target(picture.width(), picture.height(), key);
    if (width, height) == (picture.width(), picture.height()) {
        return Ok(picture);
    }
    let mut options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
    if key.crop {
        options = options.fit_into_destination(None);
    }
    let mut small = DynamicImage::new(width, height, picture.color());
    Resizer::new().resize(&picture, &mut small, &options)?;
    Ok(small)
}

/// Photographs as JPEG, everything else as PNG.
fn encode(
    picture: &DynamicImage,
    source: ImageFormat,
    profile: Option<Vec<u8>>,
) -> Result<(Vec<u8>, &'static str), NoPicture> {
    let alpha = picture.color().has_alpha();
    let mut bytes = Vec::new();
    if source == ImageFormat::Jpeg || source == ImageFormat::WebP && !alpha {
        let mut encoder = JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY);
        profile.and_then(|profile| encoder.set_icc_profile(profile).err());
        if picture.color().has_color() {
            encoder.encode_image(&picture.to_rgb8())?;
        } else {
            encoder.encode_image(&picture.to_luma8())?;
        }
        return Ok((bytes, "image/jpeg"));
    }
    let mut encoder = PngEncoder::new_with_quality(&mut bytes, CompressionType::Default, PngFilter::Adaptive);
    profile.and_then(|profile| encoder.set_icc_profile(profile).err());
    let eight_bits = match (picture.color().has_color(), alpha) {
        (true, true) => DynamicImage::ImageRgba8(picture.to_rgba8()),
        (true, false) => DynamicImage::ImageRgb8(picture.to_rgb8()),
        (false, true) => DynamicImage::ImageLumaA8(picture.to_luma_alpha8()),
        (false, false) => DynamicImage::ImageLuma8(picture.to_luma8()),
    };
    let (width, height) = (eight_bits.width(), eight_bits.height());
    encoder.write_image(eight_bits.as_bytes(), width, height, eight_bits.color().into())?;
    Ok((bytes, "image/png"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::testing::{apng, bomb_png, gif, jpeg_turned, picture};
    use image::codecs::webp::WebPEncoder;

    fn key(width: u32, height: u32, crop: bool, animated: bool) -> ThumbnailKey {
        ThumbnailKey { width, height, crop, animated }
    }

    fn encoded(format: ImageFormat, width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        DynamicImage::ImageRgb8(picture(width, height)).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn new(drawn: Result<Drawn, NoPicture>) -> (Vec<u8>, &'static str) {
        match drawn {
            Ok(Drawn::New(bytes, content_type)) => (bytes, content_type),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn scaled_into_the_size_or_cropped_to_it_and_never_made_larger() {
        let png = encoded(ImageFormat::Png, 400, 200);
        let size = |key| dimensions(&new(draw(&png, Some("image/png"), key)).0).unwrap();
        assert_eq!(size(key(320, 240, false, false)), (320, 160));
        assert_eq!(size(key(96, 96, true, false)), (96, 96));
        assert_eq!(size(key(640, 100, true, false)), (400, 100));
        for whole in [key(640, 480, false, false), key(0, 0, false, false), key(400, 200, true, true)] {
            assert_eq!(draw(&png, Some("image/png; x=y"), whole), Ok(Drawn::AsItIs));
        }
        // What says that it is something else is not handed on as it is.
        for other in [None, Some("text/html"), Some("image/jpeg")] {
            assert_eq!(new(draw(&png, other, key(640, 480, false, false))).1, "image/png");
        }
        assert_eq!(target(10_000, 1, key(320, 240, false, false)), (320, 1));
    }

    #[test]
    fn photographs_stay_photographs_and_stand_upright() {
        let jpeg = encoded(ImageFormat::Jpeg, 400, 200);
        assert_eq!(new(draw(&jpeg, None, key(96, 96, true, false))).1, "image/jpeg");
        let turned = jpeg_turned(&jpeg);
        assert_eq!(dimensions(&turned), Some((200, 400)));
        let (small, _) = new(draw(&turned, None, key(320, 240, false, false)));
        assert_eq!(dimensions(&small), Some((120, 240)));
        let mut webp = Vec::new();
        let rgb = picture(400, 200);
        WebPEncoder::new_lossless(&mut webp).encode(&rgb, 400, 200, image::ExtendedColorType::Rgb8).unwrap();
        // Pictures without loss, and still ones never move.
        assert_eq!(new(draw(&webp, None, key(96, 96, true, true))).1, "image/jpeg");
    }

    #[test]
    fn what_moves_does_so_only_where_it_may() {
        for (name, bytes, kind) in
            [("gif", gif(120, 80, 4), "image/gif"), ("apng", apng(120, 80, 4), "image/png")]
        {
            let (moving, content_type) = new(draw(&bytes, Some(kind), key(96, 96, false, true)));
            assert_eq!(content_type, "image/webp", "{name}");
            let decoder = WebPDecoder::new(Cursor::new(&moving)).unwrap();
            assert_eq!((decoder.has_animation(), decoder.dimensions()), (true, (96, 64)), "{name}");
            let frames = decoder.into_frames().collect_frames().unwrap();
            assert_eq!(frames.len(), 4, "{name}");
            assert_eq!(frames[0].delay().numer_denom_ms(), (100, 1), "{name}");
            // Each frame has a colour of its own in the middle.
            let colours: Vec<_> = frames.iter().map(|frame| frame.buffer().get_pixel(48, 32).0).collect();
            assert!(colours.windows(2).all(|pair| pair[0] != pair[1]), "{name} {colours:?}");
            // What was made can be made smaller again.
            let (smaller, kind) = new(draw(&moving, None, key(32, 32, true, true)));
            assert_eq!((kind, dimensions(&smaller)), ("image/webp", Some((32, 32))), "{name}");
            for still in [key(96, 96, false, false), key(0, 0, false, false), key(640, 480, false, false)] {
                assert_eq!(new(draw(&bytes, Some("image/gif"), still)).1, "image/png", "{name}");
            }
            assert_eq!(
                draw(
                    &bytes,
                    Some(if name == "gif" { "image/gif" } else { "image/png" }),
                    key(640, 480, false, true)
                ),
                Ok(Drawn::AsItIs)
            );
        }
        // One frame moves nowhere.
        assert_eq!(new(draw(&gif(120, 80, 1), Some("image/gif"), key(96, 96, false, true))).1, "image/png");
    }

    #[test]
    fn bombs_do_not_go_off() {
        let began = std::time::Instant::now();
        for (width, height) in [(60_000, 60_000), (1, 40_000), (40_000, 1), (u32::MAX >> 1, 1), (8000, 8000)]
        {
            assert_eq!(draw(&bomb_png(width, height), None, key(32, 32, true, true)), Err(NoPicture));
        }
        // A canvas of four gigapixels in a few bytes.
        let mut canvas = gif(10, 10, 3);
        canvas[6..10].copy_from_slice(&[0xff; 4]);
        assert_eq!(draw(&canvas, None, key(32, 32, true, true)), Err(NoPicture));
        // More frames than are ever shown: still, then.
        assert_eq!(new(draw(&gif(40, 4, 301), Some("image/gif"), key(32, 32, false, true))).1, "image/png");
        assert!(began.elapsed() < std::time::Duration::from_mins(1), "{:?}", began.elapsed());
    }

    #[test]
    fn nonsense_and_broken_pictures_are_refused_or_drawn_and_nothing_else() {
        for text in [
            &b""[..],
            b"no picture",
            b"<html><script>alert(1)</script>",
            b"\x89PNG\r\n\x1a\n",
            b"GIF89a",
            b"RIFF\0\0\0\0WEBPVP8 ",
        ] {
            assert_eq!(draw(text, Some("image/png"), key(32, 32, true, false)), Err(NoPicture));
        }
        // A page that begins like a picture is a picture, or nothing.
        let polyglot = [&b"GIF89a/*"[..], &[0; 20], b"*/=1;alert(1)<html>"].concat();
        assert_eq!(draw(&polyglot, Some("image/gif"), key(320, 240, false, true)), Err(NoPicture));
        let mut state = 1_u32;
        let mut random = move |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % below
        };
        for (bytes, rounds) in [
            (encoded(ImageFormat::Png, 40, 30), 60),
            (encoded(ImageFormat::Jpeg, 40, 30), 60),
            (gif(40, 30, 3), 60),
            (apng(40, 30, 3), 60),
        ] {
            for _ in 0..rounds {
                let mut broken = bytes.clone();
                broken.truncate(1 + random(bytes.len()));
                for _ in 0..3 {
                    let place = random(broken.len());
                    broken[place] = random(256) as u8;
                }
                let _ = draw(&broken, None, key(32, 32, true, true));
            }
        }
    }
}
