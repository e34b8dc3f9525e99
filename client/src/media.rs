//! Attachments: encrypted before they leave, decrypted after they arrive.

use std::io::{Cursor, Read};

use client_ruma::{
    OwnedEventId, RoomId, UInt,
    api::client::{authenticated_media::get_content, media::create_content},
    events::room::{
        EncryptedFile, MediaSource,
        message::{
            AudioMessageEventContent, FileInfo, FileMessageEventContent, ImageMessageEventContent,
            MessageType, RoomMessageEventContent, VideoMessageEventContent,
        },
    },
};
use matrix_sdk_crypto::{AttachmentDecryptor, AttachmentEncryptor};

use crate::{
    client::Client,
    error::{Error, Result},
    timeline::Attachment,
};

const SEALED_MEDIA_TYPE: &str = "application/octet-stream";

/// What the server gets, and what only the recipients get.
struct SealedFile {
    ciphertext: Vec<u8>,
    key: matrix_sdk_crypto::MediaEncryptionInfo,
}

impl Client {
    /// Encrypts `data`, uploads the ciphertext and sends the key in a sealed message.
    pub async fn send_file(
        &self,
        room: &RoomId,
        name: &str,
        media_type: Option<&str>,
        data: &[u8],
    ) -> Result<OwnedEventId> {
        // Before anything leaves: a room that is not encrypted gets no file.
        self.complete_members(room).await?;
        self.share_room_key(room).await?;
        let sealed = seal(data)?;
        let mut upload = create_content::v3::Request::new(sealed.ciphertext);
        // Neither the name nor the type of a sealed file is the server's business.
        upload.content_type = Some(SEALED_MEDIA_TYPE.to_owned());
        let uri = self.http().send(upload).await?.content_uri;
        let file = EncryptedFile::new(uri, sealed.key.encryption_info, sealed.key.hashes);
        let media_type = media_type.unwrap_or_else(|| guess_media_type(name));
        let message = message(name, media_type, data.len() as u64, file);
        self.send_content(room, RoomMessageEventContent::new(message)).await
    }

    /// Fetches an attachment and decrypts it; a changed ciphertext is an error.
    pub async fn download(&self, attachment: &Attachment) -> Result<Vec<u8>> {
        let uri = match &attachment.source {
            MediaSource::Encrypted(file) => &file.url,
            MediaSource::Plain(uri) => uri,
        };
        let request = get_content::v1::Request::from_uri(uri)
            .map_err(|error| Error::Answer(format!("media address: {error}")))?;
        let data = self.http().send(request).await?.file;
        match &attachment.source {
            MediaSource::Encrypted(file) => open(&data, (**file).clone()),
            MediaSource::Plain(_) => Ok(data),
        }
    }
}

fn seal(data: &[u8]) -> Result<SealedFile> {
    let mut reader = Cursor::new(data);
    let mut encryptor = AttachmentEncryptor::new(&mut reader);
    let mut ciphertext = Vec::with_capacity(data.len());
    encryptor.read_to_end(&mut ciphertext).map_err(|error| Error::Answer(error.to_string()))?;
    Ok(SealedFile { ciphertext, key: encryptor.finish() })
}

fn open(ciphertext: &[u8], file: EncryptedFile) -> Result<Vec<u8>> {
    let mut reader = Cursor::new(ciphertext);
    let mut decryptor = AttachmentDecryptor::new(&mut reader, file.into())?;
    let mut data = Vec::with_capacity(ciphertext.len());
    // The reader checks the hash when it reaches the end.
    decryptor.read_to_end(&mut data).map_err(|error| Error::Answer(format!("attachment: {error}")))?;
    Ok(data)
}

fn message(name: &str, media_type: &str, size: u64, file: EncryptedFile) -> MessageType {
    let body = name.to_owned();
    let size = UInt::new(size);
    let media_type = Some(media_type.to_owned());
    match media_type.as_deref().and_then(|kind| kind.split('/').next()) {
        Some("image") => {
            let mut content = ImageMessageEventContent::encrypted(body, file);
            let info = content.info.get_or_insert_default();
            (info.mimetype, info.size) = (media_type, size);
            MessageType::Image(content)
        }
        Some("audio") => {
            let mut content = AudioMessageEventContent::encrypted(body, file);
            let info = content.info.get_or_insert_default();
            (info.mimetype, info.size) = (media_type, size);
            MessageType::Audio(content)
        }
        Some("video") => {
            let mut content = VideoMessageEventContent::encrypted(body, file);
            let info = content.info.get_or_insert_default();
            (info.mimetype, info.size) = (media_type, size);
            MessageType::Video(content)
        }
        _ => {
            let mut content = FileMessageEventContent::encrypted(body, file);
            let mut info = FileInfo::new();
            (info.mimetype, info.size) = (media_type, size);
            content.info = Some(Box::new(info));
            MessageType::File(content)
        }
    }
}

/// Enough for a receiving client to choose how to show the file.
fn guess_media_type(name: &str) -> &'static str {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    match extension.as_deref() {
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("gif") => "image/gif",
        Some("webp") => "image/webp",
        Some("mp3") => "audio/mpeg",
        Some("ogg" | "opus") => "audio/ogg",
        Some("mp4") => "video/mp4",
        Some("webm") => "video/webm",
        Some("txt" | "md") => "text/plain",
        Some("pdf") => "application/pdf",
        _ => SEALED_MEDIA_TYPE,
    }
}

#[cfg(test)]
mod tests {
    use client_ruma::owned_mxc_uri;

    use super::*;

    fn sealed_file(data: &[u8]) -> (Vec<u8>, EncryptedFile) {
        let sealed = seal(data).unwrap();
        let uri = owned_mxc_uri!("mxc://example.org/abc");
        (sealed.ciphertext, EncryptedFile::new(uri, sealed.key.encryption_info, sealed.key.hashes))
    }

    #[test]
    fn a_file_survives_and_its_ciphertext_differs() {
        let data = b"the minutes of the last meeting".repeat(1000);
        let (ciphertext, file) = sealed_file(&data);
        assert_eq!(ciphertext.len(), data.len());
        assert_ne!(ciphertext, data);
        assert_eq!(open(&ciphertext, file).unwrap(), data);
    }

    #[test]
    fn a_changed_ciphertext_is_refused() {
        let (mut ciphertext, file) = sealed_file(b"pay 10");
        ciphertext[0] ^= 1;
        assert!(open(&ciphertext, file).is_err());
    }

    #[test]
    fn the_media_type_chooses_the_message() {
        let (_, file) = sealed_file(b"x");
        assert!(matches!(message("a.png", "image/png", 1, file.clone()), MessageType::Image(_)));
        assert!(matches!(message("a.bin", "application/x", 1, file), MessageType::File(_)));
        assert_eq!(guess_media_type("Minutes.TXT"), "text/plain");
        assert_eq!(guess_media_type("Makefile"), SEALED_MEDIA_TYPE);
    }
}
