use crate::Core;
use waxwing_storage::{StoreResult, TokenHash};

/// The first request with an access token: its predecessor and the refresh token that made it die now.
/// <https://spec.matrix.org/v1.19/client-server-api/#refreshing-access-tokens>
pub(super) async fn first_use(_core: &Core, _hash: TokenHash) -> StoreResult<()> {
    Ok(())
}
