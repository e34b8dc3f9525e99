//! Small moving pictures of large ones (MSC2705): GIF, animated PNG and WebP become animated WebP.

use super::draw::{NoPicture, limits, scale, target};
use super::webp::{Animation, Frame};
use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::{WebPDecoder, WebPEncoder};
use image::metadata::LoopCount;
use image::{
    AnimationDecoder, DynamicImage, ExtendedColorType, Frames, GenericImageView, ImageDecoder, ImageFormat,
    RgbaImage,
};
use std::io::Cursor;
use std::time::{Duration, Instant};
use waxwing_storage::ThumbnailKey;

/// Frames of a moving thumbnail: half a minute at ten a second.
const MAX_FRAMES: usize = 300;
/// Pixels of one frame: each is decoded into the whole picture.
const MAX_FRAME_PIXELS: u64 = 8_000_000;
/// Pixels of all frames together.
const MAX_TOTAL_PIXELS: u64 = 400_000_000;
/// What one moving thumbnail may take of a core.
const MAX_TIME: Duration = Duration::from_secs(10);
/// Bytes of the result: above it a still picture serves people on slow networks better.
const MAX_BYTES: usize = 8 << 20;
/// What says that it is shown for less than this many milliseconds is shown for [`USUAL`], as browsers do.
const SHORTEST: u32 = 20;
const USUAL: u32 = 100;
/// The low bits of colours are noise of scaling that nobody sees and that costs half of the bytes.
const COLOUR_MASK: u8 = 0xf8;

/// The moving thumbnail; none when the picture does not fit into the limits, or is broken: then a still one serves.
pub(super) fn shrink(bytes: &[u8], format: ImageFormat, key: ThumbnailKey) -> Option<Vec<u8>> {
    let source = Cursor::new(bytes);
    let done = match format {
        ImageFormat::Gif => {
            let mut decoder = GifDecoder::new(source).ok()?;
            decoder.set_limits(limits()).ok()?;
            frames(decoder.dimensions(), loops(decoder.loop_count()), decoder.into_frames(), key)
        }
        ImageFormat::Png => {
            let decoder = PngDecoder::with_limits(source, limits()).ok()?;
            let dimensions = decoder.dimensions();
            let decoder = decoder.apng().ok()?;
            frames(dimensions, loops(decoder.loop_count()), decoder.into_frames(), key)
        }
        ImageFormat::WebP => {
            let decoder = WebPDecoder::new(source).ok()?;
            frames(decoder.dimensions(), loops(decoder.loop_count()), decoder.into_frames(), key)
        }
        _ => return None,
    };
    done.ok()
}

fn loops(count: LoopCount) -> u16 {
    match count {
        LoopCount::Infinite => 0,
        LoopCount::Finite(count) => u16::try_from(count.get()).unwrap_or(u16::MAX),
    }
}

fn frames(
    (width, height): (u32, u32),
    loops: u16,
    frames: Frames<'_>,
    key: ThumbnailKey,
) -> Result<Vec<u8>, NoPicture> {
    let began = Instant::now();
    let pixels = u64::from(width) * u64::from(height);
    let (small_width, small_height) = target(width, height, key);
    if pixels > MAX_FRAME_PIXELS {
        return Err(NoPicture);
    }
    let mut animation = Animation::new(small_width, small_height, loops);
    let mut before: Option<RgbaImage> = None;
    for (number, frame) in frames.enumerate() {
        let late = began.elapsed() > MAX_TIME || animation.len() > MAX_BYTES;
        if late || number >= MAX_FRAMES || pixels * (number as u64 + 1) > MAX_TOTAL_PIXELS {
            return Err(NoPicture);
        }
        let frame = frame?;
        let (numerator, denominator) = frame.delay().numer_denom_ms();
        let duration = numerator / denominator.max(1);
        let duration = if duration < SHORTEST { USUAL } else { duration };
        let mut small = scale(DynamicImage::ImageRgba8(frame.into_buffer()), key)?.into_rgba8();
        coarsen(&mut small);
        let changed =
            before.as_ref().map_or((0, 0, small_width, small_height), |before| difference(before, &small));
        push(&mut animation, &small, changed, duration)?;
        before = Some(small);
    }
    if before.is_none() {
        return Err(NoPicture);
    }
    Ok(animation.finish())
}

/// Drops what nobody sees; pixels that are not seen at all become equal.
fn coarsen(picture: &mut RgbaImage) {
    for pixel in picture.pixels_mut() {
        let [red, green, blue, alpha] = pixel.0;
        let coarse = |value: u8| value & COLOUR_MASK | value >> 5;
        pixel.0 = match alpha {
            0 => [0; 4],
            _ => [coarse(red), coarse(green), coarse(blue), coarse(alpha)],
        };
    }
}

/// The smallest rectangle (left, top, width, height) outside which both are equal; it begins at even pixels, and has
/// one pixel at least.
fn difference(before: &RgbaImage, now: &RgbaImage) -> (u32, u32, u32, u32) {
    let (mut left, mut top, mut right, mut bottom) = (u32::MAX, u32::MAX, 0, 0);
    for ((x, y, a), b) in before.enumerate_pixels().zip(now.pixels()) {
        if a != b {
            (left, top) = (left.min(x), top.min(y));
            (right, bottom) = (right.max(x + 1), bottom.max(y + 1));
        }
    }
    if right == 0 {
        return (0, 0, 1, 1);
    }
    (left, top) = (left & !1, top & !1);
    (left, top, right - left, bottom - top)
}

fn push(
    animation: &mut Animation,
    picture: &RgbaImage,
    (left, top, width, height): (u32, u32, u32, u32),
    duration: u32,
) -> Result<(), NoPicture> {
    let part = picture.view(left, top, width, height).to_image();
    let mut still = Vec::new();
    WebPEncoder::new_lossless(&mut still).encode(&part, width, height, ExtendedColorType::Rgba8)?;
    let frame = Frame { left, top, width, height, duration, still: &still };
    if animation.push(&frame) { Ok(()) } else { Err(NoPicture) }
}
