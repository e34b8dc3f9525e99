//! Application services: who they are. <https://spec.matrix.org/v1.19/application-service-api/>

/// The application services of this server.
#[derive(Debug, Default)]
pub struct Appservices {}

impl Appservices {
    /// Whether the rate limits count for the application service with this id.
    pub fn is_rate_limited(&self, _id: &str) -> bool {
        true
    }
}
