//! The command line.

use crate::config::{self, Config, Sources};
use crate::media::{self, MediaCommand};
use crate::{audit, doctor, logs, node, purge, signing_key, user};
use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use ruma::{OwnedEventId, OwnedRoomId};
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit};
use std::path::PathBuf;
use std::process::ExitCode;
use waxwing_services::accounts::Change;

/// A Matrix homeserver for an organisation.
#[derive(Debug, Parser)]
#[command(name = "waxwing", version, about, after_help = "Without a command the server starts.")]
struct Cli {
    #[command(flatten)]
    settings: SettingFlags,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct SettingFlags {
    /// The configuration file [default: waxwing.toml, where it exists]
    #[arg(long, short, global = true, value_name = "FILE", env = "WAXWING_CONFIG")]
    config: Option<PathBuf>,
    /// Sets one setting, for example --set listen.client=127.0.0.1:8008
    #[arg(long, short, global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Short for --set server_name=NAME
    #[arg(long, global = true, value_name = "NAME")]
    server_name: Option<String>,
    /// Short for --set data_dir=FOLDER
    #[arg(long, global = true, value_name = "FOLDER")]
    data_dir: Option<String>,
    /// Short for --set database=URL
    #[arg(long, global = true, value_name = "URL")]
    database: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the server (the default)
    Serve,
    /// Print every setting with its documentation and its default
    Config,
    /// Manage accounts; works while the server runs, and while it does not
    User {
        #[command(subcommand)]
        command: UserCommand,
    },
    /// Manage files; works while the server runs, and while it does not
    Media {
        #[command(subcommand)]
        command: MediaCommand,
    },
    /// Rooms, while the server runs or before it starts; the server does what is asked for
    Room {
        #[command(subcommand)]
        command: RoomCommand,
    },
    /// The history of rooms; the server does what is asked for
    History {
        #[command(subcommand)]
        command: HistoryCommand,
    },
    /// Show how far purges of rooms and of history have come
    Purges {
        /// Show this one
        id: Option<String>,
    },
    /// Manage the key with which the server signs
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Check that the whole database agrees with itself; works while the server runs; fails if it does not
    Doctor,
    /// Look through the whole database for plaintext messages; fails if there are any
    Audit {
        /// Show what is stored of one event
        #[arg(long, value_name = "ID")]
        show_event: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Make a new key and retire the one in use; works while the server runs, and while it does not
    Rotate,
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Make an account
    Create {
        /// The part of the user's id before the colon
        name: String,
        /// Read the password from standard input, up to the end of the line
        #[arg(long, required = true)]
        password_stdin: bool,
        /// Make the account an administrator
        #[arg(long)]
        admin: bool,
    },
    /// Print all accounts: id, time of creation (milliseconds), standing; separated by tabs
    List,
    /// Set the password of an account
    Password {
        /// The user, by name or id
        name: String,
        /// Read the password from standard input, up to the end of the line
        #[arg(long, required = true)]
        password_stdin: bool,
        /// Leave the sessions of the account as they are
        #[arg(long)]
        keep_sessions: bool,
    },
    /// Lock an account: it can do nothing but log out, until it is unlocked
    Lock {
        /// The user, by name or id
        name: String,
    },
    /// Unlock an account
    Unlock {
        /// The user, by name or id
        name: String,
    },
    /// Suspend an account: it can read and leave, but not speak
    Suspend {
        /// The user, by name or id
        name: String,
    },
    /// End the suspension of an account
    Unsuspend {
        /// The user, by name or id
        name: String,
    },
    /// Make an account an administrator
    Promote {
        /// The user, by name or id
        name: String,
    },
    /// Make an administrator an ordinary user
    Demote {
        /// The user, by name or id
        name: String,
    },
    /// Close an account for ever; its name is never given again
    Deactivate {
        /// The user, by name or id
        name: String,
        /// Show its events to nobody who could not see them before
        #[arg(long)]
        erase: bool,
    },
}

#[derive(Debug, Subcommand)]
enum RoomCommand {
    /// Put everybody of this server out of a room and delete all that is stored of it
    Purge {
        /// The room's id
        room: OwnedRoomId,
        /// Let nobody of this server enter it again
        #[arg(long)]
        block: bool,
        /// Delete it even if somebody cannot be put out
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
enum HistoryCommand {
    /// Delete the messages of a room before an event or a time
    Purge {
        /// The room's id
        room: OwnedRoomId,
        /// Messages before this event
        #[arg(long, value_name = "ID", conflicts_with = "days", required_unless_present = "days")]
        before: Option<OwnedEventId>,
        /// Messages that are older than so many days
        #[arg(long, value_name = "DAYS")]
        days: Option<u64>,
        /// Also messages of this server's users, which nobody else may have
        #[arg(long)]
        local: bool,
    },
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

impl SettingFlags {
    fn load(self) -> Result<Config, config::ConfigError> {
        let shorts =
            [("server_name", self.server_name), ("data_dir", self.data_dir), ("database", self.database)];
        let mut sets = self.set;
        sets.extend(shorts.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        // A variable that is not UTF-8 cannot be a setting.
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        config::load(&Sources { file: self.config, environment, sets })
    }
}

/// Runs the program.
pub fn run() -> ExitCode {
    // The database, too, is for its owner alone, whatever folder it stands in.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    // Before anything can ask for a connection; it fails only where another provider is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match execute(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("waxwing: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: Cli) -> anyhow::Result<ExitCode> {
    let command = cli.command.unwrap_or(Command::Serve);
    if let Command::Config = command {
        print!("{}", config::example());
        return Ok(ExitCode::SUCCESS);
    }
    let config = cli.settings.load()?;
    logs::start(&config.log)?;
    let runtime = runtime(config.workers)?;
    match command {
        Command::Config | Command::Serve => {
            raise_open_files();
            runtime.block_on(node::run(config))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::User { command } => {
            runtime.block_on(manage(&config, command))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Media { command } => {
            runtime.block_on(media::run(&config, command))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Key { command: KeyCommand::Rotate } => {
            runtime.block_on(signing_key::rotate(&config))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Room { command: RoomCommand::Purge { room, block, force } } => {
            runtime.block_on(purge::room(&config, &room, block, force))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::History { command: HistoryCommand::Purge { room, before, days, local } } => {
            runtime.block_on(purge::history(&config, &room, before, days, local))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Purges { id } => {
            let found = runtime.block_on(purge::show(&config, id.as_deref()))?;
            Ok(if found { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Doctor => {
            let healthy = runtime.block_on(doctor::run(&config))?;
            Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Audit { show_event } => {
            let clean = runtime.block_on(audit::run(&config, show_event.as_deref()))?;
            Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

async fn manage(config: &Config, command: UserCommand) -> anyhow::Result<()> {
    let typed = || user::read_password(std::io::stdin().lock());
    match command {
        UserCommand::Create { name, admin, password_stdin: _ } => {
            user::create(config, &name, typed()?, admin).await
        }
        UserCommand::List => user::list(config).await,
        UserCommand::Password { name, keep_sessions, password_stdin: _ } => {
            user::password(config, &name, typed()?, !keep_sessions).await
        }
        UserCommand::Lock { name } => user::change(config, &name, Change::Locked(true)).await,
        UserCommand::Unlock { name } => user::change(config, &name, Change::Locked(false)).await,
        UserCommand::Suspend { name } => user::change(config, &name, Change::Suspended(true)).await,
        UserCommand::Unsuspend { name } => user::change(config, &name, Change::Suspended(false)).await,
        UserCommand::Promote { name } => user::change(config, &name, Change::Admin(true)).await,
        UserCommand::Demote { name } => user::change(config, &name, Change::Admin(false)).await,
        UserCommand::Deactivate { name, erase } => user::deactivate(config, &name, erase).await,
    }
}

/// Each client that waits for news holds a connection: take as many files as the machine allows.
fn raise_open_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, limit = limit.current, "cannot raise the limit of open files");
    }
}

fn runtime(workers: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if workers > 0 {
        builder.worker_threads(workers);
    }
    builder.enable_all().build().context("cannot start the runtime")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_may_stand_before_and_after_the_command() {
        let cli = Cli::parse_from(["waxwing", "--set", "a=b=c", "serve", "--server-name", "x.example"]);
        assert_eq!(cli.settings.set, [("a".to_owned(), "b=c".to_owned())]);
        assert_eq!(cli.settings.server_name.as_deref(), Some("x.example"));
        assert!(matches!(cli.command, Some(Command::Serve)));
    }
}
