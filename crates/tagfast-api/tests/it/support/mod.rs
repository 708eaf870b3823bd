//! Support for the tests: the API over a store in memory, and a client that sends plain HTTP
//! requests to it.

pub(crate) mod clusters;
pub(crate) mod keys;
pub(crate) mod ports;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tagfast_api::{AllowedHosts, ByteBudget};
pub(crate) use tagfast_api::{ApiLimits, ApiServices, AuthConfig, DeadLetters};
use tagfast_domain::Limits;
use tagfast_events::AutoReplayPolicy;
use tagfast_resilience::{Breakers, ManualClock, TaskGroup};
use tagfast_store::Sealer;
use tagfast_store::testing::MemoryStore;
use tower::ServiceExt;

use clusters::{FakeClusters, FakeFailovers};
use ports::{FakeDeadLetterStore, FakeOperations, FakePopular, FakeSearch};

pub(crate) const NOW: i64 = 1_767_225_600_000;
pub(crate) const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// The API with handles on all its services.
pub(crate) struct Fixture {
    pub(crate) router: axum::Router,
    pub(crate) tasks: TaskGroup,
    pub(crate) byte_budget: ByteBudget,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) search: Arc<FakeSearch>,
    pub(crate) popular: Arc<FakePopular>,
    pub(crate) operations: Arc<FakeOperations>,
    pub(crate) dead_letters: Arc<FakeDeadLetterStore>,
    pub(crate) failovers: Arc<FakeFailovers>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) breakers: Arc<Breakers>,
}

/// A complete answer.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("no JSON ({e}): {:?}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// Asserts that this is a complete and consistent problem document of this code; returns it.
    #[track_caller]
    pub(crate) fn problem(&self, code: &str) -> Value {
        let body = self.json();
        assert_eq!(body["code"], code, "{body}");
        let row =
            tagfast_api::PROBLEM_CODES.iter().find(|r| r.code == code).expect("a documented code");
        assert_eq!(self.status.as_u16(), row.status, "{body}");
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(body["status"], row.status);
        assert_eq!(body["title"], row.title);
        assert_eq!(body["type"], format!("/docs/problems/{code}"));
        assert!(!body["detail"].as_str().unwrap().is_empty());
        assert!(!body["trace_id"].as_str().unwrap().is_empty());
        if matches!(row.status, 429 | 503) {
            assert!(
                self.header("retry-after").parse::<u64>().unwrap() >= 1,
                "Retry-After is missing"
            );
            assert!(body["retry_after_ms"].as_u64().is_some());
        }
        if row.status == 401 || row.code == "missing_scope" {
            assert!(self.header("www-authenticate").starts_with("Bearer"));
        }
        body
    }

    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }
}

/// One segment of a path.
pub(crate) fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

pub(crate) fn fixture() -> Fixture {
    fixture_with(AuthConfig::None, ApiLimits::default())
}

pub(crate) fn jwt_fixture() -> Fixture {
    fixture_with(hs256(), ApiLimits::default())
}

pub(crate) fn hs256() -> AuthConfig {
    AuthConfig::Jwt {
        hs256_secret: Some(tagfast_resilience::Secret::new(SECRET.to_vec()).into()),
        jwks: None,
        audience: None,
        issuer: None,
        leeway: Duration::from_secs(30),
    }
}

pub(crate) fn fixture_with(auth: AuthConfig, limits: ApiLimits) -> Fixture {
    build(auth, limits, |_| {})
}

pub(crate) fn build(
    auth: AuthConfig,
    limits: ApiLimits,
    change: impl FnOnce(&mut ApiServices),
) -> Fixture {
    let clock = Arc::new(ManualClock::new(NOW));
    let store = MemoryStore::new(Arc::<ManualClock>::clone(&clock));
    let search = FakeSearch::new(Arc::clone(&store), Arc::clone(&clock));
    let popular = FakePopular::new(Arc::clone(&store), Arc::clone(&clock));
    let operations = Arc::new(FakeOperations::default());
    let dead_letters = Arc::new(FakeDeadLetterStore::default());
    let failovers = Arc::new(FakeFailovers::default());
    let breakers = Breakers::new(clock.clone());
    let any_host = !matches!(auth, AuthConfig::None);
    let mut services = ApiServices {
        store: store.clone(),
        search: Some(search.clone()),
        popular: Some(popular.clone()),
        dead_letters: Some(DeadLetters {
            store: dead_letters.clone(),
            auto_replay: AutoReplayPolicy::default(),
        }),
        serves_product: true,
        failovers: Some(failovers.clone()),
        clusters: Some(Arc::new(FakeClusters)),
        breakers: Arc::clone(&breakers),
        operations: operations.clone(),
        sealer: Sealer::new(&[[7; 32]]),
        clock: clock.clone(),
        auth,
        domain_limits: Limits::default(),
        allowed_hosts: AllowedHosts::new([], any_host).unwrap(),
        machine_limits: Vec::new(),
        byte_budget: ByteBudget::new(limits.in_flight_bytes),
        limits,
        tasks: ApiServices::task_group(),
    };
    change(&mut services);
    Fixture {
        byte_budget: services.byte_budget.clone(),
        tasks: services.tasks.clone(),
        router: tagfast_api::router(services),
        store,
        search,
        popular,
        operations,
        dead_letters,
        failovers,
        clock,
        breakers,
    }
}

/// A request under construction.
pub(crate) struct RequestUnderTest<'a> {
    fixture: &'a Fixture,
    request: http::request::Builder,
    body: Vec<u8>,
}

impl Fixture {
    pub(crate) fn request(&self, method: &str, uri: &str) -> RequestUnderTest<'_> {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        RequestUnderTest {
            fixture: self,
            request: Request::builder().method(method).uri(uri),
            body: Vec::new(),
        }
    }

    pub(crate) fn get(&self, uri: &str) -> RequestUnderTest<'_> {
        self.request("GET", uri)
    }

    pub(crate) async fn tag(&self, content: &str, tag: &str) -> Answer {
        self.request("PUT", &format!("/v1/content/{content}/tags/{tag}")).send().await
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        Answer {
            status: head.status,
            headers: head.headers,
            body: body.collect().await.unwrap().to_bytes().to_vec(),
        }
    }
}

impl RequestUnderTest<'_> {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    pub(crate) fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    pub(crate) fn json(self, body: &str) -> Self {
        let mut this = self.header("content-type", "application/json");
        this.body = body.as_bytes().to_vec();
        this
    }

    pub(crate) fn raw(mut self, content_type: &str, body: &[u8]) -> Self {
        body.clone_into(&mut self.body);
        self.header("content-type", content_type)
    }

    pub(crate) fn raw_without_type(mut self, body: &[u8]) -> Self {
        body.clone_into(&mut self.body);
        self
    }

    pub(crate) async fn send(self) -> Answer {
        self.fixture.send(self.request.body(Body::from(self.body)).unwrap()).await
    }
}
