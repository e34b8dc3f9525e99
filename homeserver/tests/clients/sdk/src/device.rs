//! A device on matrix-sdk, put together as Element X is: the sync service over sliding sync with the list of rooms and
//! encryption on connections of their own, timelines, and the send queue.

use crate::{PASSWORD, until};
use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, pin_mut};
use matrix_sdk::authentication::matrix::MatrixSession;
use matrix_sdk::encryption::recovery::RecoveryState;
use matrix_sdk::encryption::verification::{
    SasState, SasVerification, Verification, VerificationRequest, VerificationRequestState,
};
use matrix_sdk::encryption::{BackupDownloadStrategy, EncryptionSettings};
use matrix_sdk::media::{MediaFormat, MediaRequestParameters};
use matrix_sdk::ruma::api::client::account::register;
use matrix_sdk::ruma::api::client::uiaa::{AuthData, Dummy};
use matrix_sdk::ruma::events::key::verification::VerificationMethod;
use matrix_sdk::ruma::events::key::verification::request::ToDeviceKeyVerificationRequestEvent;
use matrix_sdk::ruma::events::room::message::{MessageType, RoomMessageEventContent};
use matrix_sdk::ruma::{EventId, OwnedRoomId, RoomId, UserId};
use matrix_sdk::sliding_sync::VersionBuilder;
use matrix_sdk::{Client, Room, RoomState};
use matrix_sdk_ui::eyeball_im::VectorDiff;
use matrix_sdk_ui::notification_client::{NotificationClient, NotificationProcessSetup, NotificationStatus};
use matrix_sdk_ui::room_list_service::filters::new_filter_non_left;
use matrix_sdk_ui::sync_service::{State, SyncService};
use matrix_sdk_ui::timeline::{
    AttachmentConfig, AttachmentSource, EventTimelineItem, RoomExt, Timeline, TimelineItem,
};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::mpsc;

/// A device that syncs all the time.
pub struct Device {
    pub client: Client,
    sync: Arc<SyncService>,
    requests: tokio::sync::Mutex<mpsc::UnboundedReceiver<(String, String)>>,
}

async fn client(homeserver: &str, home: &Path) -> Result<Client> {
    let settings = EncryptionSettings {
        auto_enable_cross_signing: true,
        backup_download_strategy: BackupDownloadStrategy::AfterDecryptionFailure,
        auto_enable_backups: true,
    };
    let builder = Client::builder()
        .homeserver_url(homeserver)
        .sliding_sync_version_builder(VersionBuilder::DiscoverNative)
        .with_encryption_settings(settings)
        .sqlite_store(home, Some("secret"));
    Ok(builder.build().await?)
}

impl Device {
    /// Makes an account, whose first device this is.
    pub async fn register(homeserver: &str, home: &Path, name: &str) -> Result<Device> {
        let client = client(homeserver, home).await?;
        let mut request = register::v3::Request::new();
        request.username = Some(name.to_owned());
        request.password = Some(PASSWORD.to_owned());
        request.initial_device_display_name = Some("sdk".to_owned());
        request.auth = Some(AuthData::Dummy(Dummy::new()));
        client.matrix_auth().register(request).await?;
        client.encryption().wait_for_e2ee_initialization_tasks().await;
        Device::start(client).await
    }

    /// Another device of an account.
    pub async fn login(homeserver: &str, home: &Path, user: &UserId) -> Result<Device> {
        let client = client(homeserver, home).await?;
        let login = client.matrix_auth().login_username(user, PASSWORD);
        login.initial_device_display_name("sdk, too").await?;
        client.encryption().wait_for_e2ee_initialization_tasks().await;
        Device::start(client).await
    }

    /// The device again, from what it stored: the app was closed and is opened.
    pub async fn reopen(self, homeserver: &str, home: &Path) -> Result<Device> {
        let session: MatrixSession = self.client.matrix_auth().session().context("no session")?;
        self.stop().await;
        let client = client(homeserver, home).await?;
        client.restore_session(session).await?;
        Device::start(client).await
    }

    async fn start(client: Client) -> Result<Device> {
        let (send, requests) = mpsc::unbounded_channel();
        client.add_event_handler(move |event: ToDeviceKeyVerificationRequestEvent| {
            let sent = send.send((event.sender.to_string(), event.content.transaction_id.to_string()));
            async move { drop(sent) }
        });
        let sync = SyncService::builder(client.clone()).with_offline_mode().build().await?;
        sync.start().await;
        Ok(Device { client, sync: Arc::new(sync), requests: tokio::sync::Mutex::new(requests) })
    }

    pub async fn stop(self) {
        self.sync.stop().await;
    }

    pub fn user_id(&self) -> &UserId {
        self.client.user_id().expect("it is logged in")
    }

