//! The metrics of this crate and the values of their labels.

use tagfast_resilience::{define_metrics, label_enum};

label_enum! {
    /// Why a request was refused before its handler ran: the reason of
    /// `tagfast_auth_failures_total`.
    pub(crate) enum AuthFailure {
        Missing = "missing", Malformed = "malformed", Critical = "critical",
        Algorithm = "algorithm", UnknownKey = "unknown_key", Signature = "signature",
        Audience = "audience", Issuer = "issuer", Claims = "claims", Expired = "expired",
        NotYetValid = "not_yet_valid", MissingScope = "missing_scope",
        KeysUnavailable = "keys_unavailable",
    }
}

label_enum! {
    /// What a refresh of the key set did.
    pub(crate) enum JwksRefresh {
        /// Other keys are in force now.
        Changed = "changed",
        Unchanged = "unchanged",
        /// The known keys stay in force.
        Failed = "failed",
    }
}

label_enum! {
    /// An optional part of answers.
    pub(crate) enum Feature {
        Popular = "popular", Suggestions = "suggestions", Count = "count", Related = "related",
        Facets = "facets", Total = "total",
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

label_enum! {
    /// What holds bytes in memory.
    pub(crate) enum Held {
        /// A request body.
        Request = "request",
        /// An answer.
        Answer = "answer",
    }
}

label_enum! {
    /// What a client stopped to take or to send.
    pub(crate) enum Stall {
        /// It accepts nothing of its answer.
        Answer = "answer",
        /// It sends nothing of its request body.
        Request = "request",
    }
}

label_enum! {
    /// What shows that a request comes from a web page of a different site.
    pub(crate) enum Foreign {
        /// It names a host that is not one of the service.
        Host = "host",
        /// Its `Origin`.
        Origin = "origin",
        /// Its `Sec-Fetch-Site`.
        FetchSite = "fetch_site",
    }
}

define_metrics! {
    /// The metrics of this crate.
    pub const METRICS;

    /// Requests answered. Worry when the share of 5xx other than 501 grows.
    pub(crate) counter HTTP_REQUESTS = "tagfast_http_requests_total" {
        route in "routes of the API",
        method in "HTTP methods that a route has, else other",
        status in "HTTP statuses that the service answers, else other",
    };

    /// Time from the head of a request to the head of its answer, in seconds.
    pub(crate) histogram HTTP_REQUEST_SECONDS = "tagfast_http_request_seconds" {
        route in "routes of the API",
    };

    /// Requests in flight.
    pub(crate) gauge HTTP_REQUESTS_IN_FLIGHT = "tagfast_http_requests_in_flight";

    /// Open connections. At the limit new ones wait in the kernel's queue.
    pub(crate) gauge HTTP_CONNECTIONS = "tagfast_http_connections";

    /// Attempts to accept a connection that failed, at most 20 a second: the process has no file
    /// left for it.
    pub(crate) counter HTTP_ACCEPT_FAILURES = "tagfast_http_accept_failures_total";

    /// Bytes that request bodies and answers hold in memory, of `server.max_in_flight_bytes`. Near
    /// three quarters of it: large requests are refused.
    pub(crate) gauge HTTP_BYTES_IN_FLIGHT = "tagfast_http_in_flight_bytes";

    /// Requests refused with 503 because the bytes in flight reached `server.max_in_flight_bytes`:
    /// while their body was read (request), or instead of their answer (answer).
    pub(crate) counter HTTP_BYTES_REFUSED = "tagfast_http_in_flight_refused_total" { what: Held };

    /// Connections closed because the client made no progress: it accepted nothing of its answer
    /// within `server.write_timeout_ms`, or sent nothing of its request body.
    pub(crate) counter HTTP_STALLED = "tagfast_http_stalled_connections_total" { what: Stall };

    /// Requests refused because they name a host that is not one of the service (host), or because
    /// a web page of a different origin asks for a change (origin, fetch_site). A name of your own:
    /// set `server.allowed_hosts`.
    pub(crate) counter HTTP_FOREIGN = "tagfast_http_foreign_total" { what: Foreign };

    /// Handlers that panicked; each is a bug.
    pub(crate) counter HTTP_PANICS = "tagfast_http_panics_total";

    /// Requests refused with 401 or 403, and 503 while no key set is loaded, by reason.
    pub(crate) counter AUTH_FAILURES = "tagfast_auth_failures_total" { reason: AuthFailure };

    /// Refreshes of the key set that verifies tokens. Worry when `failed` grows: a key that was
    /// withdrawn is still accepted, and a new one is not.
    pub(crate) counter JWKS_REFRESHES = "tagfast_jwks_refreshes_total" { outcome: JwksRefresh };

    /// Keys that verify tokens, of the key set in force.
    pub(crate) gauge JWKS_KEYS = "tagfast_jwks_keys";

    /// Requests refused with 429.
    pub(crate) counter RATE_LIMITED = "tagfast_rate_limited_total";

    /// Features without a fresh answer: the last good one was given (last_good), the feature was
    /// omitted (features_limited), or the client accepted neither (refused).
    pub(crate) counter DEGRADED_ANSWERS = "tagfast_degraded_answers_total" {
        feature: Feature,
        outcome: DegradedOutcome,
        reason in "reasons in docs/concepts/degradation.md",
    };

    /// Memory of the last good answers, kept for when a feature fails; at most 64 MiB.
    pub(crate) gauge LAST_GOOD_BYTES = "tagfast_last_good_bytes";
}
