//! Where the bytes of files are: a folder, or a bucket that speaks the S3 protocol. Bytes go in and come out in pieces;
//! what breaks off leaves nothing.

use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    Certificate, ClientOptions, Error, GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt,
};
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Parts in flight to the store: with the one that is being filled they bound the memory of one upload.
const PARTS_IN_FLIGHT: usize = 2;
/// Bytes of a part in a folder: enough to amortise a write.
const FOLDER_PART: usize = 512 * 1024;
/// Bytes of a part in a bucket: the least that S3 takes, and all of one size, as some others demand.
const BUCKET_PART: usize = 5 * 1024 * 1024;
/// A sender that pauses longer has gone.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest that one file may take to come.
const WHOLE: Duration = Duration::from_hours(6);
/// One request to a bucket, from the first look-up to the last byte of a part or the next piece of a download.
const BUCKET_TIMEOUT: Duration = Duration::from_mins(2);

/// A bucket and how it is spoken to. It has no `Debug`: it holds a secret.
#[derive(Clone, Default)]
pub struct BucketSettings {
    /// The bucket.
    pub bucket: String,
    /// What stands before the name of each object; may be empty.
    pub prefix: String,
    /// The server; none: Amazon's of the region.
    pub endpoint: Option<String>,
    /// The region.
    pub region: String,
    /// The access key and its secret; none: taken from the environment (`AWS_ACCESS_KEY_ID`, …) or from the machine.
    pub key: Option<(String, String)>,
    /// Whether the bucket is part of the host name rather than of the path.
    pub virtual_hosted: bool,
    /// Certificate authorities to trust beside the system's, DER.
    pub extra_roots: Vec<Vec<u8>>,
}

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// Bytes.
    pub size: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

/// Why a file was not written. Nothing of it stays.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// It has more bytes than it may.
    #[error("it is too large")]
    TooLarge,
    /// The sender broke off, or stalled.
    #[error("{0}")]
    Broken(String),
    /// The store.
    #[error(transparent)]
    Objects(#[from] Error),
}

/// The object store. Cheap to clone.
#[derive(Clone)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    part: usize,
    /// Where files are, if that is a folder.
    folder: Option<PathBuf>,
}

impl Objects {
    /// Files in a folder, which is there. A file is on disk before anything names it.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn folder(path: &std::path::Path) -> Result<Objects, Error> {
        let store = LocalFileSystem::new_with_prefix(path)?.with_fsync(true);
        Ok(Objects { store: Arc::new(store), part: FOLDER_PART, folder: Some(path.to_owned()) })
    }

    /// Files in a bucket. Connects to nothing yet.
    ///
    /// # Errors
    /// When the settings make no sense.
    pub fn bucket(settings: BucketSettings) -> Result<Objects, Error> {
        let mut options = ClientOptions::new().with_timeout(BUCKET_TIMEOUT);
        for root in &settings.extra_roots {
            options = options.with_root_certificate(Certificate::from_der(root)?);
        }
        let builder = match settings.key {
            Some((id, secret)) => {
                AmazonS3Builder::new().with_access_key_id(id).with_secret_access_key(secret)
            }
            None => AmazonS3Builder::from_env(),
        };
        let mut builder = builder
            .with_bucket_name(settings.bucket)
            .with_region(settings.region)
            .with_virtual_hosted_style_request(settings.virtual_hosted)
            .with_client_options(options);
        if let Some(endpoint) = settings.endpoint {
            // Whoever writes `http` means it.
            builder = builder.with_allow_http(endpoint.starts_with("http:")).with_endpoint(endpoint);
        }
        let store = PrefixStore::new(builder.build()?, settings.prefix);
        Ok(Objects { store: Arc::new(store), part: BUCKET_PART, folder: None })
    }

    /// Streams `body` into the object `name`, at most `limit` bytes.
    pub(super) async fn write<S>(&self, name: &str, body: S, limit: u64) -> Result<Written, WriteError>
    where
        S: Stream<Item = Result<Bytes, WriteError>> + Send,
    {
        let writing = self.write_slowly(name, body, limit);
        let late = || WriteError::Broken("it took too long".to_owned());
        timeout(WHOLE, writing).await.map_err(|_| late())?
    }

    async fn write_slowly<S>(&self, name: &str, body: S, limit: u64) -> Result<Written, WriteError>
    where
        S: Stream<Item = Result<Bytes, WriteError>> + Send,
    {
        let mut parts = Parts::new(self, name);
        let (mut size, mut hash) = (0_u64, Sha256::new());
        let mut body = pin!(body);
        loop {
            let next = timeout(PATIENCE, body.next()).await;
            let next = next.map_err(|_| WriteError::Broken("the sender stalled".to_owned()))?;
            let Some(bytes) = next.transpose()? else { break };
            size += bytes.len() as u64;
            if size > limit {
                return Err(WriteError::TooLarge);
            }
            hash.update(&bytes);
            parts.push(&bytes).await?;
        }
        parts.finish().await?;
        Ok(Written { size, sha256: hex(&hash.finalize()) })
    }

    /// The bytes of an object, or of a part of it.
    pub(super) async fn read(
        &self,
        name: &str,
        range: Option<Range<u64>>,
    ) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        Ok(self.store.get_opts(&Path::from(name), options).await?.into_stream())
    }

    /// The whole of an object that is known to be small.
    pub(super) async fn read_all(&self, name: &str) -> Result<Bytes, Error> {
        self.store.get(&Path::from(name)).await?.bytes().await
    }

    /// Removes an object; one that is not there is gone already.
    pub(super) async fn remove(&self, name: &str) -> Result<(), Error> {
        if let Some(folder) = &self.folder {
            // What a crash left of it under the name that it has until it is whole.
            let _ = tokio::fs::remove_file(folder.join(format!("{name}#1"))).await;
        }
        match self.store.delete(&Path::from(name)).await {
            Err(Error::NotFound { .. }) => Ok(()),
            other => other,
        }
    }
}

