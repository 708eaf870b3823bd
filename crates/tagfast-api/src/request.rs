//! One request as a handler sees it: its caller, its parameters and its deadline.
//!
//! The extractor's type names the scope that a handler requires ([`Read`], [`Write`], [`Admin`])
//! and the query parameters that it accepts. A bare [`ApiRequest`] cannot be extracted, so that no
//! handler can forget to check the scope or accept unknown parameters.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use http::{HeaderMap, HeaderValue, Method, header, request::Parts};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tagfast_domain::{
    Call, Content, ContentId, ContentKey, ContentType, IdempotencyKey, IfMatch, TenantId,
    UnixMillis, WriteId,
};
use tagfast_resilience::{Criticality, counter};
use tagfast_store::{Consistency, ConsistencyToken, Durability, ReadOptions, Receipt, SealError};
use tokio::time::Instant;

use crate::auth::{Caller, Scope};
use crate::body::{self, BodyError, RequestBody};
use crate::byte_budget::HeldBytes;
use crate::encoding::{self, is_token};
use crate::headers;
use crate::metric::{AUTH_FAILURES, AuthFailure};
use crate::params::{NoParams, Params};
use crate::problem::{Code, Problem};
use crate::services::ApiServices;
use crate::state::ApiState;

/// What the middleware determined before the handler runs.
#[derive(Debug, Clone)]
pub(crate) struct RequestContext {
    pub(crate) caller: Arc<Caller>,
    pub(crate) deadline: Instant,
    pub(crate) request_id: HeaderValue,
}

/// A request.
pub(crate) struct ApiRequest {
    pub(crate) state: Arc<ApiState>,
    pub(crate) head: Parts,
    pub(crate) caller: Arc<Caller>,
    pub(crate) deadline: Instant,
    request_id: HeaderValue,
    /// In a mutex only because a body is not `Sync`, which a handler's borrow of its request
    /// needs.
    body: Mutex<Body>,
    /// The bytes of the body, until the request ends; `None`: the body was not read.
    held: Option<HeldBytes>,
}

/// A request that may read, and its query parameters.
pub(crate) struct Read<P = NoParams>(pub(crate) ApiRequest, pub(crate) P);
/// A request that may write, and its query parameters.
pub(crate) struct Write<P = NoParams>(pub(crate) ApiRequest, pub(crate) P);
/// A request that may operate the service, and its query parameters.
pub(crate) struct Admin<P = NoParams>(pub(crate) ApiRequest, pub(crate) P);

macro_rules! extract {
    ($name:ident, $scope:expr) => {
        impl<P: DeserializeOwned> FromRequest<Arc<ApiState>> for $name<P> {
            type Rejection = Problem;
            async fn from_request(
                request: Request,
                state: &Arc<ApiState>,
            ) -> Result<Self, Problem> {
                let request = ApiRequest::new(request, state, $scope)?;
                let Params(params) = Params::parse(request.head.uri.query())?;
                Ok(Self(request, params))
            }
        }
    };
}
extract!(Read, Scope::Read);
extract!(Write, Scope::Write);
extract!(Admin, Scope::Admin);

impl ApiRequest {
    fn new(request: Request, state: &Arc<ApiState>, scope: Scope) -> Result<Self, Problem> {
        let (mut head, body) = request.into_parts();
        let context = head.extensions.remove::<RequestContext>().ok_or_else(|| {
            Problem::new(Code::Internal, "the request did not pass the middleware")
        })?;
        let request = Self {
            state: Arc::clone(state),
            head,
            caller: context.caller,
            deadline: context.deadline,
            request_id: context.request_id,
            body: Mutex::new(body),
            held: None,
        };
        request.require(scope)?;
        // Also without a body: a form of a web page can send any POST, but never as JSON.
        if request.head.method == Method::POST || has_body(&request.head) {
            check_json_type(&request.head.headers)?;
        }
        Ok(request)
    }

    /// Refuses a caller without this scope.
    pub(crate) fn require(&self, scope: Scope) -> Result<(), Problem> {
        if self.caller.may(scope) {
            return Ok(());
        }
        counter!(AUTH_FAILURES, "reason" => AuthFailure::MissingScope).increment(1);
        let challenge =
            format!("Bearer error=\"insufficient_scope\", scope=\"{}\"", scope.as_str());
        let problem = Problem::new(
            Code::MissingScope,
            format!("the token lacks the scope {} in the claim scope", scope.as_str()),
        );
        Err(match HeaderValue::try_from(challenge) {
            Ok(value) => problem.header(header::WWW_AUTHENTICATE, value),
            Err(_) => problem,
        })
    }

    /// The services that handlers call.
    pub(crate) fn services(&self) -> &ApiServices {
        &self.state.services
    }

    /// The present time, Unix ms.
    pub(crate) fn now(&self) -> UnixMillis {
        self.services().clock.now_ms()
    }

