//! The table of client endpoints: every operation of the specification, the older names of those that older clients
//! use, and the unstable ones of today's clients.

use reqwest::Method;

const TABLE: &str = include_str!("../coverage/endpoints.tsv");

/// Where an operation comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The endpoint table of the specification.
    Spec,
    /// The specification's prose: pages and files that no API description lists.
    Prose,
    /// The older path of an operation of the specification.
    Alias,
    /// A proposal that a client uses today.
    Unstable,
}

/// Who may call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Anyone.
    None,
    /// Anyone; a token tells who it is.
    Optional,
    /// Whoever has a token.
    User,
    /// An application service.
    Appservice,
}

/// One operation.
#[derive(Clone, Debug)]
pub struct Operation {
    pub kind: Kind,
    pub method: Method,
    /// With its variables in braces.
    pub path: String,
    pub name: String,
    pub since: String,
    pub auth: Auth,
    pub guests: bool,
    pub deprecated: bool,
}

impl Operation {
    /// The path with every variable replaced by what `value` says.
    pub fn filled(&self, value: impl Fn(&str) -> String) -> String {
        let segments = self.path.split('/').map(|segment| {
            match segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
                Some(name) => value(name),
                None => segment.to_owned(),
            }
        });
        segments.collect::<Vec<_>>().join("/")
    }

    /// Whether its body is JSON: those of uploads and of the older rendezvous are not.
    pub fn takes_json(&self) -> bool {
        let bytes = self.path.contains("/media/") || self.path.contains("org.matrix.msc4108");
        matches!(self.method, Method::POST | Method::PUT) && !bytes
    }

    /// Names the operation in messages.
    pub fn shown(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// All operations, in the order of the table.
pub fn all() -> Vec<Operation> {
    TABLE.lines().skip(1).map(parse).collect()
}

fn parse(line: &str) -> Operation {
    let columns: Vec<&str> = line.split('\t').collect();
    let [kind, method, path, name, since, auth, guests, deprecated] = columns[..] else {
        panic!("{line} has not eight columns");
    };
    Operation {
        kind: match kind {
            "spec" => Kind::Spec,
            "prose" => Kind::Prose,
            "alias" => Kind::Alias,
            "unstable" => Kind::Unstable,
            other => panic!("{other} is no kind"),
        },
        method: method.parse().unwrap(),
        path: path.to_owned(),
        name: name.to_owned(),
        since: since.to_owned(),
        auth: match auth {
            "none" => Auth::None,
            "optional" => Auth::Optional,
            "user" => Auth::User,
            "appservice" => Auth::Appservice,
            other => panic!("{other} is no authentication"),
        },
        guests: guests == "yes",
        deprecated: deprecated == "yes",
    }
}

/// What stands for a variable when nothing in particular is meant: well-formed, and mostly not there.
pub fn plausible(name: &str, user: &str, room: &str) -> String {
    match name {
        "userId" => user,
        "roomId" | "roomIdOrAlias" => room,
        "roomAlias" => "%23nowhere:localhost",
        "eventId" => "$nothing",
        "deviceId" => "NODEVICE",
        "type" | "eventType" => "org.example.kind",
        "serverName" => "localhost",
        "kind" => "override",
        "receiptType" => "m.read",
        "relType" => "m.thread",
        "keyName" => "displayname",
        "version" => "1",
        "authType" => "m.login.dummy",
        _ => "nothing",
    }
    .to_owned()
}
