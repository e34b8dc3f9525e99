//! What can be said on the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::load::Load;

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not logged in, 4 waited in vain.

Passwords and recovery keys are asked for on the terminal, or read as one line from standard input when that is
not a terminal. They are never taken from arguments, which other users of the machine could see.";

/// An end-to-end encrypted Matrix client for the terminal, for any homeserver.
///
/// It sends sealed letters only: rooms without encryption can be read, not written to. Keys stay in the
/// directory given with --home; decrypted messages are never written to disk.
#[derive(Debug, Parser)]
#[command(name = "waxwing-client", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Global {
    /// Directory of this device: its session, its keys [default: $XDG_DATA_HOME/waxwing-client]
    #[arg(long, global = true, value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// File whose first line encrypts the key store in the home directory
    #[arg(long, global = true, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Say more on standard error (repeat for even more)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an account and use it on this device
    Register(Account),
    /// Log in to an account as a new device
    Login(Account),
    /// End the session and delete its keys from this device
    Logout,
    /// Show who and where we are, and the state of our keys
    Whoami,
    /// List the rooms we are in or invited to
    Rooms,
    /// List the members of a room
    Members {
        /// Room id, alias or name
        room: String,
    },
    /// Create an encrypted room
    Create {
        /// Name of the room; the server can read it
        name: String,
        /// Whom to invite (repeat for several)
        #[arg(long, value_name = "USER")]
        invite: Vec<String>,
    },
    /// Invite somebody to a room
    Invite {
        /// Room id, alias or name
        room: String,
        /// User id, such as @bob:example.org
        user: String,
    },
    /// Join a room or accept an invitation
    Join {
        /// Room id, alias or name
        room: String,
        /// A server that knows the room (repeat for several)
        #[arg(long, value_name = "SERVER")]
        via: Vec<String>,
    },
    /// Leave a room or decline an invitation
    Leave {
        /// Room id, alias or name
        room: String,
    },
    /// Send a text message
    Send {
        /// Room id, alias or name
        room: String,
        /// The words; without any, standard input is sent
        text: Vec<String>,
    },
    /// Encrypt a file and send it
    SendFile {
        /// Room id, alias or name
        room: String,
        path: PathBuf,
        /// Media type, such as image/png [default: from the file's name]
        #[arg(long = "type", value_name = "TYPE")]
        media_type: Option<String>,
    },
    /// Print the last messages of a room
    Read(Read),
    /// Print messages as they arrive, until interrupted
    Watch {
        /// Only this room: id, alias or name
        room: Option<String>,
        /// Stop after so many seconds
        #[arg(long, value_name = "SECONDS")]
        seconds: Option<u64>,
        /// One JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Verify a person by comparing emoji; your own user id verifies your other device
    Verify(Verify),
    /// Set up cross-signing: one identity for all your devices
    Bootstrap,
    /// Keep room keys on the server, encrypted under a recovery key
    Backup {
        #[command(subcommand)]
        command: BackupCommand,
    },
    /// Start two servers and let two people meet: proves that only sealed letters are stored
    Demo(Demo),
    /// Put load on a homeserver and measure what it costs it
    Load(Box<Load>),
}

#[derive(Debug, Args)]
pub struct Account {
    /// Server name or URL, such as example.org or http://127.0.0.1:8008
    pub server: String,
    /// User name
    pub user: String,
    /// Name of this device, shown to others
    #[arg(long, default_value = "Waxwing client", value_name = "NAME")]
    pub device_name: String,
    /// File with a registration token, where the server wants one
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Read {
    /// Room id, alias or name
    pub room: String,
    /// How many messages
    #[arg(short, long, default_value_t = 20, value_name = "COUNT")]
    pub limit: usize,
    /// Decrypt attachments into this directory
    #[arg(long, value_name = "DIR")]
    pub save: Option<PathBuf>,
    /// One JSON object per line
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Verify {
    /// User id, such as @bob:example.org
    pub user: String,
    /// Wait for their request instead of sending one
    #[arg(long)]
    pub accept: bool,
    /// Let the steps travel in this room instead of from device to device
    #[arg(long, conflicts_with = "accept")]
    pub room: Option<String>,
    /// How long to wait for the other side
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub seconds: u64,
}

#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Start a new backup and print its recovery key, once
    Create,
    /// Get keys back with the recovery key
    Restore,
    /// Compare what is here with what the server holds
    Status,
}

#[derive(Debug, Args)]
pub struct Demo {
    /// The `waxwing` server program
    #[arg(long, value_name = "PATH")]
    pub server_binary: PathBuf,
    /// Keep the temporary directories and say where they are
    #[arg(long)]
    pub keep: bool,
    /// Give up after so many seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub limit: u64,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_secret_is_an_argument() {
        for command in Cli::command().get_subcommands() {
            for argument in command.get_arguments() {
                let name = argument.get_id().as_str();
                assert!(!name.ends_with("password") && !name.ends_with("token") && !name.ends_with("key"));
            }
        }
    }
}
