//! Thumbnails of real pictures.

use super::{DOWNLOAD, THUMBNAIL, files, get, upload};
use crate::http::Raw;
use crate::site::{Shape, Site};
use image::codecs::gif::{GifEncoder, Repeat};
use image::codecs::webp::WebPDecoder;
use image::{AnimationDecoder, Delay, DynamicImage, Frame, ImageFormat, Rgba, RgbaImage};
use std::io::Cursor;

/// A picture as a file.
pub fn picture(format: ImageFormat, width: u32, height: u32) -> Vec<u8> {
    let picture = RgbaImage::from_fn(width, height, |x, y| {
        Rgba([(x * 255 / width) as u8, (y * 255 / height) as u8, 120, 255])
    });
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::ImageRgba8(picture).into_rgb8().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn gif(width: u32, height: u32, frames: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new_with_speed(&mut bytes, 30);
    encoder.set_repeat(Repeat::Infinite).unwrap();
    for number in 0..frames {
        let picture = RgbaImage::from_pixel(width, height, Rgba([number * 50, 0, 255 - number * 50, 255]));
        let delay = Delay::from_numer_denom_ms(100, 1);
        encoder.encode_frame(Frame::from_parts(picture, 0, 0, delay)).unwrap();
    }
    drop(encoder);
    bytes
}

fn size(bytes: &[u8]) -> (u32, u32) {
    let picture = image::load_from_memory(bytes).unwrap();
    (picture.width(), picture.height())
}

async fn thumbnails(site: Site) {
    let alice = Raw::register(&site.url, "alice").await;
    let media = site.folder.path().join("media");
    let photo = upload(&alice, "image/jpeg", picture(ImageFormat::Jpeg, 1000, 500)).await;
    let small = |uri: &str, query: &str| format!("{THUMBNAIL}/{uri}?{query}");
    for (query, expected, kind) in [
        ("width=320&height=240&method=scale", (320, 160), "image/jpeg"),
        ("width=300&height=200", (320, 160), "image/jpeg"),
        ("width=20&height=30&method=crop", (32, 32), "image/jpeg"),
        ("width=96&height=96&method=crop&animated=true", (96, 96), "image/jpeg"),
        ("width=5000&height=5000", (1000, 500), "image/jpeg"),
    ] {
        let served = get(&alice, &small(&photo, query), &[]).await;
        assert_eq!(served.status.as_u16(), 200, "{query} {}", String::from_utf8_lossy(&served.bytes));
        assert_eq!((size(&served.bytes), served.header("content-type")), (expected, kind), "{query}");
        assert!(served.header("content-disposition").starts_with("inline"), "{query}");
    }
    // Made once, whichever node is asked: the picture and three thumbnails (an animation of a photograph is one more).
    let kept = files(&media);
    let mut tags = Vec::new();
    for node in &site.nodes {
        let who = alice.at(&node.client_url());
        tags.push(get(&who, &small(&photo, "width=320&height=240"), &[]).await.header("etag").to_owned());
    }
    assert!(tags.iter().all(|tag| *tag == tags[0] && !tag.is_empty()), "{tags:?}");
    assert_eq!(files(&media), kept);
    let moving = upload(&alice, "image/gif", gif(200, 100, 3)).await;
    let served = get(&alice, &small(&moving, "width=96&height=96&animated=true"), &[]).await;
    assert_eq!(served.header("content-type"), "image/webp");
    let decoder = WebPDecoder::new(Cursor::new(&served.bytes)).unwrap();
    assert_eq!(decoder.into_frames().collect_frames().unwrap().len(), 3);
    for query in
        ["width=96&height=96", "width=96&height=96&animated=false", "width=640&height=480&method=scale"]
    {
        let served = get(&alice, &small(&moving, query), &[]).await;
        assert_eq!(served.header("content-type"), "image/png", "{query}");
    }
    let whole = get(&alice, &small(&moving, "width=640&height=480&animated=true"), &[]).await;
    assert_eq!(whole.header("content-type"), "image/gif");
}

in_each_shape!(thumbnails);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_picture_has_no_thumbnail() {
    let site = Site::start(Shape::Sqlite).await.unwrap();
    let alice = Raw::register(&site.url, "alice").await;
    let mut cut = picture(ImageFormat::Png, 600, 400);
    cut.truncate(60);
    for (kind, bytes) in [
        ("image/png", b"<html><script>alert(1)</script></html>".to_vec()),
        ("image/png", Vec::new()),
        ("image/png", cut),
        ("video/mp4", vec![0; 1000]),
        ("image/svg+xml", b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec()),
    ] {
        let uri = upload(&alice, kind, bytes).await;
        for _ in 0..2 {
            let answer = alice.get(&format!("{THUMBNAIL}/{uri}?width=96&height=96")).await;
            answer.refused(400, "M_UNKNOWN");
        }
        assert_eq!(get(&alice, &format!("{DOWNLOAD}/{uri}"), &[]).await.status.as_u16(), 200);
    }
    let uri = upload(&alice, "image/png", picture(ImageFormat::Png, 40, 40)).await;
    for (query, code) in [
        ("", "M_MISSING_PARAM"),
        ("width=32", "M_MISSING_PARAM"),
        ("width=0&height=32", "M_INVALID_PARAM"),
        ("width=-1&height=32", "M_INVALID_PARAM"),
        ("width=32&height=32&method=stretch", "M_INVALID_PARAM"),
        ("width=32&height=32&animated=maybe", "M_INVALID_PARAM"),
    ] {
        alice.get(&format!("{THUMBNAIL}/{uri}?{query}")).await.refused(400, code);
    }
    // Forty who want one thumbnail at once get one.
    let mut many = Vec::new();
    for _ in 0..40 {
        let (alice, path) = (alice.clone(), format!("{THUMBNAIL}/{uri}?width=32&height=32&method=crop"));
        many.push(tokio::spawn(async move { get(&alice, &path, &[]).await }));
    }
    for served in many {
        assert_eq!(size(&served.await.unwrap().bytes), (32, 32));
    }
}
