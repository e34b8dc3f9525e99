use crate::keys::Keys;
use crate::presence::PresenceService;
use crate::receipts::Receipts;
use crate::to_device::ToDevice;
use crate::typing::Typing;
use async_trait::async_trait;
use ruma::ServerName;
use ruma::api::federation::transactions::edu::{
    DeviceListUpdateContent, DirectDeviceContent, PresenceContent, SigningKeyUpdateContent, TypingContent,
};
use waxwing_federation::ports::{EduSink, PortError, PortResult, ReadReceipt};

/// Hands what other servers push beside events to the services that it is for.
#[derive(Clone)]
pub struct Edus {
    /// Who types.
    pub typing: Typing,
    /// Who read what.
    pub receipts: Receipts,
    /// Who is there.
    pub presence: PresenceService,
    /// Device lists and cross-signing keys.
    pub keys: Keys,
    /// Messages between devices.
    pub to_device: ToDevice,
}

#[async_trait]
impl EduSink for Edus {
    async fn typing(&self, _origin: &ServerName, content: TypingContent) -> PortResult<()> {
        self.typing.take(content).await.map_err(PortError::new)
    }

    async fn receipts(&self, _origin: &ServerName, receipts: Vec<ReadReceipt>) -> PortResult<()> {
        self.receipts.take(receipts).await.map_err(PortError::new)
    }

    async fn presence(&self, _origin: &ServerName, content: PresenceContent) -> PortResult<()> {
        self.presence.take(content).await.map_err(PortError::new)
    }

    async fn device_list_update(
        &self,
        _origin: &ServerName,
        content: DeviceListUpdateContent,
    ) -> PortResult<()> {
        self.keys.device_list_update(content).await.map_err(PortError::new)
    }

    async fn signing_key_update(
        &self,
        _origin: &ServerName,
        content: SigningKeyUpdateContent,
    ) -> PortResult<()> {
        self.keys.signing_key_update(content).await.map_err(PortError::new)
    }

    async fn direct_to_device(&self, _origin: &ServerName, content: DirectDeviceContent) -> PortResult<()> {
        self.to_device.receive(content).await.map_err(PortError::new)
    }
}