/// An object that is being written, part after part. Dropped before it is finished, nothing of it stays.
struct Parts<'a> {
    objects: &'a Objects,
    path: Path,
    buffer: BytesMut,
    /// Begun with the first full part: a smaller file is one request.
    upload: Option<Box<dyn MultipartUpload>>,
    running: JoinSet<Result<(), Error>>,
}

impl<'a> Parts<'a> {
    fn new(objects: &'a Objects, name: &str) -> Parts<'a> {
        let (path, buffer) = (Path::from(name), BytesMut::new());
        Parts { objects, path, buffer, upload: None, running: JoinSet::new() }
    }

    async fn push(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let part = self.objects.part;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(part - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            rest = later;
            if self.buffer.len() == part {
                self.send().await?;
            }
        }
        Ok(())
    }

    async fn send(&mut self) -> Result<(), WriteError> {
        let bytes = std::mem::take(&mut self.buffer).freeze();
        while self.running.len() >= PARTS_IN_FLIGHT {
            self.landed().await?;
        }
        let upload = match &mut self.upload {
            Some(upload) => upload,
            none => none.insert(self.objects.store.put_multipart(&self.path).await?),
        };
        self.running.spawn(upload.put_part(bytes.into()));
        Ok(())
    }

    async fn landed(&mut self) -> Result<(), WriteError> {
        match self.running.join_next().await {
            Some(Ok(done)) => Ok(done?),
            Some(Err(error)) => Err(WriteError::Broken(error.to_string())),
            None => Ok(()),
        }
    }

    async fn finish(mut self) -> Result<(), WriteError> {
        if self.upload.is_none() {
            let bytes = std::mem::take(&mut self.buffer).freeze();
            self.objects.store.put(&self.path, bytes.into()).await?;
            return Ok(());
        }
        if !self.buffer.is_empty() {
            self.send().await?;
        }
        while !self.running.is_empty() {
            self.landed().await?;
        }
        if let Some(upload) = &mut self.upload {
            upload.complete().await?;
        }
        self.upload = None;
        Ok(())
    }
}

impl Drop for Parts<'_> {
    fn drop(&mut self) {
        let Some(mut upload) = self.upload.take() else { return };
        let mut running = std::mem::take(&mut self.running);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        // A bucket keeps, and counts, the parts of an upload that nobody ends.
        runtime.spawn(async move {
            running.shutdown().await;
            if let Err(error) = upload.abort().await {
                tracing::warn!(%error, "the parts of a file that broke off could not be removed");
            }
        });
    }
}

/// Hexadecimal, small letters.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    fn objects(part: usize) -> (Objects, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let mut objects = Objects::folder(folder.path()).unwrap();
        objects.part = part;
        (objects, folder)
    }

    fn body(pieces: &[&[u8]]) -> impl Stream<Item = Result<Bytes, WriteError>> + Send + use<> {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        stream::iter(pieces)
    }

    fn files(folder: &std::path::Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[tokio::test]
    async fn what_comes_in_pieces_of_any_size_comes_out_whole() {
        let bytes: Vec<u8> = (0..100_u8).collect();
        for (part, piece) in [(1, 1), (7, 3), (10, 10), (10, 50), (50, 100), (1000, 9), (99, 100), (100, 100)]
        {
            let (objects, _folder) = objects(part);
            let pieces: Vec<&[u8]> = bytes.chunks(piece).collect();
            let written = objects.write("a/b", body(&pieces), 100).await.unwrap();
            assert_eq!(written, Written { size: 100, sha256: hex(&Sha256::digest(&bytes)) });
            assert_eq!(objects.read_all("a/b").await.unwrap(), bytes, "{part} {piece}");
            let range: Vec<Bytes> =
                objects.read("a/b", Some(20..30)).await.unwrap().map(Result::unwrap).collect().await;
            assert_eq!(range.concat(), &bytes[20..30]);
        }
    }

    #[tokio::test]
    async fn an_empty_file_is_one() {
        let (objects, _folder) = objects(10);
        let written = objects.write("empty", body(&[]), 0).await.unwrap();
        assert_eq!((written.size, objects.read_all("empty").await.unwrap().len()), (0, 0));
        objects.remove("empty").await.unwrap();
        objects.remove("empty").await.unwrap();
    }

    #[tokio::test]
    async fn what_breaks_off_or_grows_too_large_leaves_nothing() {
        let (objects, folder) = objects(4);
        let broken = body(&[b"0123456789"]).chain(stream::iter([Err(WriteError::Broken("gone".to_owned()))]));
        assert!(matches!(objects.write("a", broken, 100).await, Err(WriteError::Broken(_))));
        let large = objects.write("b", body(&[b"01234", b"56789"]), 9).await;
        assert!(matches!(large, Err(WriteError::TooLarge)));
        // Whoever waited for it has gone.
        let endless = body(&[b"0123456789"]).chain(stream::pending());
        let waiting = timeout(Duration::from_millis(50), objects.write("c", endless, 100));
        assert!(waiting.await.is_err());
        for _ in 0..100 {
            if files(folder.path()) == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{} files stay", files(folder.path()));
    }
}
