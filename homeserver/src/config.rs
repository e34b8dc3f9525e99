//! The configuration: one typed tree. Its doc comments are the documentation that `waxwing config` prints.

mod check;
mod example;
mod load;
mod setting;
#[cfg(test)]
mod tests;
mod values;

pub use example::example;
pub use load::{ConfigError, Sources, load};
pub use values::{
    Addresses, Badge, LogFormat, MailTls, Plaintext, Rate, Registration, RoomListPublication, Secret,
};

use ruma::{OwnedRoomId, OwnedServerName, RoomVersionId, owned_server_name};
use setting::settings;
use std::collections::BTreeMap;
use std::path::PathBuf;
use url::Url;

settings! {
    /// The whole configuration.
    Config {
        /// The name of this server: what stands after the colon in its people's ids. It cannot be changed later.
        server_name: OwnedServerName = owned_server_name!("localhost");
        /// The folder that holds the signing key, the certificate, the media and, without PostgreSQL, the database.
        /// One server locks it.
        data_dir: PathBuf = PathBuf::from("./waxwing-data");
        /// Where the database is: `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/NAME`. The default is the file
        /// `waxwing.db` in `data_dir`.
        database: Option<Secret> = None, example r#""sqlite:./waxwing-data/waxwing.db""#;
        /// The address that clients use, where it is not `https://` and the server name (behind a reverse proxy or
        /// with delegation). Pages and redirects start with it.
        public_base_url: Option<Url> = None, example r#""https://matrix.example.org/""#;
        /// Who may make an account: `token` (whoever has a registration token; the first start prints one for the
        /// first administrator), `open` or `closed`.
        registration: Registration = Registration::Token;
        /// With this secret, tools make accounts over the shared-secret registration API that other servers
        /// have too. Unset: that API is off.
        registration_shared_secret: Option<Secret> = None, example r#""a long random text""#;
        /// What people call whoever runs this server: pages and mails say it. The default is the server name.
        organisation: Option<String> = None, example r#""Example Ltd""#;
        /// What happens to messages that are not end-to-end encrypted: `refuse` or `accept`. `waxwing audit` lists
        /// every exception in force.
        plaintext: Plaintext = Plaintext::Refuse;
        /// Rooms in which plaintext is accepted although `plaintext = "refuse"`.
        plaintext_rooms: Vec<OwnedRoomId> = Vec::new();
        /// Ids of application services that may send plaintext although `plaintext = "refuse"`.
        plaintext_appservices: Vec<String> = Vec::new();
        /// The version of rooms that are created without one.
        default_room_version: RoomVersionId = RoomVersionId::V12;
        /// Who may put a room into the public room list: `everyone` or `administrators`.
        room_list_publication: RoomListPublication = RoomListPublication::Everyone;
        /// Whether people see who is online.
        presence: bool = true;
        /// The folder of application service registrations (`*.yaml`). Unset: there are none.
        appservices: Option<PathBuf> = None, example r#""./appservices""#;
        /// Threads that serve requests; 0 takes one for each core.
        workers: usize = 0;
        /// How many seconds a node that was told to stop goes on serving while `/_waxwing/ready` says that it is
        /// stopping: as long as load balancers need to notice. 0 where there is none.
        drain_seconds: u64 = 0;
        /// Several nodes over one database.
        cluster: Cluster = Cluster::default();
        /// Where the server listens. Each entry is an address with a port, an array of them, or `""` for none.
        listen: Listen = Listen::default();
        /// The certificate of the federation listener.
        tls: Tls = Tls::default();
        /// Other Matrix servers.
        federation: Federation = Federation::default();
        /// Limits for each account, address or server: so many a second on the long run, so many at once.
        rate_limits: RateLimits = RateLimits::default();
        /// Uploaded files.
        media: Media = Media::default();
        /// Previews of pages on the web, for links in messages.
        url_previews: UrlPreviews = UrlPreviews::default();
        /// How long messages are kept.
        retention: Retention = Retention::default();
        /// Notifications that reach people's phones through the gateways of their apps.
        push: Push = Push::default();
        /// What one password hash (Argon2id) costs.
        password: Password = Password::default();
        /// Mail to people: they confirm their addresses by it, and set new passwords.
        email: Email = Email::default();
        /// What whoever registers must agree to.
        terms: Terms = Terms::default();
        /// Messages of the server itself to its people.
        server_notices: ServerNotices = ServerNotices::default();
        /// A TURN server, through which calls of two people go where networks do not let them through directly.
        turn: Turn = Turn::default();
        /// Where clients and servers that only know the server name find this server.
        well_known: WellKnown = WellKnown::default();
        /// Calls of several people.
        rtc: Rtc = Rtc::default();
        /// Log lines, written to standard error.
        log: Log = Log::default();
    }

    /// Several nodes over one PostgreSQL. They find each other there; nothing needs to be set.
    Cluster {
        /// Servers of NATS, over which nodes tell each other that there is something new, instead of over the database:
        /// `nats://HOST:PORT`, or `tls://HOST:PORT` for TLS; several of one cluster with commas between. Every node needs
        /// the same. While NATS is away the database does it.
        nats: Option<Secret> = None, example r#""nats://10.0.0.5:4222""#;
        /// The subject of these hints. The default is `waxwing.` and the server name.
        nats_subject: Option<String> = None, example r#""waxwing.example.org""#;
        /// The user at NATS, and the password.
        nats_user: Option<String> = None, example r#""waxwing""#;
        /// The password.
        nats_password: Option<Secret> = None, example r#""a long random text""#;
        /// A token instead of user and password.
        nats_token: Option<Secret> = None, example r#""a long random text""#;
        /// A file of credentials (`.creds`) instead.
        nats_credentials: Option<PathBuf> = None, example r#""/etc/waxwing/nats.creds""#;
        /// A file of the certificate authorities, PEM, that are trusted for NATS instead of the system's.
        nats_ca: Option<PathBuf> = None, example r#""/etc/waxwing/nats-ca.pem""#;
        /// The certificate, PEM, with which this node shows NATS who it is.
        nats_certificate: Option<PathBuf> = None, example r#""/etc/waxwing/nats-client.pem""#;
        /// The private key of that certificate, PEM.
        nats_key: Option<PathBuf> = None, example r#""/etc/waxwing/nats-client.key""#;
    }

    /// Where the server listens.
    Listen {
        /// The client API, plain HTTP: put a reverse proxy in front of it, or keep it on the loopback.
        client: Addresses = Addresses::of("127.0.0.1:8008");
        /// The federation API, HTTPS.
        federation: Addresses = Addresses::of("127.0.0.1:8448");
        /// Prometheus metrics at `/metrics`, plain HTTP. Never open it to the world.
        metrics: Addresses = Addresses::of("127.0.0.1:9008");
    }

    /// The certificate of the federation listener.
    Tls {
        /// The certificate chain, PEM. Without it a self-signed certificate is made under `data_dir` on the first
        /// start, which other servers do not trust. `SIGHUP` reads both files again.
        certificate: Option<PathBuf> = None, example r#""/etc/waxwing/fullchain.pem""#;
        /// The private key of the certificate, PEM.
        key: Option<PathBuf> = None, example r#""/etc/waxwing/privkey.pem""#;
        /// Files of certificate authorities, PEM, that are trusted for federation beside the system's.
        extra_roots: Vec<PathBuf> = Vec::new();
    }

    /// Other Matrix servers.
    Federation {
        /// Off: no other server is asked, none is answered.
        enabled: bool = true;
        /// Whether servers at private, loopback and link-local addresses may be called.
        allow_private_addresses: bool = false;
        /// Whether other servers are told who is online here, and believed about their people: a message to each
        /// server that shares a room for each change of each person.
        presence: bool = false;
        /// Where a server is, whatever its name resolves to: `{ "example.org" = "10.0.0.7:8448" }`. For tests and
        /// networks with names of their own; these addresses may be private.
        hosts: BTreeMap<String, String> = BTreeMap::new();
    }

    /// Rate limits.
    RateLimits {
        /// Off: nothing is limited.
        enabled: bool = true;
        /// Messages, state and redactions, for each account.
        message: Rate = Rate::new(10.0, 50);
        /// Logins, for each address.
        login: Rate = Rate::new(0.5, 10);
        /// Registrations, for each address.
        registration: Rate = Rate::new(0.2, 5);
        /// Joins and knocks, for each account.
        join: Rate = Rate::new(1.0, 20);
        /// Invitations, for each account.
        invite: Rate = Rate::new(1.0, 20);
        /// Rooms created, for each account.
        create_room: Rate = Rate::new(0.5, 10);
        /// Media uploads, for each account.
        upload: Rate = Rate::new(2.0, 30);
        /// Requests of one other server.
        federation: Rate = Rate::new(100.0, 500);
    }

    /// Uploaded files.
    Media {
        /// The largest upload, in bytes.
        max_upload_bytes: u64 = 50 * 1024 * 1024;
        /// The folder of the files. The default is `media` in `data_dir`.
        path: Option<PathBuf> = None, example r#""./waxwing-data/media""#;
        /// Where the files are instead of in a folder: `s3://BUCKET` or `s3://BUCKET/PREFIX`, in any store that speaks
        /// the S3 protocol. Nodes of one server need one, or a folder that they share. Give the bucket a rule that
        /// removes unfinished multipart uploads after a few days.
        store: Option<String> = None, example r#""s3://bucket/prefix""#;
        /// Bytes that the files of one account may have together; 0: any number.
        user_quota_bytes: u64 = 0;
        /// A page that says what people can do when their files have no more room: apps show it. The default is the
        /// front page of `server_name`.
        user_quota_info: Option<Url> = None, example r#""https://example.org/help/files""#;
        /// Files that are stored while this is on are never served without an access token, as the specification asks.
        /// Off: the older download endpoints serve everything to everyone who knows the address of a file.
        freeze_unauthenticated: bool = true;
        /// Bytes of other servers' files that are kept. Beyond them those go first that nobody has looked at for
        /// longest; they are fetched again when somebody does.
        remote_cache_bytes: u64 = 10 * 1024 * 1024 * 1024;
        /// Days for which a file of another server is kept that nobody looks at.
        remote_cache_days: u32 = 90;
        /// Days after which a file of this server's people is deleted that nobody has looked at, and that nothing names
        /// which the server can read: avatars and files in messages that it can read stay, files in encrypted messages
        /// go. Unset: never.
        unused_days: Option<u32> = None, example "365";
        /// How the store of `media.store` is reached.
        s3: S3 = S3::default();
    }

    /// An object store.
    S3 {
        /// Its address. Unset: Amazon's, of the region. It may be plain HTTP where the network is trusted.
        endpoint: Option<Url> = None, example r#""https://s3.example.org/""#;
        /// The region.
        region: String = "us-east-1".to_owned();
        /// The access key. Unset: taken from `AWS_ACCESS_KEY_ID` and its siblings in the environment, or from the
        /// machine that this runs on.
        access_key_id: Option<String> = None, example r#""AKIAEXAMPLE""#;
        /// The secret of the access key.
        secret_access_key: Option<Secret> = None, example r#""a secret""#;
        /// Whether the bucket is the first part of the host's name rather than of the path.
        virtual_hosted: bool = false;
    }

    /// Previews of pages on the web, for links in messages.
    UrlPreviews {
        /// Whether this server reads pages for people. It then learns the links in their messages, encrypted ones too.
        /// The default is `false` with `plaintext = "refuse"` and `true` with `plaintext = "accept"`.
        enabled: Option<bool> = None, example "false";
        /// Whether pages at private, loopback and link-local addresses may be read: whoever has an account can then
        /// read what the server can reach inside its network.
        allow_private_addresses: bool = false;
        /// Hosts, with everything below them, whose pages are not read.
        denied_hosts: Vec<String> = Vec::new();
    }

    /// How long messages are kept: `m.room.retention` (MSC1763).
    Retention {
        /// Whether messages are deleted when they are older than the policy of their room allows.
        enabled: bool = false;
        /// Days that messages are kept in rooms that say nothing. Unset: for ever.
        default_max_days: Option<u64> = None, example "365";
        /// Days that messages are kept at least, whatever rooms say.
        min_days: u64 = 1;
        /// Days that messages are kept at most, whatever rooms say. Unset: as long as rooms want.
        max_days: Option<u64> = None, example "3650";
        /// How often rooms are looked through, in hours.
        every_hours: u64 = 24;
        /// Whether files of this server's people are deleted that nothing names which the server can read, those in
        /// encrypted messages, when they are older than any room keeps messages and nobody has looked at them for as
        /// long. Where one room keeps messages for ever, none is. Files that a deleted message named are deleted with it
        /// in any case.
        media: bool = true;
    }

    /// Push notifications.
    Push {
        /// Off: apps may still register, and nothing is sent to their gateways.
        enabled: bool = true;
        /// Whether gateways at private, loopback and link-local addresses may be called, and over plain HTTP: for an
        /// organisation that runs a gateway inside its network. Whoever has an account can then make the server
        /// send requests to `/_matrix/push/v1/notify` of any host in that network.
        allow_private_addresses: bool = false;
        /// What the number on an app's icon counts: unread `messages`, or `rooms` with unread messages. Each
        /// invitation counts as one in both.
        badge: Badge = Badge::Messages;
        /// Gives every account the rule of MSC4028, which pushes every event of encrypted rooms that are not muted,
        /// so that apps can look for mentions inside. Apps that do not know it then notify of every such event.
        encrypted_events: bool = false;
        /// Gives every account the rules of MSC4306: in threads, only those to which a person subscribed notify.
        /// Apps that do not know thread subscriptions then no longer notify of messages in threads.
        thread_subscriptions: bool = false;
    }

    /// What one password hash costs.
    Password {
        /// Memory for one hash, in KiB.
        memory_kib: u32 = 19_456;
        /// Passes over that memory.
        iterations: u32 = 2;
    }

    /// Mail to people.
    Email {
        /// The mail server that takes letters for delivery, by name or address. Unset: the server sends no mail, and
        /// accounts have no e-mail addresses.
        server: Option<String> = None, example r#""smtp.example.org""#;
        /// The port. The default is 587 with `tls = "starttls"`, 465 with `"tls"`, 25 with `"none"`.
        port: Option<u16> = None, example "587";
        /// How the connection is protected: `starttls`, `tls`, or `none` for a mail server on the same machine. The
        /// system's certificate authorities are trusted, and those of `tls.extra_roots`.
        tls: MailTls = MailTls::StartTls;
        /// The name to log in to the mail server with. Unset: nobody logs in.
        username: Option<String> = None, example r#""waxwing@example.org""#;
        /// Its password.
        password: Option<Secret> = None, example r#""a long random text""#;
        /// The sender of the letters. The default is `noreply@` and the server name.
        from: Option<String> = None, example r#""Example Ltd <noreply@example.org>""#;
        /// Whether whoever registers must show an address.
        required: bool = false;
        /// The domains of addresses that people may use. Empty: all.
        allowed_domains: Vec<String> = Vec::new();
        /// The hosts to which an app may send the browser after a link in a letter was followed. Empty: all.
        next_link_domains: Vec<String> = Vec::new();
    }

    /// Terms of service.
    Terms {
        /// The documents, by title: `{ "Privacy policy" = "https://example.org/privacy" }`. Empty: nothing is asked.
        policies: BTreeMap<String, String> = BTreeMap::new();
        /// Their version, which clients show.
        version: String = "1".to_owned();
        /// Their language.
        language: String = "en".to_owned();
    }

    /// Server notices.
    ServerNotices {
        /// Whether administrators can have the server write to people (`/_synapse/admin/v1/send_server_notice`). What it
        /// writes is not encrypted; `waxwing audit` lists that.
        enabled: bool = false;
        /// The part before the colon of the user as whom the server writes.
        localpart: String = "_server".to_owned();
        /// That user's name.
        display_name: String = "Server notices".to_owned();
        /// That user's avatar, and the room's: an `mxc://` address.
        avatar_url: Option<String> = None, example r#""mxc://example.org/abc""#;
        /// The name of the room in which each person reads them.
        room_name: String = "Server notices".to_owned();
    }

    /// A TURN server.
    Turn {
        /// Where it is. Empty: there is none.
        uris: Vec<String> = Vec::new();
        /// The secret that it shares with this server (`static-auth-secret` of coturn): people get names and passwords
        /// that are good for a while.
        shared_secret: Option<Secret> = None, example r#""a long random text""#;
        /// Without a shared secret: one name for all.
        username: Option<String> = None, example r#""caller""#;
        /// And its password.
        password: Option<Secret> = None, example r#""a long random text""#;
        /// How long what is given out is good, in seconds.
        lifetime_seconds: u64 = 86_400;
        /// Whether guests get it too.
        guests: bool = true;
    }

    /// Discovery.
    WellKnown {
        /// What `/.well-known/matrix/client` gives as the homeserver. The default is `public_base_url`; without
        /// either the file is not served.
        client: Option<Url> = None, example r#""https://matrix.example.org/""#;
        /// What `/.well-known/matrix/server` gives. Unset: the file is not served.
        server: Option<String> = None, example r#""matrix.example.org:443""#;
        /// A page where people find help: part of `/.well-known/matrix/support`. Without this and both addresses below
        /// the file is not served.
        support_page: Option<Url> = None, example r#""https://example.org/help""#;
        /// Where the administrators are reached by mail.
        support_email: Option<String> = None, example r#""admin@example.org""#;
        /// The account of an administrator.
        support_user: Option<String> = None, example r#""@admin:example.org""#;
    }

    /// Calls of several people (MatrixRTC).
    Rtc {
        /// Where clients get into calls: the authorisation services of LiveKit servers (`lk-jwt-service`), in the order
        /// in which clients shall try them. Empty: clients find no place for calls here.
        livekit_service_urls: Vec<Url> = Vec::new();
    }

    /// Log lines.
    Log {
        /// A level (`error`, `warn`, `info`, `debug`, `trace`) or a list of `target=level`.
        level: String = "info".to_owned();
        /// `text` or `json`.
        format: LogFormat = LogFormat::Text;
    }
}

