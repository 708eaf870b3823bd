//! The OpenAPI 3.1 document: what the handlers describe, completed with what the middleware adds to
//! all of them.
//!
//! Code adds problems, security and the common headers to every operation, so that no handler's
//! description can forget one, and gives all schemas the shapes that clients are generated from
//! (`shapes`).

mod shapes;

use utoipa::PartialSchema;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{
    ComponentsBuilder, InfoBuilder, LicenseBuilder, OpenApi, Ref, RefOr, Required, ServerBuilder,
};

use crate::problem::{PROBLEM_CODES, ProblemBody};

/// The licence as an SPDX expression.
const LICENCE: &str = "MIT OR Apache-2.0";
/// Error statuses that every operation may answer.
const STATUSES_ANY: &[u16] = &[400, 404, 405, 408, 414, 421, 422, 500, 503, 504];
/// Error statuses of operations that require a caller.
const STATUSES_AUTHENTICATED: &[u16] = &[401, 403, 429, 501];
/// Error statuses of operations with a request body.
const STATUSES_WITH_BODY: &[u16] = &[413];
/// Error statuses of operations that change something: a body must be JSON, and a page of a
/// different site may not ask for it.
const STATUSES_CHANGE: &[u16] = &[403, 415];
/// Error statuses of operations that write tags.
const STATUSES_WRITE: &[u16] = &[507];
/// Error statuses of long operations of an admin.
const STATUSES_ADMIN_JOB: &[u16] = &[409];

/// `*`, or a list of entity tags.
const ENTITY_TAGS: &str = "^(\\*|(W/)?\"[!#-~]{0,40}\"(, ?(W/)?\"[!#-~]{0,40}\"){0,99})$";

/// Completes the document that was collected from the handlers.
pub(crate) fn complete(mut api: OpenApi) -> OpenApi {
    api.info = InfoBuilder::new()
        .title("Tagfast")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Tag content, see your tags at once, search by tags, and rank the most used ones.\n\n\
             Errors are `application/problem+json` with a stable `code`; `/docs/problems/{code}` \
             explains each. Answers may gain fields but never lose or rename them; unknown fields \
             in requests are refused. An `enum` is closed: a further value would be a new version of \
             the API. Words of a set that may grow (problem codes, reasons, features) are strings. \
             A field that is not required is absent when there is nothing to say, never `null`; \
             every list has `next_cursor`, which is `null` on the last page. `admin` includes the scopes `tags:read` and `tags:write`. \
             Rate limits (when configured) count per tenant and user and are shown as \
             `RateLimit-Limit`, `RateLimit-Remaining` and `RateLimit-Reset` (seconds).",
        ))
        .license(Some(
            LicenseBuilder::new().name(LICENCE).identifier(Some(LICENCE)).build(),
        ))
        .build();
    api.servers = Some(vec![
        ServerBuilder::new()
            .url("/")
            .description(Some("The server that answers this document"))
            .build(),
    ]);
    api.tags = Some(
        [
            ("content", "Tags of contents: read your own writes"),
            ("find", "Search and popular tags: eventually consistent, every answer tells its age"),
            ("operations", "Receipts, export, status and repair"),
            ("open", "Health, metrics and documentation: no token needed"),
        ]
        .map(|(name, text)| TagBuilder::new().name(name).description(Some(text)).build())
        .to_vec(),
    );
    let mut components = api.components.take().unwrap_or_else(|| ComponentsBuilder::new().build());
    components.schemas.insert("Problem".to_owned(), problem_schema());
    components.add_security_scheme(
        "bearer",
        SecurityScheme::Http(
            HttpBuilder::new()
                .scheme(HttpAuthScheme::Bearer)
                .bearer_format("JWT")
                .description(Some(
                    "Claims tenant, sub, scope, exp. Not needed when the service runs without \
                     authentication.",
                ))
                .build(),
        ),
    );
    api.components = Some(components);
    for (path, item) in &mut api.paths.paths {
        for_each_operation(item, |method, operation| complete_operation(path, method, operation));
    }
    shapes::normalise(&mut api);
    api
}

