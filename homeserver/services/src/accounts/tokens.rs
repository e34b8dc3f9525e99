//! Access tokens, from memory: a fold over the log drops what changed, so that a lookup after a logout never finds
//! the token again on this node, and within a second on others.

use super::{AuthError, Requester};
use crate::Core;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::{OwnedUserId, UserId};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use waxwing_model::LogPosition;
use waxwing_storage::{Fact, TokenHash};

/// Tokens kept in memory: more than the devices that are active at once on a large node; about 400 bytes each.
const KEPT: usize = 50_000;

/// The hash under which a token is stored.
pub fn token_hash(token: &str) -> TokenHash {
    Sha256::digest(token.as_bytes()).into()
}

#[derive(Clone)]
struct Known {
    requester: Arc<Requester>,
    expires_at: Option<u64>,
}

struct Folded {
    /// The tokens of each user that are in the cache, or were.
    by_user: HashMap<OwnedUserId, Vec<TokenHash>>,
    tokens: usize,
}

/// Access tokens in memory.
pub(crate) struct TokenCache {
    known: Cache<TokenHash, Known>,
    upto: AtomicI64,
    folded: Mutex<Folded>,
}

impl TokenCache {
    pub fn new(head: LogPosition) -> TokenCache {
        TokenCache {
            known: Cache::new(KEPT),
            upto: AtomicI64::new(head.0),
            folded: Mutex::new(Folded { by_user: HashMap::new(), tokens: 0 }),
        }
    }

    /// Who speaks with this token.
    pub async fn authenticate(&self, core: &Core, token: &str) -> Result<Arc<Requester>, AuthError> {
        let hash = token_hash(token);
        let head = self.fold(core);
        let known = match self.known.get(&hash) {
            Some(known) => known,
            None => self.load(core, &hash, head).await?,
        };
        match known.expires_at {
            Some(at) if at <= core.now() => Err(AuthError::Expired),
            _ => Ok(known.requester),
        }
    }

    async fn load(&self, core: &Core, hash: &TokenHash, head: LogPosition) -> Result<Known, AuthError> {
        let row = core.store.read().await?.access_token_load(hash).await?;
        let row = row.filter(|row| !row.deactivated).ok_or(AuthError::Unknown)?;
        if !row.used && row.refresh_hash.is_some() {
            super::refresh::first_use(core, *hash).await?;
        }
        let known = Known {
            requester: Arc::new(Requester {
                user_id: row.user_id,
                device_id: row.device_id,
                is_guest: row.guest,
                is_admin: row.admin,
                is_locked: row.locked,
                is_suspended: row.suspended,
                appservice: None,
            }),
            expires_at: row.expires_at,
        };
        self.keep(core, hash, &known, head);
        Ok(known)
    }

    /// Keeps what was read at `head`, unless it has changed since.
    fn keep(&self, core: &Core, hash: &TokenHash, known: &Known, head: LogPosition) {
        let user = &known.requester.user_id;
        let mut folded = self.folded.lock();
        let now = self.fold_locked(core, &mut folded);
        if !unchanged(core, user, head, now) {
            return;
        }
        if folded.tokens >= 2 * KEPT {
            self.known.clear();
            folded.by_user.clear();
            folded.tokens = 0;
        }
        folded.by_user.entry(user.clone()).or_default().push(*hash);
        folded.tokens += 1;
        self.known.insert(*hash, known.clone());
    }

    /// Drops what the log says has changed; returns up to where.
    fn fold(&self, core: &Core) -> LogPosition {
        let head = core.store.tail().head();
        if self.upto.load(Ordering::Acquire) >= head.0 {
            return head;
        }
        self.fold_locked(core, &mut self.folded.lock())
    }

    fn fold_locked(&self, core: &Core, folded: &mut Folded) -> LogPosition {
        let head = core.store.tail().head();
        let upto = LogPosition(self.upto.load(Ordering::Acquire));
        if upto >= head {
            return upto;
        }
        match core.store.tail().range(upto, head) {
            Some(rows) => {
                for row in rows.iter().filter(|row| row.fact == Fact::Account) {
                    let Some(hashes) = row.user.as_ref().and_then(|user| folded.by_user.remove(user)) else {
                        continue;
                    };
                    folded.tokens -= hashes.len();
                    for hash in hashes {
                        self.known.remove(&hash);
                    }
                }
            }
            None => {
                self.known.clear();
                folded.by_user.clear();
                folded.tokens = 0;
            }
        }
        self.upto.store(head.0, Ordering::Release);
        head
    }
}

fn unchanged(core: &Core, user: &UserId, after: LogPosition, upto: LogPosition) -> bool {
    upto <= after
        || core
            .store
            .tail()
            .range_of_user(user, after, upto)
            .is_some_and(|rows| rows.iter().all(|row| row.fact != Fact::Account))
}