impl Config {
    /// The address of the database.
    pub fn database_url(&self) -> Secret {
        match &self.database {
            Some(url) => url.clone(),
            None => Secret::new(format!("sqlite:{}", self.data_dir.join("waxwing.db").display())),
        }
    }

    /// The address of the database as people may see it: without user, password and parameters.
    pub fn database_shown(&self) -> String {
        let url = self.database_url();
        match Url::parse(url.expose()) {
            Ok(parsed) if parsed.has_host() => {
                format!("{}://{}{}", parsed.scheme(), parsed.host_str().unwrap_or_default(), parsed.path())
            }
            _ => url.expose().split('?').next().unwrap_or_default().to_owned(),
        }
    }

    /// The folder of the media files.
    pub fn media_path(&self) -> PathBuf {
        self.media.path.clone().unwrap_or_else(|| self.data_dir.join("media"))
    }

    /// The bucket and the prefix of `media.store`; none when it is unset or is no such address.
    pub fn bucket(&self) -> Option<(&str, &str)> {
        let address = self.media.store.as_deref()?.strip_prefix("s3://")?;
        let (bucket, prefix) = address.split_once('/').unwrap_or((address, ""));
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        (!bucket.is_empty() && bucket.chars().all(fine)).then_some((bucket, prefix.trim_matches('/')))
    }

    /// Whether pages on the web are read for people.
    pub fn previews_urls(&self) -> bool {
        self.url_previews.enabled.unwrap_or(self.plaintext == Plaintext::Accept)
    }
}
