//! Dehydrated devices: what a new client of the user wakes them up with.

use crate::engine::{Conn, on_engine};
use crate::error::{StoreError, StoreResult};
use crate::sql::statements;
use ruma::{DeviceId, OwnedDeviceId, UserId};
use serde_json::value::RawValue;

statements! {
    LOAD = "SELECT device_id, device_data FROM dehydrated_devices WHERE user_id = $1";
    PUT = "INSERT INTO dehydrated_devices (user_id, device_id, device_data) VALUES ($1, $2, $3) ON CONFLICT (user_id) DO UPDATE SET device_id = excluded.device_id, device_data = excluded.device_data";
    DELETE = "DELETE FROM dehydrated_devices WHERE user_id = $1 AND device_id = $2";
}

/// A user's dehydrated device.
#[derive(Clone, Debug)]
pub struct DehydratedRow {
    /// The device.
    pub device_id: OwnedDeviceId,
    /// Its private part, encrypted by the client: JSON as it came.
    pub device_data: Box<RawValue>,
}

impl Conn {
    /// The dehydrated device of a user.
    pub async fn dehydrated_load(&mut self, user: &UserId) -> StoreResult<Option<DehydratedRow>> {
        let found: Option<(String, String)> =
            on_engine!(self, |c| sqlx::query_as(LOAD).bind(user.as_str()).fetch_optional(c).await)?;
        let Some((device_id, data)) = found else { return Ok(None) };
        let device_data = RawValue::from_string(data)
            .map_err(|error| StoreError::corrupt("dehydrated_devices", user.as_str(), error))?;
        Ok(Some(DehydratedRow { device_id: device_id.into(), device_data }))
    }
}

impl crate::Tx {
    /// Makes a device the dehydrated one of its user, in the place of another.
    pub async fn dehydrated_put(&mut self, user: &UserId, row: &DehydratedRow) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(PUT)
            .bind(user.as_str())
            .bind(row.device_id.as_str())
            .bind(row.device_data.get())
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }

    /// The device is gone: if it was the dehydrated one, there is none any more.
    pub async fn dehydrated_delete(&mut self, user: &UserId, device: &DeviceId) -> StoreResult<()> {
        let conn = self.writing().await?;
        on_engine!(conn, |c| sqlx::query(DELETE)
            .bind(user.as_str())
            .bind(device.as_str())
            .execute(c)
            .await
            .map(|_| ()))?;
        Ok(())
    }
}