    /// Fails when a connection has ended by an error; a server that is away for a while is none.
    fn alive(&self) -> Result<()> {
        match self.sync.state().get() {
            State::Error(error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Sets up secret storage and key backup; the recovery key.
    pub async fn set_up_recovery(&self) -> Result<String> {
        let recovery = self.client.encryption().recovery();
        let key = recovery.enable().wait_for_backups_to_upload().await?;
        ensure!(recovery.state() == RecoveryState::Enabled, "{:?}", recovery.state());
        Ok(key)
    }

    /// Takes identity and keys from the server by the recovery key.
    pub async fn recover(&self, key: &str) -> Result<()> {
        let recovery = self.client.encryption().recovery();
        until("the state of recovery", async || {
            Ok((recovery.state() == RecoveryState::Incomplete).then_some(()))
        })
        .await?;
        recovery.recover(key).await?;
        ensure!(recovery.state() == RecoveryState::Enabled, "{:?}", recovery.state());
        let own = self.client.encryption().get_own_device().await?.context("no device")?;
        ensure!(own.is_verified_with_cross_signing(), "the new device is not verified");
        Ok(())
    }

    /// Accepts an invitation once it is here.
    pub async fn accept_invitation(&self, room: &RoomId) -> Result<()> {
        until("the invitation", async || {
            self.alive()?;
            Ok(self.client.get_room(room).filter(|room| room.state() == RoomState::Invited))
        })
        .await?
        .join()
        .await?;
        Ok(())
    }

    pub async fn room(&self, room: &RoomId) -> Result<Room> {
        until("the room", async || {
            self.alive()?;
            Ok(self.client.get_room(room).filter(|room| room.state() == RoomState::Joined))
        })
        .await
    }

    /// The rooms of the list, as they are shown first.
    pub async fn listed(&self) -> Result<Vec<OwnedRoomId>> {
        let service = self.sync.room_list_service();
        let list = service.all_rooms().await?;
        let (entries, controller) = list.entries_with_dynamic_adapters(20);
        controller.set_filter(Box::new(new_filter_non_left()));
        pin_mut!(entries);
        let diffs = tokio::time::timeout(crate::PATIENCE, entries.next()).await?.context("no list")?;
        let shown = diffs.into_iter().find_map(|diff| match diff {
            VectorDiff::Reset { values } => Some(values),
            _ => None,
        });
        Ok(shown.unwrap_or_default().iter().map(|room| room.room_id().to_owned()).collect())
    }

    pub async fn timeline(&self, room: &RoomId) -> Result<Talk<'_>> {
        let room = self.room(room).await?;
        self.sync.room_list_service().subscribe_to_rooms(&[room.room_id()]).await;
        room.set_is_direct(true).await?;
        Ok(Talk { device: self, timeline: room.timeline().await? })
    }

    /// What a notification of an event says, as an app learns that is woken by its gateway.
    pub async fn notified(&self, room: &RoomId, event: &EventId) -> Result<String> {
        let setup = NotificationProcessSetup::SingleProcess { sync_service: Arc::clone(&self.sync) };
        let notifications = NotificationClient::new(self.client.clone(), setup).await?;
        match notifications.get_notification(room, event).await? {
            NotificationStatus::Event(item) => Ok(item.room_computed_display_name),
            NotificationStatus::EventNotFound => anyhow::bail!("{event} is not found"),
            NotificationStatus::EventFilteredOut => anyhow::bail!("{event} does not notify"),
            NotificationStatus::EventRedacted => anyhow::bail!("{event} is redacted"),
        }
    }

    /// Asks a user to verify, in the direct chat.
    pub async fn ask(&self, user: &UserId) -> Result<Shown> {
        let encryption = self.client.encryption();
        let identity = encryption.request_user_identity(user).await?.context("no identity")?;
        ensure!(self.client.get_dm_room(user).is_some(), "the room is not known as a direct chat");
        let request = identity.request_verification_with_methods(vec![VerificationMethod::SasV1]).await?;
        let sas = follow(request, true).await?;
        Shown::of(sas).await
    }

    /// Answers the next request to verify.
    pub async fn answer(&self) -> Result<Shown> {
        let next = async { self.requests.lock().await.recv().await };
        let (sender, flow) = tokio::time::timeout(crate::PATIENCE, next).await?.context("no request")?;
        let sender = UserId::parse(sender)?;
        let request = self.client.encryption().get_verification_request(&sender, flow).await;
        let request = request.context("the request is not known")?;
        request.accept_with_methods(vec![VerificationMethod::SasV1]).await?;
        let sas = follow(request, false).await?;
        Shown::of(sas).await
    }

    pub async fn trusts(&self, user: &UserId) -> Result<bool> {
        let identity = self.client.encryption().get_user_identity(user).await?;
        Ok(identity.is_some_and(|identity| identity.is_verified()))
    }
}

/// From a request to the comparison of emoji.
async fn follow(request: VerificationRequest, start: bool) -> Result<SasVerification> {
    let mut begun = false;
    until("the verification to begin", async || match request.state() {
        VerificationRequestState::Ready { .. } if start && !begun => {
            begun = true;
            Ok(request.start_sas().await?)
        }
        VerificationRequestState::Transitioned { verification: Verification::SasV1(sas) } => {
            if !sas.we_started() {
                sas.accept().await?;
            }
            Ok(Some(sas))
        }
        VerificationRequestState::Cancelled(why) => anyhow::bail!("cancelled: {}", why.reason()),
        _ => Ok(None),
    })
    .await
}

/// Emoji that are shown.
pub struct Shown {
    sas: SasVerification,
    pub emoji: Vec<String>,
}

impl Shown {
    async fn of(sas: SasVerification) -> Result<Shown> {
        let emoji = until("the emoji", async || match sas.state() {
            SasState::Cancelled(why) => anyhow::bail!("cancelled: {}", why.reason()),
            SasState::KeysExchanged { .. } => Ok(sas.emoji()),
            _ => Ok(None),
        })
        .await?;
        Ok(Shown { emoji: emoji.iter().map(|emoji| emoji.symbol.to_owned()).collect(), sas })
    }

    /// Confirms that they are the same, and waits for the end.
    pub async fn confirm(self) -> Result<()> {
        self.sas.confirm().await?;
        until("the verification to end", async || match self.sas.state() {
            SasState::Cancelled(why) => anyhow::bail!("cancelled: {}", why.reason()),
            _ => Ok(self.sas.is_done().then_some(())),
        })
        .await
    }
}

/// A room that is open.
pub struct Talk<'a> {
    device: &'a Device,
    timeline: Timeline,
}

fn text(item: &EventTimelineItem) -> Option<&str> {
    item.content().as_message().map(|message| message.body())
}

impl Talk<'_> {
    async fn find<T>(&self, what: &str, of: impl Fn(&EventTimelineItem) -> Option<T>) -> Result<T> {
        until(what, async || {
            self.device.alive()?;
            // An app does so when the network is back.
            self.device.client.send_queue().set_enabled(true).await;
            let items = self.timeline.items().await;
            Ok(items.iter().filter_map(|item: &Arc<TimelineItem>| item.as_event()).find_map(&of))
        })
        .await
    }

