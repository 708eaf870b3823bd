//! One request as a handler sees it: who asks, for what, until when.
//!
//! The extractor's type names the scope a handler needs ([`Read`], [`Write`], [`Admin`]); the bare
//! [`Call`] cannot be extracted, so that no handler can forget to ask.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use http::{HeaderMap, HeaderValue, header, request::Parts};
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;
use tagfast_domain::{ContentKey, TenantId, Version, WriteId};
use tagfast_resilience::Criticality;
use tagfast_store::{Consistency, ConsistencyToken, Durability, ReadOptions};
use tokio::time::Instant;

use crate::app::App;
use crate::auth::{Caller, Scope};
use crate::encoding;
use crate::headers;
use crate::problem::{Code, Problem};
use crate::wire::Object;

/// What the gate found out before the handler runs.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) who: Arc<Caller>,
    pub(crate) deadline: Instant,
    pub(crate) request_id: HeaderValue,
}

/// A request.
pub(crate) struct Call {
    pub(crate) app: Arc<App>,
    pub(crate) head: Parts,
    pub(crate) who: Arc<Caller>,
    pub(crate) deadline: Instant,
    request_id: HeaderValue,
    /// A body cannot be shared between threads but a handler's borrow of its call must be able to.
    body: Mutex<Body>,
}

/// A call that may read.
pub(crate) struct Read(pub(crate) Call);
/// A call that may write.
pub(crate) struct Write(pub(crate) Call);
/// A call that may operate the service.
pub(crate) struct Admin(pub(crate) Call);

macro_rules! extract {
    ($name:ident, $scope:expr) => {
        impl FromRequest<Arc<App>> for $name {
            type Rejection = Problem;
            async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Problem> {
                Call::new(request, app, $scope).map(Self)
            }
        }
    };
}
extract!(Read, Scope::Read);
extract!(Write, Scope::Write);
extract!(Admin, Scope::Admin);

impl Call {
    fn new(request: Request, app: &Arc<App>, scope: Scope) -> Result<Self, Problem> {
        let (mut head, body) = request.into_parts();
        let context = head
            .extensions
            .remove::<Context>()
            .ok_or_else(|| Problem::new(Code::Internal, "the request did not pass the gate"))?;
        let call = Self {
            app: Arc::clone(app),
            head,
            who: context.who,
            deadline: context.deadline,
            request_id: context.request_id,
            body: Mutex::new(body),
        };
        call.need(scope)?;
        Ok(call)
    }

    /// Refuses a caller without this scope.
    pub(crate) fn need(&self, scope: Scope) -> Result<(), Problem> {
        if self.who.may(scope) {
            return Ok(());
        }
        metrics::counter!("tagfast_auth_failures_total", "reason" => "missing_scope").increment(1);
        let challenge =
            format!("Bearer error=\"insufficient_scope\", scope=\"{}\"", scope.as_str());
        let problem = Problem::new(
            Code::MissingScope,
            format!("the token lacks the scope {}", scope.as_str()),
        );
        Err(match HeaderValue::try_from(challenge) {
            Ok(value) => problem.header(header::WWW_AUTHENTICATE, value),
            Err(_) => problem,
        })
    }

    /// The caller's tenant: the only one any handler may touch.
    pub(crate) fn tenant(&self) -> &TenantId {
        &self.who.tenant
    }

