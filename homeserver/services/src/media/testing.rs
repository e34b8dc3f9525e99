//! Pictures for tests.

use image::codecs::gif::{GifEncoder, Repeat};
use image::codecs::png::PngEncoder;
use image::{Delay, ExtendedColorType, Frame, ImageEncoder, RgbImage, Rgba, RgbaImage};

/// A picture in which every corner differs.
pub fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, 90])
    })
}

fn frame(width: u32, height: u32, number: u32) -> RgbaImage {
    RgbaImage::from_fn(width, height, |x, _| {
        let colour = (number * 60 % 256) as u8;
        if x > width / 4 { Rgba([colour, 255 - colour, 0, 255]) } else { Rgba([0, 0, 200, 255]) }
    })
}

/// A GIF of frames that are shown for a tenth of a second each.
pub fn gif(width: u32, height: u32, frames: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new_with_speed(&mut bytes, 30);
    encoder.set_repeat(Repeat::Infinite).unwrap();
    for number in 0..frames {
        let picture = frame(width, height, number);
        let delay = Delay::from_numer_denom_ms(100, 1);
        encoder.encode_frame(Frame::from_parts(picture, 0, 0, delay)).unwrap();
    }
    drop(encoder);
    bytes
}

fn png(picture: &RgbaImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoder = PngEncoder::new(&mut bytes);
    encoder.write_image(picture, picture.width(), picture.height(), ExtendedColorType::Rgba8).unwrap();
    bytes
}

/// <https://www.w3.org/TR/png-3/#5CRC-algorithm>
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 },
        )
    })
}

fn chunk(bytes: &mut Vec<u8>, name: [u8; 4], content: &[u8]) {
    bytes.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
    let named = [&name[..], content].concat();
    bytes.extend(&named);
    bytes.extend(crc(&named).to_be_bytes());
}

/// The contents of the chunks of a kind.
fn chunks(png: &[u8], name: [u8; 4]) -> Vec<Vec<u8>> {
    let (mut found, mut at) = (Vec::new(), 8);
    while at < png.len() {
        let length = u32::from_be_bytes(png[at..at + 4].try_into().unwrap()) as usize;
        if png[at + 4..at + 8] == name {
            found.push(png[at + 8..at + 8 + length].to_vec());
        }
        at += 12 + length;
    }
    found
}

/// An animated PNG. <https://www.w3.org/TR/png-3/#apng-frame-based-animation>
pub fn apng(width: u32, height: u32, frames: u32) -> Vec<u8> {
    let stills: Vec<Vec<u8>> = (0..frames).map(|number| png(&frame(width, height, number))).collect();
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    chunk(&mut bytes, *b"IHDR", &chunks(&stills[0], *b"IHDR")[0]);
    chunk(&mut bytes, *b"acTL", &[frames.to_be_bytes(), [0; 4]].concat());
    let mut sequence = 0_u32;
    for (number, still) in stills.iter().enumerate() {
        let numbers = [sequence, width, height, 0, 0].map(u32::to_be_bytes).concat();
        // A tenth of a second; the frame replaces what is there.
        chunk(&mut bytes, *b"fcTL", &[&numbers[..], &[0, 1, 0, 10, 0, 0]].concat());
        sequence += 1;
        let data = chunks(still, *b"IDAT").concat();
        if number == 0 {
            chunk(&mut bytes, *b"IDAT", &data);
        } else {
            chunk(&mut bytes, *b"fdAT", &[&sequence.to_be_bytes()[..], &data].concat());
            sequence += 1;
        }
    }
    chunk(&mut bytes, *b"IEND", &[]);
    bytes
}

/// A PNG that says it is large and has next to nothing.
pub fn bomb_png(width: u32, height: u32) -> Vec<u8> {
    let small = png(&frame(1, 1, 0));
    let mut head = chunks(&small, *b"IHDR")[0].clone();
    head[..4].copy_from_slice(&width.to_be_bytes());
    head[4..8].copy_from_slice(&height.to_be_bytes());
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    chunk(&mut bytes, *b"IHDR", &head);
    chunk(&mut bytes, *b"IDAT", &chunks(&small, *b"IDAT")[0]);
    chunk(&mut bytes, *b"IEND", &[]);
    bytes
}

/// The JPEG with a note that the camera was held sideways.
pub fn jpeg_turned(jpeg: &[u8]) -> Vec<u8> {
    let exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let length = u16::try_from(exif.len() + 2).unwrap().to_be_bytes();
    [&jpeg[..2], &[0xff, 0xe1], &length, &exif[..], &jpeg[2..]].concat()
}
