//! Where files are, and `waxwing media`: what operators do with files, over the database and the store themselves, so
//! that it works beside a running server.

use crate::config::Config;
use crate::{signing_key, wiring};
use anyhow::{Context, bail};
use clap::Subcommand;
use ruma::{MxcUri, OwnedServerName, OwnedUserId, UserId};
use std::io::Write;
use std::time::Duration;
use waxwing_federation::client::Client;
use waxwing_services::Core;
use waxwing_services::media::{BucketSettings, Media, MediaSettings, Objects};
use waxwing_services::previews::{Previews, Web, WebSettings};

/// `waxwing media …`
#[derive(Debug, Subcommand)]
pub enum MediaCommand {
    /// Serve a file, and every other with the same bytes, to nobody
    Quarantine {
        /// An address (mxc://server/id), or a user of this server for everything that they uploaded
        what: String,
    },
    /// End a quarantine
    Release {
        /// An address (mxc://server/id), or a user of this server
        what: String,
    },
    /// Keep a file whatever the rules say, and out of a quarantine of everything that its uploader has here
    Protect {
        /// An address (mxc://server/id)
        what: String,
    },
    /// End a protection
    Unprotect {
        /// An address (mxc://server/id)
        what: String,
    },
    /// Remove a file for good
    Remove {
        /// An address (mxc://server/id), or a user of this server for everything that they uploaded
        what: String,
    },
    /// List what a user of this server uploaded
    List {
        /// The user's id
        user: OwnedUserId,
    },
}

/// Runs a command.
pub async fn run(config: &Config, command: MediaCommand) -> anyhow::Result<()> {
    let core = wiring::core(config, signing_key::load_or_make(&config.data_dir)?).await?;
    let media = service(config, &core, None)?;
    let mut out = std::io::stdout().lock();
    match command {
        MediaCommand::Quarantine { what } => {
            let changed = quarantine(&media, &core, &what, true).await?;
            writeln!(out, "{changed} files are under quarantine")?;
        }
        MediaCommand::Release { what } => {
            let changed = quarantine(&media, &core, &what, false).await?;
            writeln!(out, "{changed} files are served again")?;
        }
        MediaCommand::Protect { what } => {
            protect(&media, &core, &what, true).await?;
            writeln!(out, "protected")?;
        }
        MediaCommand::Unprotect { what } => {
            protect(&media, &core, &what, false).await?;
            writeln!(out, "no longer protected")?;
        }
        MediaCommand::Remove { what } => match target(&core, &what)? {
            Target::File(server, id) => {
                media.remove(&server, &id).await.with_context(|| format!("cannot remove {what}"))?;
                writeln!(out, "removed")?;
            }
            Target::User(user) => {
                let removed = media.erase_now(&user).await?;
                writeln!(out, "{removed} files were removed")?;
            }
        },
        MediaCommand::List { user } => list(&media, &user, &mut out).await?,
    }
    Ok(())
}

enum Target {
    File(OwnedServerName, String),
    User(OwnedUserId),
}

fn target(core: &Core, what: &str) -> anyhow::Result<Target> {
    if what.starts_with('@') {
        let user = UserId::parse(what).with_context(|| format!("{what} is no user id"))?;
        if !core.is_local(&user) {
            bail!("{user} is not of this server");
        }
        return Ok(Target::User(user));
    }
    let (server, id) = <&MxcUri>::from(what)
        .parts()
        .with_context(|| format!("{what} is neither mxc://server/id nor a user id"))?;
    Ok(Target::File(server.to_owned(), id.to_owned()))
}

async fn quarantine(media: &Media, core: &Core, what: &str, on: bool) -> anyhow::Result<u64> {
    match target(core, what)? {
        Target::File(server, id) => {
            media.quarantine(&server, &id, on).await.with_context(|| format!("there is no file {what}"))
        }
        Target::User(user) => Ok(media.quarantine_user(&user, on).await?),
    }
}

async fn protect(media: &Media, core: &Core, what: &str, on: bool) -> anyhow::Result<()> {
    match target(core, what)? {
        Target::File(server, id) => {
            media.protect(&server, &id, on).await.with_context(|| format!("there is no file {what}"))
        }
        Target::User(_) => bail!("{what} is no file"),
    }
}

async fn list(media: &Media, user: &UserId, out: &mut impl Write) -> anyhow::Result<()> {
    let mut after = String::new();
    loop {
        let (files, used) = media.of_user(user, &after).await?;
        let Some(last) = files.last() else {
            writeln!(out, "{used} bytes together")?;
            return Ok(());
        };
        after.clone_from(&last.media_id);
        for file in &files {
            let kind = file.content_type.as_deref().unwrap_or("unknown");
            let state = if file.quarantined { " quarantined" } else { "" };
            let uri = format!("mxc://{}/{}", file.server_name, file.media_id);
            // What an uploader says may hold anything, also what moves a terminal's cursor.
            writeln!(out, "{uri} {} {}{state}", file.size, kind.escape_debug())?;
        }
    }
}

/// The service; files of other servers are fetched with `client`.
pub fn service(config: &Config, core: &Core, client: Option<Client>) -> anyhow::Result<Media> {
    Ok(Media::new(core.clone(), objects(config)?, client, settings(config)))
}

/// Previews of pages; off where they are switched off, or when the system trusts no certificates.
pub fn previews(config: &Config, core: &Core, media: &Media) -> Previews {
    let web = config.previews_urls().then(|| {
        let settings = WebSettings {
            allow_private: config.url_previews.allow_private_addresses,
            denied_hosts: config.url_previews.denied_hosts.clone(),
            extra_roots: wiring::extra_roots(config)?,
            user_agent: wiring::user_agent(),
        };
        Web::new(settings).map_err(|error| anyhow::anyhow!(error))
    });
    let web = web.transpose().unwrap_or_else(|error| {
        tracing::error!("previews of pages are off: {error:#}");
        None
    });
    Previews::new(core.clone(), media.clone(), web)
}

fn settings(config: &Config) -> MediaSettings {
    let media = &config.media;
    MediaSettings {
        user_quota_bytes: Some(media.user_quota_bytes).filter(|bytes| *bytes > 0),
        user_quota_info: match &media.user_quota_info {
            Some(page) => page.to_string(),
            None => format!("https://{}/", config.server_name),
        },
        freeze_unauthenticated: media.freeze_unauthenticated,
        remote_cache_bytes: media.remote_cache_bytes,
        remote_cache_age: Duration::from_hours(u64::from(media.remote_cache_days) * 24),
        unused_age: media.unused_days.map(|days| Duration::from_hours(u64::from(days.max(1)) * 24)),
        with_retention: config.retention.enabled && config.retention.media,
    }
}

/// Where the bytes are: a bucket, or a folder on this machine.
fn objects(config: &Config) -> anyhow::Result<Objects> {
    let Some((bucket, prefix)) = config.bucket() else {
        let path = config.media_path();
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot make the folder {}", path.display()))?;
        return Objects::folder(&path).with_context(|| format!("cannot open the folder {}", path.display()));
    };
    let s3 = &config.media.s3;
    let secret = s3.secret_access_key.as_ref().map(|secret| secret.expose().to_owned());
    let settings = BucketSettings {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        endpoint: s3.endpoint.as_ref().map(|url| url.as_str().trim_end_matches('/').to_owned()),
        region: s3.region.clone(),
        key: s3.access_key_id.clone().zip(secret),
        virtual_hosted: s3.virtual_hosted,
        extra_roots: wiring::extra_roots(config)?,
    };
    Objects::bucket(settings).with_context(|| format!("cannot use the bucket {bucket}"))
}
