//! What the server itself writes to its users, each in a room of their own:
//! <https://spec.matrix.org/v1.19/client-server-api/#server-notices>.
//!
//! Notices are plaintext: the server has no keys. They are an exception from sealing that `waxwing audit` lists.

use crate::account_data::{AccountData, AccountDataError};
use crate::accounts::{AccountError, Accounts, NewAccount};
use crate::timeline::{Author, CreateRoom, Draft, Preset, Repeatable, Timeline, TimelineError, raw};
use crate::{Core, NoticeSettings};
use ruma::events::TimelineEventType;
use ruma::{OwnedEventId, OwnedRoomId, RoomId, UserId};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use tokio::sync::Mutex;
use waxwing_storage::StoreError;

/// The tag by which clients know the room.
const TAG: &str = "m.server_notice";

/// Why a notice was not written.
#[derive(Debug, thiserror::Error)]
pub enum NoticeError {
    /// There are none on this server.
    #[error("server notices are not enabled on this server")]
    Off,
    /// The user belongs to another server, or there is no such user.
    #[error("server notices go to users of this server only")]
    NotOurs,
    /// The room.
    #[error(transparent)]
    Timeline(#[from] TimelineError),
    /// The account that writes.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// The tag of the room.
    #[error(transparent)]
    Tag(#[from] AccountDataError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A notice.
#[derive(Clone, Debug)]
pub struct Notice {
    /// To whom.
    pub to: ruma::OwnedUserId,
    /// The event's type: `m.room.message`.
    pub kind: TimelineEventType,
    /// The state key of a state event.
    pub state_key: Option<String>,
    /// The content.
    pub content: Box<RawValue>,
    /// The administrator who has it written, and a transaction id: the same again writes nothing.
    pub repeat: Option<(ruma::OwnedUserId, String)>,
}

/// Writes notices.
#[derive(Clone)]
pub struct Notices {
    core: Core,
    accounts: Arc<Accounts>,
    timeline: Timeline,
    account_data: AccountData,
    /// One room is made at a time, so that nobody gets two.
    making: Arc<Mutex<()>>,
}

impl Notices {
    /// The service.
    pub fn new(core: Core, accounts: Arc<Accounts>, timeline: Timeline) -> Notices {
        let account_data = AccountData::new(core.clone());
        Notices { core, accounts, timeline, account_data, making: Arc::default() }
    }

    /// Writes a notice, in the room that the user has for that; makes it, and invites the user, where needed.
    ///
    /// # Errors
    /// [`NoticeError::Off`], [`NoticeError::NotOurs`], and what the room refuses.
    pub async fn send(&self, notice: Notice) -> Result<OwnedEventId, NoticeError> {
        let settings = self.core.settings.accounts.notices.clone().ok_or(NoticeError::Off)?;
        let known = self.accounts.user(&notice.to).await?;
        if known.is_none_or(|row| row.deactivated) || settings.user == notice.to {
            return Err(NoticeError::NotOurs);
        }
        let room = self.room(&settings, &notice.to).await?;
        let author = Author::new(settings.user.clone());
        let repeat = notice.repeat.map(|(admin, txn_id)| Repeatable {
            device: admin.to_string(),
            endpoint: format!("server notice {}", notice.to),
            txn_id,
        });
        let draft = match notice.state_key {
            Some(key) => Draft::state(settings.user, notice.kind, key, notice.content),
            None => Draft::message(settings.user, notice.kind, notice.content),
        };
        if draft.state_key.is_some() {
            return Ok(self.timeline.set_state(&author, &room, draft).await?);
        }
        Ok(self.timeline.send(&author, &room, draft, repeat).await?)
    }

    /// The room of a user, in which the user is or to which they are invited.
    async fn room(&self, settings: &NoticeSettings, user: &UserId) -> Result<OwnedRoomId, NoticeError> {
        let _one_at_a_time = self.making.lock().await;
        self.writer(settings).await?;
        let found = self.core.store.read().await?.notice_room_of(user).await?;
        let room = match found {
            Some(room) if self.membership(&room, &settings.user).await?.as_deref() == Some("join") => room,
            _ => self.make_room(settings, user).await?,
        };
        let membership = self.membership(&room, user).await?;
        if !matches!(membership.as_deref(), Some("join" | "invite")) {
            self.timeline.invite(&Author::new(settings.user.clone()), &room, user, Map::new()).await?;
            self.tag(user, &room).await?;
        }
        Ok(room)
    }

    async fn membership(&self, room: &RoomId, user: &UserId) -> Result<Option<String>, StoreError> {
        let row = self.core.store.read().await?.member_load(room, user).await?;
        Ok(row.map(|row| row.membership))
    }

    async fn make_room(&self, settings: &NoticeSettings, user: &UserId) -> Result<OwnedRoomId, NoticeError> {
        let mut initial_state = Vec::new();
        if let Some(url) = &settings.avatar_url {
            initial_state.push(("m.room.avatar".to_owned(), String::new(), raw(&json!({ "url": url }))?));
        }
        let wanted = CreateRoom {
            author: Author::new(settings.user.clone()),
            version: None,
            creation_content: Map::from_iter([("m.federate".to_owned(), false.into())]),
            preset: Preset::PrivateChat,
            initial_state,
            name: Some(settings.room_name.clone()),
            topic: None,
            alias: None,
            // The room is for reading.
            power_levels: Map::from_iter([("users_default".to_owned(), Value::from(-10))]),
            invite: vec![user.to_owned()],
            is_direct: false,
            published: false,
        };
        let room = self.timeline.create_room(wanted).await?;
        let (kept, user_id) = (room.clone(), user.to_owned());
        self.core
            .store
            .write("notice room", Vec::new(), move |tx| {
                let (room, user) = (kept.clone(), user_id.clone());
                Box::pin(async move { tx.notice_room_set(&user, &room).await })
            })
            .await?;
        self.tag(user, &room).await?;
        Ok(room)
    }

    async fn tag(&self, user: &UserId, room: &RoomId) -> Result<(), NoticeError> {
        Ok(self.account_data.tag_set(user, user, room, TAG, Map::new()).await?)
    }

    /// Makes the account that writes, where it is not there, and gives it the profile of the settings.
    async fn writer(&self, settings: &NoticeSettings) -> Result<(), NoticeError> {
        if self.accounts.user(&settings.user).await?.is_none() {
            let name = settings.user.localpart().to_owned();
            let new = NewAccount { username: Some(name), ..NewAccount::default() };
            match self.accounts.create(new).await {
                Ok(_) | Err(AccountError::UserInUse) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let user = settings.user.clone();
        let mut wanted = vec![("displayname", Value::from(settings.display_name.as_str()).to_string())];
        if let Some(url) = &settings.avatar_url {
            wanted.push(("avatar_url", Value::from(url.as_str()).to_string()));
        }
        let profile = self.core.store.read().await?.profile_load(&user).await?;
        wanted.retain(|(field, value)| profile.get(*field) != Some(value));
        if wanted.is_empty() {
            return Ok(());
        }
        self.core
            .store
            .write("profile of notices", Vec::new(), move |tx| {
                let (user, wanted) = (user.clone(), wanted.clone());
                Box::pin(async move {
                    for (field, value) in &wanted {
                        tx.profile_field_set(&user, field, value).await?;
                    }
                    Ok::<(), StoreError>(())
                })
            })
            .await?;
        Ok(self.timeline.spread_profile(&settings.user).await?)
    }
}