    /// The caller's tenant: the only one that a handler may touch.
    pub(crate) fn tenant(&self) -> &TenantId {
        &self.caller.tenant
    }

    /// A segment of the path, decoded; `/v1/content/{type}/{id}/tags/{tag}` has its type at 3.
    pub(crate) fn path_segment(&self, index: usize) -> Result<Cow<'_, str>, Problem> {
        encoding::path_segment(self.head.uri.path().split('/').nth(index).unwrap_or_default())
    }

    /// A content of the caller's tenant.
    pub(crate) fn content_key(
        &self,
        content_type: &str,
        content_id: &str,
    ) -> Result<ContentKey, Problem> {
        Ok(ContentKey {
            tenant: self.caller.tenant.clone(),
            content: Content {
                content_type: ContentType::parse(content_type)?,
                content_id: ContentId::parse(content_id)?,
            },
        })
    }

    /// The trace id that problems of this request carry.
    pub(crate) fn trace_id(&self) -> String {
        headers::trace_id(&self.head.headers, &self.request_id).to_owned()
    }

    /// The body as JSON.
    pub(crate) async fn json<T: DeserializeOwned>(&mut self) -> Result<T, Problem> {
        check_json_type(&self.head.headers)?;
        parse(&self.body().await?)
    }

    /// The body as JSON; `None` if it is empty.
    pub(crate) async fn json_or_nothing<T: DeserializeOwned>(
        &mut self,
    ) -> Result<Option<T>, Problem> {
        let bytes = self.body().await?;
        if bytes.is_empty() { Ok(None) } else { parse(&bytes).map(Some) }
    }

    async fn body(&mut self) -> Result<Vec<u8>, Problem> {
        let allowed = self.services().limits.body_bytes;
        if let Some(given) = content_length(&self.head.headers).filter(|n| *n > allowed as u64) {
            return Err(too_large(allowed, given));
        }
        let body = std::mem::take(self.body.get_mut());
        let budget = &self.services().byte_budget;
        let RequestBody { bytes, held } =
            match body::read(body, allowed, self.deadline, budget).await {
                Ok(read) => read,
                Err(BodyError::TooLarge) => return Err(too_large(allowed, allowed as u64 + 1)),
                Err(BodyError::Refused(problem)) => {
                    let close = HeaderValue::from_static("close");
                    return Err(problem.header(header::CONNECTION, close));
                }
                Err(BodyError::Broken) => {
                    let detail = "the body ended early, or its chunks are malformed";
                    return Err(Problem::new(Code::BadRequest, detail));
                }
            };
        self.held = Some(held);
        Ok(bytes)
    }

    /// The largest age of a stale answer that the client accepts; `None`: up to the service's own
    /// limit.
    pub(crate) fn max_stale(&self) -> Result<Option<Duration>, Problem> {
        headers::max_stale(&self.head.headers, self.services().limits.max_stale)
    }

    /// The headers that say how the read must be served.
    pub(crate) fn read_headers(&self) -> Result<ReadHeaders, Problem> {
        let max_stale = self.max_stale()?;
        let consistency = headers::consistency(&self.head.headers)?;
        let token = self.consistency_token()?;
        let receipts = self.receipts()?;
        Ok(ReadHeaders {
            caller: Arc::clone(&self.caller),
            consistency,
            token,
            receipts,
            deadline: self.deadline,
            max_stale,
        })
    }

    /// What all consistency tokens of the request together have seen; `None`: it has none.
    fn consistency_token(&self) -> Result<Option<ConsistencyToken>, Problem> {
        let mut merged: Option<ConsistencyToken> = None;
        let sealed = headers::consistency_tokens(&self.head.headers)?;
        for (n, text) in sealed.iter().enumerate() {
            let token = ConsistencyToken::open(&self.services().sealer, self.tenant(), text);
            let token =
                token.map_err(|error| bad_token("consistency token", (n, sealed.len()), error))?;
            match &mut merged {
                Some(merged) => merged.merge(&token, &*self.services().store),
                None => merged = Some(token),
            }
        }
        Ok(merged)
    }

    /// The writes whose receipts came with the request.
    fn receipts(&self) -> Result<Vec<Receipt>, Problem> {
        let sealed = headers::receipts(&self.head.headers)?;
        let open = |(n, text): (usize, &&str)| {
            let receipt = Receipt::open(&self.services().sealer, self.tenant(), text);
            receipt.map_err(|error| bad_token("receipt", (n, sealed.len()), error))
        };
        sealed.iter().enumerate().map(open).collect()
    }

    /// The headers that all writes of this request share.
    pub(crate) fn write_headers(&self) -> Result<WriteHeaders<'_>, Problem> {
        let headers = &self.head.headers;
        Ok(WriteHeaders {
            idempotency_key: headers::idempotency_key(headers)?,
            durability: headers::durability(headers)?,
            if_match: headers::if_match(headers)?,
            traceparent: headers::traceparent(headers).map(str::to_owned),
            read: self.read_headers()?,
        })
    }

    /// A consistency token as the value of its response header; `None` never happens for a token
    /// that the sealer made.
    pub(crate) fn sealed(&self, token: &ConsistencyToken) -> Option<HeaderValue> {
        HeaderValue::try_from(token.seal(&self.services().sealer, self.tenant())).ok()
    }

    /// The idempotency key of this request, which the store binds to the call and the contents;
    /// `None`: the client sent no key.
    pub(crate) fn bound_key<'a>(
        &self,
        idempotency_key: Option<&str>,
        call: Call,
        contents: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Option<IdempotencyKey> {
        let (tenant, user) = (self.tenant(), &self.caller.user);
        let key = idempotency_key?;
        Some(IdempotencyKey::of_request(tenant, user, key, call, contents))
    }

    /// The id of write number `item` of this request on one content: derived from the idempotency
    /// key, random without one.
    pub(crate) fn write_id(&self, idempotency_key: Option<&str>, item: u32) -> WriteId {
        match idempotency_key {
            Some(key) => WriteId::derived(self.tenant(), &self.caller.user, key, item),
            None => WriteId(*uuid::Uuid::now_v7().as_bytes()),
        }
    }
}

