//! Whose events are shown only to those who could see them before: few users, kept in memory, told by the log.

use crate::error::StoreResult;
use crate::log::Fact;
use crate::store::Store;
use parking_lot::Mutex;
use ruma::{OwnedUserId, UserId};
use std::collections::BTreeSet;
use waxwing_model::LogPosition;

/// What the row of an account says that was erased.
pub const ERASED: &str = "erased";

/// The erased users as of a position of the log; none: not read yet.
#[derive(Default)]
pub(crate) struct ErasedUsers(Mutex<Option<(LogPosition, BTreeSet<OwnedUserId>)>>);

impl Store {
    /// Those of `users` whose accounts were erased. From memory.
    ///
    /// # Errors
    /// The database failed, which is asked once after a start.
    pub async fn erased_among<'a>(
        &self,
        users: impl Iterator<Item = &'a UserId>,
    ) -> StoreResult<BTreeSet<OwnedUserId>> {
        let head = self.tail().head();
        if !self.fold_erased(head) {
            let read: BTreeSet<OwnedUserId> = self.read().await?.users_erased().await?.into_iter().collect();
            // Rows since `head` are taken in by the next call, those that were read already once more.
            *self.erased_users().0.lock() = Some((head, read));
        }
        let known = self.erased_users().0.lock();
        let Some((_, known)) = known.as_ref().filter(|(_, known)| !known.is_empty()) else {
            return Ok(BTreeSet::new());
        };
        Ok(users.filter(|user| known.contains(*user)).map(ToOwned::to_owned).collect())
    }

    /// Takes in the rows up to `head`; false: they are not in memory.
    fn fold_erased(&self, head: LogPosition) -> bool {
        let mut known = self.erased_users().0.lock();
        let Some((upto, erased)) = known.as_mut() else { return false };
        if *upto >= head {
            return true;
        }
        let Some(rows) = self.tail().range(*upto, head) else { return false };
        for row in rows {
            if row.fact == Fact::Account && row.data.as_deref() == Some(ERASED) {
                erased.extend(row.user.clone());
            }
        }
        *upto = head;
        true
    }
}
