//! Animated WebP, put together from frames that are still WebP pictures without loss.
//! <https://developers.google.com/speed/webp/docs/riff_container>

/// The chunk of a picture without loss.
const STILL: &[u8; 4] = b"VP8L";
/// The animation flag of the extended header, and that there may be transparent pixels.
const ANIMATED: u8 = 0x02;
const ALPHA: u8 = 0x10;
/// The frame replaces what it covers instead of being blended with it; what it leaves stays for the next.
const OVERWRITE: u8 = 0x02;
/// The largest number that three bytes hold.
const MAX_24: u32 = (1 << 24) - 1;

/// One frame: where it goes, for how long it is shown, and what it shows.
pub(super) struct Frame<'a> {
    /// Pixels from the left; even.
    pub left: u32,
    /// Pixels from the top; even.
    pub top: u32,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Milliseconds.
    pub duration: u32,
    /// A whole still WebP file, without loss and without metadata.
    pub still: &'a [u8],
}

/// An animated WebP file that grows frame by frame.
pub(super) struct Animation {
    bytes: Vec<u8>,
}

impl Animation {
    /// An animation of this many pixels, each at least one, that is shown `loops` times (zero: for ever).
    pub fn new(width: u32, height: u32, loops: u16) -> Animation {
        let mut bytes = b"RIFF\0\0\0\0WEBP".to_vec();
        let mut head = vec![ANIMATED | ALPHA, 0, 0, 0];
        push_24(&mut head, width - 1);
        push_24(&mut head, height - 1);
        chunk(&mut bytes, *b"VP8X", &[&head]);
        // A background of transparent pixels.
        let loops = loops.to_le_bytes();
        chunk(&mut bytes, *b"ANIM", &[&[0, 0, 0, 0], &loops]);
        Animation { bytes }
    }

    /// Adds a frame. Returns false when `still` is no picture of the kind.
    pub fn push(&mut self, frame: &Frame<'_>) -> bool {
        let Some(picture) = picture(frame.still) else { return false };
        debug_assert!(frame.left.is_multiple_of(2) && frame.top.is_multiple_of(2));
        let mut head = Vec::with_capacity(16);
        push_24(&mut head, frame.left / 2);
        push_24(&mut head, frame.top / 2);
        push_24(&mut head, frame.width - 1);
        push_24(&mut head, frame.height - 1);
        push_24(&mut head, frame.duration.min(MAX_24));
        head.push(OVERWRITE);
        chunk(&mut self.bytes, *b"ANMF", &[&head, picture]);
        true
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The whole file.
    pub fn finish(mut self) -> Vec<u8> {
        let size = u32::try_from(self.bytes.len() - 8).unwrap_or(u32::MAX);
        self.bytes[4..8].copy_from_slice(&size.to_le_bytes());
        self.bytes
    }
}

fn push_24(bytes: &mut Vec<u8>, number: u32) {
    bytes.extend_from_slice(&number.to_le_bytes()[..3]);
}

/// Appends a chunk; one of an odd size is followed by a byte that does not count.
fn chunk(bytes: &mut Vec<u8>, name: [u8; 4], pieces: &[&[u8]]) {
    let size: usize = pieces.iter().map(|piece| piece.len()).sum();
    bytes.extend_from_slice(&name);
    bytes.extend_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes());
    for piece in pieces {
        bytes.extend_from_slice(piece);
    }
    if size % 2 == 1 {
        bytes.push(0);
    }
}

/// The picture's chunk in a still file, with its header and padding.
fn picture(file: &[u8]) -> Option<&[u8]> {
    let chunk = file.get(12..)?;
    let size = u32::from_le_bytes(chunk.get(4..8)?.try_into().ok()?) as usize;
    let end = 8 + size.checked_next_multiple_of(2)?;
    (chunk.starts_with(STILL) && chunk.len() >= end).then(|| &chunk[..end])
}