/// The headers that say how a read must be served.
pub(crate) struct ReadHeaders {
    caller: Arc<Caller>,
    consistency: Consistency,
    /// `None`: the client sent no token.
    pub(crate) token: Option<ConsistencyToken>,
    /// Writes of which the client wants to hear if they were lost.
    pub(crate) receipts: Vec<Receipt>,
    deadline: Instant,
    max_stale: Option<Duration>,
}

impl ReadHeaders {
    /// The options of a read with these headers.
    pub(crate) fn options(&self, criticality: Criticality) -> ReadOptions<'_> {
        ReadOptions {
            consistency: self.consistency,
            token: self.token.as_ref(),
            deadline: Some(self.deadline),
            user: Some(&self.caller.user),
            criticality,
            max_stale: self.max_stale,
            primary_first: false,
        }
    }
}

/// The headers of a write.
pub(crate) struct WriteHeaders<'a> {
    /// `None`: the client sent no key.
    pub(crate) idempotency_key: Option<&'a str>,
    pub(crate) durability: Durability,
    /// `None`: the write has no condition.
    pub(crate) if_match: Option<IfMatch>,
    /// `None`: the client sent no valid one.
    pub(crate) traceparent: Option<String>,
    pub(crate) read: ReadHeaders,
}

/// The problem of the sealed text number `n` of `all`.
fn bad_token(what: &str, (n, all): (usize, usize), error: SealError) -> Problem {
    let which = if all == 1 { String::new() } else { format!(" {} of {all}", n + 1) };
    Problem::new(Code::BadToken, format!("{what}{which}: {error}"))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_large(allowed: usize, given: u64) -> Problem {
    Problem::new(Code::BodyTooLarge, format!("the body has more than {allowed} bytes"))
        .limit("body_bytes", allowed as u64, given)
        .header(header::CONNECTION, HeaderValue::from_static("close"))
}

/// Whether a request other than a read has a body.
fn has_body(head: &Parts) -> bool {
    let reads = matches!(head.method, Method::GET | Method::HEAD);
    let declared = head.headers.contains_key(header::TRANSFER_ENCODING)
        || content_length(&head.headers).is_some_and(|length| length > 0);
    declared && !reads
}

fn check_json_type(headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let subtype = essence.strip_prefix("application/").filter(|name| is_token(name));
    if subtype.is_some_and(|name| name == "json" || name.ends_with("+json")) {
        return Ok(());
    }
    let detail = if given.is_empty() {
        "the request has no Content-Type".to_owned()
    } else {
        format!("{given:?} is not JSON")
    };
    Err(Problem::new(Code::UnsupportedMediaType, detail))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    tagfast_json::from_slice(bytes).map_err(|error| json_problem::<T>(bytes, &error))
}

/// The problem of a refused body: parses it once more, slowly, to name the place of the error.
fn json_problem<T: DeserializeOwned>(bytes: &[u8], error: &tagfast_json::Error) -> Problem {
    let path = tagfast_json::place_of_error::<T>(bytes);
    let text = error.to_string();
    let code = match error.classify() {
        serde_json::error::Category::Data if text.contains("unknown field") => Code::UnknownField,
        serde_json::error::Category::Data => Code::WrongType,
        serde_json::error::Category::Syntax
        | serde_json::error::Category::Eof
        | serde_json::error::Category::Io => Code::BadJson,
    };
    match path.as_deref() {
        None => Problem::new(Code::BadJson, "the body has text after its JSON document"),
        Some(".") => Problem::new(code, format!("the body: {text}")),
        Some(path) => Problem::new(code, format!("the body at {path}: {text}")),
    }
}
