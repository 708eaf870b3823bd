//! The state that all handlers share: the services, and what the API keeps beside them.

use std::sync::{Arc, LazyLock, OnceLock};

use crate::auth::Authenticator;
use crate::fallback::FeatureFallback;
use crate::rate_limit::RateLimiter;
use crate::services::ApiServices;
use bytes::Bytes;

/// The shared state of the handlers.
pub(crate) struct ApiState {
    pub(crate) services: ApiServices,
    pub(crate) auth: Authenticator,
    /// `None`: no rate limit is configured.
    pub(crate) rate_limiter: Option<RateLimiter>,
    pub(crate) fallback: Arc<FeatureFallback>,
    openapi: LazyLock<Bytes>,
    docs_page: OnceLock<Bytes>,
}

impl ApiState {
    /// `openapi` renders the OpenAPI document; it runs at the first request for it.
    pub(crate) fn new(services: ApiServices, openapi: fn() -> Bytes) -> Arc<Self> {
        Arc::new(Self {
            auth: Authenticator::new(&services),
            rate_limiter: RateLimiter::new(&services.limits),
            fallback: FeatureFallback::new(services.limits.max_stale, services.tasks.clone()),
            services,
            openapi: LazyLock::new(openapi),
            docs_page: OnceLock::new(),
        })
    }

    /// What is degraded in the API itself, and what the machine limits: (feature, reason).
    pub(crate) fn degraded(&self) -> impl Iterator<Item = (String, String)> {
        let outdated = self.auth.has_outdated_keys();
        let auth = outdated.then(|| ("auth".to_owned(), "unavailable".to_owned()));
        self.services.machine_limits.iter().cloned().chain(auth)
    }

    /// The OpenAPI document as JSON.
    pub(crate) fn openapi_json(&self) -> &Bytes {
        &self.openapi
    }

    /// The page of all calls; `render` runs at the first request for it.
    pub(crate) fn docs_page(&self, render: fn(&[u8]) -> String) -> Bytes {
        self.docs_page.get_or_init(|| render(&self.openapi).into()).clone()
    }
}