    /// A segment of the path, decoded; `/v1/content/{type}/{id}/tags/{tag}` has its type at 3.
    pub(crate) fn segment(&self, at: usize) -> Result<Cow<'_, str>, Problem> {
        encoding::segment(self.head.uri.path().split('/').nth(at).unwrap_or_default())
    }

    /// The content of a `/v1/content/{type}/{id}/...` path.
    pub(crate) fn content(&self) -> Result<ContentKey, Problem> {
        self.content_of(&self.segment(3)?, &self.segment(4)?)
    }

    /// A content of the caller's tenant.
    pub(crate) fn content_of(
        &self,
        content_type: &str,
        content_id: &str,
    ) -> Result<ContentKey, Problem> {
        Ok(ContentKey {
            tenant: self.who.tenant.clone(),
            content: tagfast_domain::Content {
                content_type: tagfast_domain::ContentType::parse(content_type)?,
                content_id: tagfast_domain::ContentId::parse(content_id)?,
            },
        })
    }

    /// The trace that problems of this request name.
    pub(crate) fn trace_id(&self) -> String {
        headers::trace_id(&self.head.headers, &self.request_id).to_owned()
    }

    /// Refuses any query parameter.
    pub(crate) fn no_query(&self) -> Result<(), Problem> {
        self.query(&[]).map(drop)
    }

    /// The query parameters.
    pub(crate) fn query(&self, known: &'static [&'static str]) -> Result<encoding::Query, Problem> {
        encoding::Query::parse(self.head.uri.query(), known)
    }

    /// The body as JSON.
    pub(crate) async fn json<T: DeserializeOwned>(&mut self) -> Result<T, Problem> {
        check_json_type(&self.head.headers)?;
        let allowed = self.app.parts.limits.body_bytes;
        if let Some(given) = content_length(&self.head.headers).filter(|n| *n > allowed as u64) {
            return Err(too_large(allowed, given));
        }
        let body = std::mem::take(self.body.get_mut().unwrap_or_else(PoisonError::into_inner));
        let body = Limited::new(body, allowed).collect();
        let bytes = match tokio::time::timeout_at(self.deadline, body).await {
            Err(_) => {
                let problem = Problem::new(Code::RequestTimeout, "the body did not arrive in time");
                return Err(problem.header(header::CONNECTION, HeaderValue::from_static("close")));
            }
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                return Err(too_large(allowed, allowed as u64 + 1));
            }
            Ok(Err(_)) => return Err(Problem::new(Code::BadJson, "the body broke off")),
            Ok(Ok(collected)) => collected.to_bytes(),
        };
        let parsed: Result<Object<T>, _> = serde_json::from_slice(&bytes);
        parsed.map(|object| object.0).map_err(|_| json_problem::<Object<T>>(&bytes))
    }

    /// The oldest stale answer that the client prefers to none.
    pub(crate) fn max_stale(&self) -> Result<Option<Duration>, Problem> {
        headers::max_stale(&self.head.headers, self.app.parts.limits.max_stale)
    }

    /// How this read must be served.
    pub(crate) fn reading(&self) -> Result<Reading, Problem> {
        let max_stale = self.max_stale()?;
        let consistency = headers::consistency(&self.head.headers)?;
        let token = match headers::one(&self.head.headers, &headers::CONSISTENCY_TOKEN)? {
            None => None,
            Some(sealed) => {
                let opened = ConsistencyToken::open(&self.app.parts.sealer, self.tenant(), sealed);
                Some(
                    opened.map_err(|e| {
                        Problem::new(Code::BadToken, format!("consistency token: {e}"))
                    })?,
                )
            }
        };
        Ok(Reading {
            who: Arc::clone(&self.who),
            consistency,
            token,
            deadline: self.deadline,
            max_stale,
        })
    }

    /// The token of an answer, as its header value.
    pub(crate) fn seal(&self, token: &ConsistencyToken) -> Option<HeaderValue> {
        HeaderValue::try_from(token.seal(&self.app.parts.sealer, self.tenant())).ok()
    }

    /// What all writes of this request share.
    pub(crate) fn writing(&self) -> Result<Writing<'_>, Problem> {
        let headers = &self.head.headers;
        Ok(Writing {
            key: headers::idempotency_key(headers)?,
            durability: headers::durability(headers)?,
            if_match: headers::if_match(headers)?,
            traceparent: headers::traceparent(headers).map(str::to_owned),
            reading: self.reading()?,
        })
    }

    /// The id of the write number `item` of this request.
    pub(crate) fn write_id(&self, key: Option<&str>, item: u32) -> WriteId {
        match key {
            Some(key) => WriteId::derived(self.tenant(), &self.who.user, key, item),
            None => WriteId(*uuid::Uuid::now_v7().as_bytes()),
        }
    }
}

/// How a read must be served.
pub(crate) struct Reading {
    who: Arc<Caller>,
    consistency: Consistency,
    pub(crate) token: Option<ConsistencyToken>,
    deadline: Instant,
    max_stale: Option<Duration>,
}

impl Reading {
    pub(crate) fn options(&self, criticality: Criticality) -> ReadOptions<'_> {
        ReadOptions {
            consistency: self.consistency,
            token: self.token.as_ref(),
            deadline: Some(self.deadline),
            user: Some(&self.who.user),
            criticality,
            max_stale: self.max_stale,
            primary_first: false,
        }
    }
}

/// What the headers of a writing request say.
pub(crate) struct Writing<'a> {
    pub(crate) key: Option<&'a str>,
    pub(crate) durability: Durability,
    pub(crate) if_match: Option<Version>,
    pub(crate) traceparent: Option<String>,
    pub(crate) reading: Reading,
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_large(allowed: usize, given: u64) -> Problem {
    Problem::new(Code::BodyTooLarge, format!("the body has more than {allowed} bytes"))
        .limit("body_bytes", allowed as u64, given)
        .header(header::CONNECTION, HeaderValue::from_static("close"))
}

fn check_json_type(headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
    {
        return Ok(());
    }
    let detail = if given.is_empty() {
        "the request has no Content-Type".to_owned()
    } else {
        format!("{given:?} is not JSON")
    };
    Err(Problem::new(Code::UnsupportedMediaType, detail))
}

/// Parses once more, slowly, to name the place.
fn json_problem<T: DeserializeOwned>(bytes: &[u8]) -> Problem {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
        Err(error) => {
            let path = error.path().to_string();
            let inner = error.into_inner();
            let text = inner.to_string();
            let code = match inner.classify() {
                serde_json::error::Category::Data if text.contains("unknown field") => {
                    Code::UnknownField
                }
                serde_json::error::Category::Data => Code::WrongType,
                serde_json::error::Category::Syntax
                | serde_json::error::Category::Eof
                | serde_json::error::Category::Io => Code::BadJson,
            };
            let place =
                if path == "." { "the body".to_owned() } else { format!("the body at {path}") };
            Problem::new(code, format!("{place}: {text}"))
        }
        Ok(_) => Problem::new(Code::BadJson, "the body has text after its JSON document"),
    }
}

/// Milliseconds since `then`, never negative: clocks may step.
pub(crate) fn age(now: i64, then: i64) -> Duration {
    Duration::from_millis(u64::try_from(now.saturating_sub(then)).unwrap_or(0))
}
