use futures_util::{FutureExt, StreamExt};
use ruma::serde::Base64;
use ruma::{OwnedServerName, OwnedServerSigningKeyId, ServerName};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use waxwing_rooms::sign::verify_json;

use super::ring::KeyRing;
use crate::canonical::canonical_object;
use crate::ports::PortResult;

/// Servers answered for in one query. Each unknown one costs a request to it.
const MAX_SERVERS: usize = 100;
/// Of those, fetched at the same time.
const PARALLEL: usize = 16;

/// A question to us as a notary: per server the keys asked for (none: all) with the time until which they should
/// count.
pub type NotaryQuery = BTreeMap<OwnedServerName, BTreeMap<OwnedServerSigningKeyId, u64>>;

/// Answers `GET` and `POST /_matrix/key/v2/query`: the documents that can be had, each with our signature added. A
/// document of a dead server is given although it is old; of a server that nothing is known of, nothing.
/// <https://spec.matrix.org/v1.19/server-server-api/#querying-keys-through-another-server>
pub async fn answer_notary_query(
    ring: &KeyRing,
    query: NotaryQuery,
    now: u64,
) -> PortResult<Vec<Box<RawValue>>> {
    let mut answers = Vec::new();
    for (server, wanted) in query.into_iter().take(MAX_SERVERS) {
        let answer = async move {
            if *server == *ring.own().server() {
                return PortResult::Ok(ring.own().document(now).ok());
            }
            let document = ring.document(&server, &wanted).await?;
            Ok(document.and_then(|json| ring.own().countersign(&json).ok()))
        };
        answers.push(answer.boxed());
    }
    let mut documents = Vec::new();
    let mut answers = futures_util::stream::iter(answers).buffered(PARALLEL);
    while let Some(answer) = answers.next().await {
        documents.extend(answer?);
    }
    Ok(documents)
}

/// The id of an ed25519 key with which `server` says that it signed the document.
pub(super) fn signature_of(json: &RawValue, server: &ServerName) -> Option<OwnedServerSigningKeyId> {
    #[derive(Deserialize)]
    struct Signed {
        signatures: BTreeMap<String, BTreeMap<String, String>>,
    }
    let signed: Signed = serde_json::from_str(json.get()).ok()?;
    let ids = signed.signatures.get(server.as_str())?.keys();
    ids.filter(|id| id.starts_with("ed25519:"))
        .find_map(|id| OwnedServerSigningKeyId::try_from(id.as_str()).ok())
}

/// Whether the document carries a valid signature of `server` by this key.
pub(super) fn signed_by(
    json: &RawValue,
    server: &ServerName,
    id: &OwnedServerSigningKeyId,
    key: &[u8],
) -> bool {
    let one = BTreeMap::from([(id.to_string(), Base64::new(key.to_vec()))]);
    canonical_object(json).is_ok_and(|object| verify_json(&object, server, &one).is_ok())
}
