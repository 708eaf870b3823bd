//! The state that all handlers share: the services, and what the API keeps beside them.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use tagfast_resilience::task::TaskTracker;

use crate::auth::Authenticator;
use crate::fallback::FeatureFallback;
use crate::rate_limit::RateLimiter;
use crate::services::ApiServices;

/// The shared state of the handlers.
pub(crate) struct ApiState {
    pub(crate) services: ApiServices,
    pub(crate) auth: Authenticator,
    /// `None`: no rate limit is configured.
    pub(crate) rate_limiter: Option<RateLimiter>,
    pub(crate) fallback: Arc<FeatureFallback>,
    /// Tasks that outlive the request that started them.
    pub(crate) tasks: TaskTracker,
    openapi: LazyLock<Bytes>,
}

impl ApiState {
    /// `openapi` renders the OpenAPI document; it runs at the first request for it.
    pub(crate) fn new(services: ApiServices, openapi: fn() -> Bytes) -> Arc<Self> {
        Arc::new(Self {
            auth: Authenticator::new(&services.auth, &services.clock),
            rate_limiter: RateLimiter::new(&services.limits),
            fallback: FeatureFallback::new(services.limits.max_stale),
            services,
            tasks: TaskTracker::new(),
            openapi: LazyLock::new(openapi),
        })
    }

    /// The OpenAPI document as JSON.
    pub(crate) fn openapi_json(&self) -> &Bytes {
        &self.openapi
    }
}
