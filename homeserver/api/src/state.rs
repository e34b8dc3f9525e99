use crate::client::discovery::WellKnown;
use crate::limits::Limits;
use std::ops::Deref;
use std::sync::Arc;
use waxwing_services::Core;
use waxwing_services::account_data::AccountData;
use waxwing_services::accounts::Accounts;
use waxwing_services::appservices::{Feeds, Networks};
use waxwing_services::backups::Backups;
use waxwing_services::delayed::Delayed;
use waxwing_services::directory::Directory;
use waxwing_services::federation::Federation;
use waxwing_services::filters::Filters;
use waxwing_services::keys::Keys;
use waxwing_services::media::Media;
use waxwing_services::notices::Notices;
use waxwing_services::notifications::Notifications;
use waxwing_services::people::People;
use waxwing_services::presence::PresenceService;
use waxwing_services::previews::Previews;
use waxwing_services::profiles::Profiles;
use waxwing_services::purge::Purges;
use waxwing_services::push_rules::PushRules;
use waxwing_services::pushers::Pushers;
use waxwing_services::receipts::Receipts;
use waxwing_services::relationships::Relationships;
use waxwing_services::rendezvous::Rendezvous;
use waxwing_services::reports::Reports;
use waxwing_services::rooms_read::RoomReader;
use waxwing_services::search::Search;
use waxwing_services::sync::Sync;
use waxwing_services::third_party::ThirdParty;
use waxwing_services::thread_subscriptions::ThreadSubscriptions;
use waxwing_services::timeline::Timeline;
use waxwing_services::to_device::ToDevice;
use waxwing_services::typing::Typing;

/// What handlers call. One line for each service.
pub struct Parts {
    /// Who we are, the settings.
    pub core: Core,
    /// Where others find this server.
    pub well_known: WellKnown,
    /// Rate limits.
    pub limits: Limits,
    /// Account data, tags.
    pub account_data: AccountData,
    /// Accounts, devices, tokens.
    pub accounts: Arc<Accounts>,
    /// What application services are told.
    pub feeds: Feeds,
    /// Other networks, by application services.
    pub networks: Networks,
    /// Events that are sent later.
    pub delayed: Delayed,
    /// Other servers; none when federation is off.
    pub federation: Option<Federation>,
    /// Stored filters.
    pub filters: Filters,
    /// What the server writes to its users.
    pub notices: Notices,
    /// What users were notified of.
    pub notifications: Notifications,
    /// Finding people.
    pub people: People,
    /// Walking from event to event.
    pub relationships: Relationships,
    /// Where devices meet to sign in.
    pub rendezvous: Rendezvous,
    /// Reports.
    pub reports: Reports,
    /// Finding messages.
    pub search: Search,
    /// Profiles.
    pub profiles: Profiles,
    /// Forgetting rooms and history.
    pub purges: Purges,
    /// Push rules.
    pub push_rules: PushRules,
    /// Where notifications go.
    pub pushers: Pushers,
    /// Rooms as they grow.
    pub timeline: Timeline,
    /// Uploaded files.
    pub media: Media,
    /// Pages on the web.
    pub previews: Previews,
    /// Reading rooms.
    pub reader: RoomReader,
    /// What is new.
    pub sync: Sync,
    /// Finding rooms.
    pub directory: Directory,
    /// Invitations by an address.
    pub third_party: ThirdParty,
    /// Threads that people follow.
    pub thread_subscriptions: ThreadSubscriptions,
    /// Who types.
    pub typing: Typing,
    /// Who read what.
    pub receipts: Receipts,
    /// Who is there.
    pub presence: PresenceService,
    /// End-to-end keys.
    pub keys: Keys,
    /// Messages between devices.
    pub to_device: ToDevice,
    /// Key backups.
    pub backups: Backups,
}

/// The state of every route: a handle to [`Parts`], cheap to clone.
#[derive(Clone)]
pub struct Api(Arc<Parts>);

impl Api {
    /// Wraps the parts.
    pub fn new(parts: Parts) -> Api {
        Api(Arc::new(parts))
    }
}

impl Deref for Api {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}