    /// Hands a text to the send queue and waits until the server has it.
    pub async fn send(&self, words: &str) -> Result<()> {
        self.timeline.send(RoomMessageEventContent::text_plain(words).into()).await?;
        self.sent(words).await
    }

    async fn sent(&self, words: &str) -> Result<()> {
        self.find(&format!("{words:?} to be sent"), |item| {
            (item.is_remote_event() && item.is_own() && text(item) == Some(words)).then_some(())
        })
        .await
    }

    /// Waits for a text, which must have come encrypted; its event.
    pub async fn hears(&self, words: &str) -> Result<matrix_sdk::ruma::OwnedEventId> {
        let what = format!("the sdk to read {words:?}");
        let (id, encrypted) = self
            .find(&what, |item| {
                let id = item.event_id().filter(|_| text(item) == Some(words))?;
                Some((id.to_owned(), item.encryption_info().is_some()))
            })
            .await?;
        ensure!(encrypted, "{words:?} came in the clear");
        Ok(id)
    }

    /// Hands a file to the send queue and waits until the server has it.
    pub async fn send_file(&self, filename: &str, bytes: Vec<u8>) -> Result<()> {
        let source = AttachmentSource::Data { bytes, filename: filename.to_owned() };
        let config = AttachmentConfig::default();
        self.timeline
            .send_attachment(source, mime::APPLICATION_OCTET_STREAM, config)
            .use_send_queue()
            .await?;
        self.sent(filename).await
    }

    /// Waits for an attachment; its content.
    pub async fn receives(&self, filename: &str) -> Result<Vec<u8>> {
        let source = self
            .find(&format!("the sdk to receive {filename}"), |item| {
                match item.content().as_message()?.msgtype() {
                    MessageType::File(file) if file.filename() == filename => Some(file.source.clone()),
                    _ => None,
                }
            })
            .await?;
        let request = MediaRequestParameters { source, format: MediaFormat::File };
        Ok(self.device.client.media().get_media_content(&request, false).await?)
    }

    /// Reads back to the beginning and waits until everything there is can be read.
    pub async fn read_all(&self) -> Result<()> {
        while !self.timeline.paginate_backwards(50).await? {}
        until("everything to be decrypted", async || {
            let items = self.timeline.items().await;
            let sealed = items.iter().filter_map(|item| item.as_event());
            let sealed = sealed.filter(|item| item.content().is_unable_to_decrypt()).count();
            Ok((sealed == 0).then_some(()))
        })
        .await
    }
}
