//! The metrics of this crate and the values of their labels.

use tagfast_resilience::{LabelDef, MetricDef, MetricKind, label_enum};

label_enum! {
    /// Why a request was refused before its handler ran: the reason of
    /// `tagfast_auth_failures_total`.
    pub(crate) enum AuthFailure {
        Missing = "missing",
        Malformed = "malformed",
        Critical = "critical",
        Algorithm = "algorithm",
        UnknownKey = "unknown_key",
        Signature = "signature",
        Audience = "audience",
        Issuer = "issuer",
        Claims = "claims",
        Expired = "expired",
        NotYetValid = "not_yet_valid",
        MissingScope = "missing_scope",
        KeysUnavailable = "keys_unavailable",
    }
}

label_enum! {
    /// An optional part of answers.
    pub(crate) enum Feature {
        Popular = "popular",
        Suggestions = "suggestions",
        Count = "count",
        Related = "related",
        Facets = "facets",
        Total = "total",
    }
}

impl Feature {
    pub(crate) const ALL: [Self; 6] =
        [Self::Popular, Self::Suggestions, Self::Count, Self::Related, Self::Facets, Self::Total];
}

label_enum! {
    /// What the client got instead of a fresh feature.
    pub(crate) enum DegradedOutcome {
        /// The last good answer.
        LastGood = "last_good",
        /// An answer without the feature.
        Omitted = "features_limited",
        /// An error, because the client accepts neither.
        Refused = "refused",
    }
}

pub(crate) const HTTP_REQUESTS: MetricDef = MetricDef {
    name: "tagfast_http_requests_total",
    kind: MetricKind::Counter,
    labels: &[
        LabelDef::bounded("route", "routes of the API"),
        LabelDef::bounded("method", "HTTP methods that a route has, else other"),
        LabelDef::bounded("status", "HTTP statuses that the service answers, else other"),
    ],
    help: "Requests answered. Worry when the share of 5xx other than 501 grows.",
};

pub(crate) const HTTP_REQUEST_SECONDS: MetricDef = MetricDef {
    name: "tagfast_http_request_seconds",
    kind: MetricKind::Histogram,
    labels: &[LabelDef::bounded("route", "routes of the API")],
    help: "Time from the head of a request to the head of its answer, in seconds.",
};

pub(crate) const HTTP_REQUESTS_IN_FLIGHT: MetricDef = MetricDef {
    name: "tagfast_http_requests_in_flight",
    kind: MetricKind::Gauge,
    labels: &[],
    help: "Requests in flight.",
};

pub(crate) const HTTP_CONNECTIONS: MetricDef = MetricDef {
    name: "tagfast_http_connections",
    kind: MetricKind::Gauge,
    labels: &[],
    help: "Open connections. At the limit new ones wait in the kernel's queue.",
};

pub(crate) const HTTP_PANICS: MetricDef = MetricDef {
    name: "tagfast_http_panics_total",
    kind: MetricKind::Counter,
    labels: &[],
    help: "Handlers that panicked; each is a bug.",
};

pub(crate) const AUTH_FAILURES: MetricDef = MetricDef {
    name: "tagfast_auth_failures_total",
    kind: MetricKind::Counter,
    labels: &[LabelDef::of::<AuthFailure>("reason")],
    help: "Requests refused with 401 or 403, and 503 while no key set is loaded, by reason.",
};

pub(crate) const RATE_LIMITED: MetricDef = MetricDef {
    name: "tagfast_rate_limited_total",
    kind: MetricKind::Counter,
    labels: &[],
    help: "Requests refused with 429.",
};

pub(crate) const DEGRADED_ANSWERS: MetricDef = MetricDef {
    name: "tagfast_degraded_answers_total",
    kind: MetricKind::Counter,
    labels: &[
        LabelDef::of::<Feature>("feature"),
        LabelDef::of::<DegradedOutcome>("outcome"),
        LabelDef::bounded("reason", "reasons in docs/concepts/degradation.md"),
    ],
    help: "Features without a fresh answer: the last good one was given (last_good), the feature \
           was omitted (features_limited), or the client accepted neither (refused).",
};

pub(crate) const LAST_GOOD_BYTES: MetricDef = MetricDef {
    name: "tagfast_last_good_bytes",
    kind: MetricKind::Gauge,
    labels: &[],
    help: "Memory of the last good answers, kept for when a feature fails; at most 64 MiB.",
};

/// The metrics of this crate.
pub const METRICS: &[MetricDef] = &[
    HTTP_REQUESTS,
    HTTP_REQUEST_SECONDS,
    HTTP_REQUESTS_IN_FLIGHT,
    HTTP_CONNECTIONS,
    HTTP_PANICS,
    AUTH_FAILURES,
    RATE_LIMITED,
    DEGRADED_ANSWERS,
    LAST_GOOD_BYTES,
];
