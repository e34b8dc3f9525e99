use waxwing_storage::StoreError;

/// Why a token is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// Nobody has it, or it was taken away.
    #[error("the access token is not known")]
    Unknown,
    /// It has expired; a refresh token or a new login for the same device helps.
    #[error("the access token has expired")]
    Expired,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What can go wrong with accounts.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The name breaks the grammar of user ids.
    #[error("{0}")]
    InvalidUsername(&'static str),
    /// The name is taken, or was.
    #[error("the user name is taken")]
    UserInUse,
    /// The name is reserved for an application service, or is not the application service's to use.
    #[error("the user name is reserved for an application service")]
    Exclusive,
    /// The user is not the application service's to speak for.
    #[error("the user is not the application service's")]
    NotTheirs,
    /// Nobody may register, or nobody in this way.
    #[error("registration is not open")]
    RegistrationClosed,
    /// The token that comes with a registration is not that of the guest whose name is asked for.
    #[error("the guest's token is not that of this user")]
    NotThisGuest,
    /// Guests are not let in.
    #[error("guests are not let in")]
    GuestsClosed,
    /// The registration token is unknown, expired or used up.
    #[error("the registration token is not valid")]
    BadRegistrationToken,
    /// The password is empty or too long.
    #[error("the password is empty or too long")]
    WeakPassword,
    /// Unknown user or wrong password: the same answer for both.
    #[error("wrong user name or password")]
    WrongPassword,
    /// The login token is unknown, used or expired.
    #[error("the login token is not valid")]
    BadLoginToken,
    /// The refresh token is unknown, or a newer one was used.
    #[error("the refresh token is not valid")]
    BadRefreshToken,
    /// The account is closed.
    #[error("the account is closed")]
    Deactivated,
    /// The account is locked.
    #[error("the account is locked")]
    Locked,
    /// There is no such user.
    #[error("there is no such user")]
    UnknownUser,
    /// There is no such device.
    #[error("there is no such device")]
    UnknownDevice,
    /// The device id is empty or too long.
    #[error("the device id is empty or too long")]
    InvalidDeviceId,
    /// The device id is one of the user's cross-signing keys, or the key is one of the device ids.
    #[error("the device id is a cross-signing key")]
    DeviceIdIsKey,
    /// The shared-secret registration API is off.
    #[error("shared-secret registration is off")]
    SharedSecretOff,
    /// The nonce is unknown, used or expired.
    #[error("the nonce is not known")]
    BadNonce,
    /// The MAC is wrong.
    #[error("the MAC is wrong")]
    BadMac,
    /// Only administrators may do that.
    #[error("only administrators may do that")]
    NotAdmin,
    /// It cannot be done to oneself or to another administrator.
    #[error("not to oneself, nor to another administrator")]
    Protected,
    /// The user belongs to another server.
    #[error("the user belongs to another server")]
    RemoteUser,
    /// A parameter is not what it must be.
    #[error("{0}")]
    InvalidParam(&'static str),
    /// There is no mail server, or no gateway to telephones.
    #[error("this server sends nothing there")]
    MediumNotSupported,
    /// The operator does not want this address here, or the account has too many.
    #[error("this address is not allowed")]
    AddressDenied,
    /// The address is another account's.
    #[error("this address is in use")]
    AddressInUse,
    /// The address is not the account's.
    #[error("this address is not known")]
    AddressNotFound,
    /// There is no such session, or it is not validated, or was used: the same answer for all.
    #[error("no validated session was found")]
    NotValidated,
    /// There is no such session.
    #[error("there is no such session")]
    NoSession,
    /// The session takes no token any more.
    #[error("the session has expired")]
    SessionExpired,
    /// The token is not that of the letter.
    #[error("the token is not right")]
    WrongToken,
    /// No letter could be sent just now.
    #[error("the letter could not be sent; try again later")]
    MailBusy,
    /// The password could not be hashed.
    #[error("hashing: {0}")]
    Hash(String),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
