//! Requests that may be repeated, as the members of a group see them: what each was answered before.

use crate::error::StoreResult;
use crate::repeats::Answered;
use crate::tx::{TransactionKey, Tx};

impl Tx {
    /// Keeps the answer of a request that may be repeated.
    pub fn transaction_put(&mut self, key: TransactionKey, response: String, now: u64) {
        self.buffers.transactions.push(Answered { key, response, at: now, late: false });
    }

    /// Keeps the answer of a request that sent an event of this transaction, and notes the request beside the event.
    pub fn transaction_sent(&mut self, key: TransactionKey, event: &ruma::EventId, now: u64) {
        let note = crate::repeats::request_note(&key.1, &key.3);
        let new = self.new_events.get(event).map(|index| &self.buffers.events[*index]);
        // What the log says is enough to find the answer again at the next start.
        let late = self.conn.engine() == crate::Engine::Sqlite
            && new.is_some_and(|new| {
                let of = &new.event;
                new.slot.is_some()
                    && of.sender == key.0
                    && crate::repeats::send_endpoint(&of.room_id, &of.kind.to_string()) == key.2
            });
        self.log_note(event, note);
        self.buffers.transactions.push(Answered { key, response: event.to_string(), at: now, late });
    }

    /// A user, or one device of theirs, will never repeat a request.
    pub(crate) fn transactions_forget(&mut self, user: &ruma::UserId, device: Option<&str>) {
        self.buffers.forgotten.push((user.to_owned(), device.map(str::to_owned)));
    }

    /// The answer that was given to this request before, by this group's members too.
    pub async fn transaction_get(&mut self, key: &TransactionKey) -> StoreResult<Option<String>> {
        if let Some(answered) = self.buffers.transactions.iter().find(|answered| answered.key == *key) {
            return Ok(Some(answered.response.clone()));
        }
        if let Some(response) = self.repeats.get(key) {
            return Ok(Some(response));
        }
        match self.answered.get(key) {
            Some(answer) => Ok(answer.clone()),
            None => Ok(self.conn.transactions_load(std::slice::from_ref(key)).await?.remove(key)),
        }
    }

    /// Looks up the requests of a whole group at once, so that its members need not, each for itself.
    pub(crate) async fn transactions_look_up(&mut self, keys: &[TransactionKey]) -> StoreResult<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let asked: Vec<TransactionKey> =
            keys.iter().filter(|key| self.repeats.get(key).is_none()).cloned().collect();
        let found = self.conn.transactions_load(&asked).await?;
        // The same request may be in the group more than once.
        self.answered = keys.iter().map(|key| (key.clone(), found.get(key).cloned())).collect();
        Ok(())
    }
}