fn for_each_operation(item: &mut PathItem, mut f: impl FnMut(&'static str, &mut Operation)) {
    let all = [
        ("get", &mut item.get),
        ("put", &mut item.put),
        ("post", &mut item.post),
        ("patch", &mut item.patch),
        ("delete", &mut item.delete),
    ];
    for (method, operation) in all {
        if let Some(operation) = operation {
            f(method, operation);
        }
    }
}

fn complete_operation(path: &str, method: &str, operation: &mut Operation) {
    let is_in = |tag: &str| operation.tags.iter().flatten().any(|t| t == tag);
    let (content, find, open) = (is_in("content"), is_in("find"), is_in("open"));
    let writes = content && (method != "get") && !path.ends_with("batchGet");
    let mut statuses: Vec<u16> = STATUSES_ANY.to_vec();
    if !open {
        statuses.extend_from_slice(STATUSES_AUTHENTICATED);
    }
    if operation.request_body.is_some() {
        statuses.extend_from_slice(STATUSES_WITH_BODY);
    }
    if method != "get" {
        statuses.extend_from_slice(STATUSES_CHANGE);
    }
    if writes {
        statuses.extend_from_slice(STATUSES_WRITE);
    }
    if content && !path.contains(':') {
        statuses.push(412);
    }
    if path.starts_with("/v1/admin/") {
        statuses.extend_from_slice(STATUSES_ADMIN_JOB);
    }
    for status in statuses {
        operation
            .responses
            .responses
            .entry(status.to_string())
            .or_insert_with(|| RefOr::T(problem(status)));
    }
    // Bearer or nothing: the service may run without authentication.
    operation.security = Some(if open {
        Vec::new()
    } else {
        vec![
            SecurityRequirement::new::<_, [&str; 0], &str>("bearer", []),
            SecurityRequirement::default(),
        ]
    });
    let parameters = operation.parameters.get_or_insert_with(Vec::new);
    if content {
        parameters.push(RefOr::T(header(
            "Consistency",
            "How fresh the answer must be; `session`: at least what this client has seen.",
            text().enum_values(Some(["eventual", "session", "strong"])),
        )));
        parameters.push(RefOr::T(header(
            "Consistency-Token",
            "What this client has seen: the `Consistency-Token` of its last answer; of several \
             answers to requests at the same time those of all, separated by commas, up to 16.",
            text()
                .pattern(Some("^[A-Za-z0-9_-]+(, ?[A-Za-z0-9_-]+){0,15}$"))
                .max_length(Some(32_768)),
        )));
    }
    if content && !writes {
        parameters.push(RefOr::T(header(
            "Receipt",
            "Receipts of own writes, separated by commas, up to 16. If a failover has lost one of \
             them, the answer is the primary's and says so: `meta.degraded` has `session`, \
             `write_lost`.",
            text()
                .pattern(Some("^[A-Za-z0-9_-]+(, ?[A-Za-z0-9_-]+){0,15}$"))
                .max_length(Some(32_768)),
        )));
    }
    if (content || find) && !writes {
        parameters.push(RefOr::T(header(
            "Cache-Control",
            "The largest age of a stale answer that the client accepts, in seconds: \
             `max-stale=60`. `no-cache` or `no-store`: answer an error rather than a stale or \
             incomplete answer. Of several directives the strictest counts.",
            text().pattern(Some("^(no-cache|no-store|max-stale(=[0-9]{1,19})?)$")),
        )));
    }
    if writes {
        parameters.push(RefOr::T(header(
            "Idempotency-Key",
            "Makes a retry harmless: for at least ten minutes the same request with the same key \
             gets the first answer, whatever it was (also 412 and 422), and does nothing. A key \
             belongs to its tenant and user, and to the call, the contents, `If-Match` and the \
             set of tags that it came with first; with others it is refused with 422 \
             `idempotency_key_reused`.",
            text().pattern(Some("^[!-~]{1,255}$")).min_length(Some(1)).max_length(Some(255)),
        )));
        parameters.push(RefOr::T(header(
            "Durability",
            "Where the write must be durable before it is acknowledged: `local`, on the primary; \
             `replicated`, also on the replicas that stream, else 503 `replication_lag`. Needs a \
             cluster.",
            text().enum_values(Some(["local", "replicated"])),
        )));
    }
    if content && !path.contains(':') {
        parameters.push(RefOr::T(header(
            "If-Match",
            "Only while the content has one of these versions, else 412: entity tags, up to 100. \
             `\"0\"` means never tagged; weak ones never match, and `*` always does.",
            text().pattern(Some(ENTITY_TAGS)),
        )));
    }
    if content && method == "get" {
        parameters.push(RefOr::T(header(
            "If-None-Match",
            "Entity tags of the versions that the client has, weak or strong, up to 100; `*` \
             means any.",
            text().pattern(Some(ENTITY_TAGS)),
        )));
    }
    if parameters.is_empty() {
        operation.parameters = None;
    }
    if (content && method == "get" || find)
        && let Some(RefOr::T(ok)) = operation.responses.responses.get_mut("200")
    {
        add_header(ok, "Age", "Seconds since `as_of`.");
        add_header(
            ok,
            "Cache-Status",
            "RFC 9211: which cache of the service answered, or why none did.",
        );
    }
    if content && let Some(RefOr::T(ok)) = operation.responses.responses.get_mut("200") {
        add_header(ok, "Consistency-Token", "Send it back with the next request.");
        if !path.contains(':') {
            add_header(ok, "ETag", "The content's version in quotes.");
        }
    }
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(SchemaType::new(Type::String))
}

fn header(name: &str, description: &str, schema: ObjectBuilder) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(RefOr::T(Schema::Object(schema.build()))))
        .build()
}

fn add_header(response: &mut Response, name: &str, description: &str) {
    let header =
        HeaderBuilder::new().schema(Some(text().build())).description(Some(description)).build();
    response.headers.insert(name.to_owned(), RefOr::T(header));
}

/// The schema of a problem document. Its codes are listed as examples: a client must take codes
/// that it does not know.
fn problem_schema() -> RefOr<Schema> {
    let mut schema = ProblemBody::schema();
    if let RefOr::T(Schema::Object(body)) = &mut schema
        && let Some(RefOr::T(Schema::Object(code))) = body.properties.get_mut("code")
    {
        code.examples = PROBLEM_CODES.iter().map(|row| row.code.into()).collect();
    }
    schema
}

/// The response of an error status: its problem codes.
fn problem(status: u16) -> Response {
    let mut codes: Vec<&str> =
        PROBLEM_CODES.iter().filter(|c| c.status == status).map(|c| c.code).collect();
    codes.sort_unstable();
    let content =
        ContentBuilder::new().schema(Some(RefOr::Ref(Ref::from_schema_name("Problem")))).build();
    let mut response = ResponseBuilder::new()
        .description(format!("`{}`", codes.join("`, `")))
        .content("application/problem+json", content)
        .build();
    if status == 429 || status == 503 {
        add_header(&mut response, "Retry-After", "Seconds to wait.");
    }
    response
}
