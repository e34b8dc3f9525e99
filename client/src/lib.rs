//! An end-to-end encrypted Matrix client, for any homeserver: the library under the `waxwing-client` command.
//!
//! It holds keys on the device only, writes no decrypted message to disk, and refuses to send in the clear. It
//! does not: show rich timelines, render HTML, place calls, or know anything of the Waxwing server.
//!
//! ```no_run
//! # async fn story() -> waxwing_client::Result<()> {
//! use std::{path::Path, time::Duration};
//! use waxwing_client::Client;
//!
//! let alice = Client::builder("https://example.org", Path::new("alice")).register("alice", "secret").await?;
//! alice.bootstrap_cross_signing(Some("secret")).await?;
//! let bob = Client::open(Path::new("bob")).await?;
//! let room = alice.create_encrypted_room("Aviary", &[bob.user_id()]).await?;
//! bob.wait_for_invitation(&room, Duration::from_secs(10)).await?;
//! bob.join((*room).into(), &[]).await?;
//! alice.wait_for_member(&room, bob.user_id(), Duration::from_secs(10)).await?;
//! alice.send_text(&room, "The waxwings are back").await?;
//! let event = bob.wait_for_text(&room, "The waxwings are back", Duration::from_secs(10)).await?;
//! assert!(event.is_encrypted());
//! # Ok(()) }
//! ```

mod backup;
mod client;
mod cross_signing;
mod crypto;
mod error;
mod home;
mod http;
mod media;
mod room;
mod secrets;
mod session;
mod store;
mod sync;
mod timeline;
mod verify;

pub use client_ruma as ruma;
pub use matrix_sdk_crypto::CrossSigningStatus;

pub use crate::{
    backup::{BackupStatus, Restored},
    client::Client,
    error::{Error, Result},
    http::{Http, Secret, ServerVersions, discover, install_tls_provider},
    session::{ClientBuilder, Credentials, Session},
    store::{Membership, Room, Store},
    sync::Update,
    timeline::{Attachment, Content, Seal, TimelineEvent},
    verify::{Channel, ShortString},
};
