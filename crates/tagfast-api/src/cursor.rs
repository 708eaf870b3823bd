//! Cursors of search and of the list of all tags: where a page ended, sealed for the tenant and
//! bound to the query and its order, or to the type of a list.
//!
//! How it fails: a cursor that does not fit is `bad_cursor`; the client starts again without one.

use sha2::{Digest, Sha256};
use tagfast_domain::{Content, ContentId, ContentType, TagName, TenantId};
use tagfast_search::{SearchRequest, Sort, SortKey};
use tagfast_store::{SealKind, Sealer};

use crate::problem::{Code, Problem};

const CURSOR_FORMAT: u8 = 1;
const TAG_CURSOR_FORMAT: u8 = 2;
/// A cursor is valid for a day.
const CURSOR_TTL_MS: i64 = 86_400_000;

/// Identifies the query, type and order that a cursor belongs to.
fn fingerprint(request: &SearchRequest) -> [u8; 8] {
    let mut hash = Sha256::new();
    for part in [request.query.as_deref(), request.content_type.as_ref().map(ContentType::as_str)] {
        hash.update([u8::from(part.is_some())]);
        hash.update((part.map_or(0, str::len) as u32).to_be_bytes());
        hash.update(part.unwrap_or_default());
    }
    hash.update([sort_byte(request.sort)]);
    let digest = hash.finalize();
    std::array::from_fn(|i| digest[i])
}

fn sort_byte(sort: Sort) -> u8 {
    match sort {
        Sort::Updated => 0,
        Sort::Id => 1,
    }
}

/// Seals the sort key after which the next page starts. `now` is the present time, Unix ms.
pub(crate) fn seal(
    sealer: &Sealer,
    tenant: &TenantId,
    request: &SearchRequest,
    next: &SortKey,
    now: i64,
) -> String {
    let content_type = next.content.content_type.as_str();
    let mut body = vec![CURSOR_FORMAT];
    body.extend_from_slice(&fingerprint(request));
    body.extend_from_slice(&now.saturating_add(CURSOR_TTL_MS).to_be_bytes());
    body.extend_from_slice(&next.updated_at.to_be_bytes());
    body.push(content_type.len() as u8);
    body.extend_from_slice(content_type.as_bytes());
    body.extend_from_slice(next.content.content_id.as_str().as_bytes());
    sealer.seal(SealKind::SearchCursor, tenant, &body)
}

/// Opens a cursor that was sealed for the same tenant, query, type and order.
pub(crate) fn open(
    sealer: &Sealer,
    tenant: &TenantId,
    request: &SearchRequest,
    sealed: &str,
    now: i64,
) -> Result<SortKey, Problem> {
    let body =
        sealer.open(SealKind::SearchCursor, tenant, sealed).map_err(|e| bad(&e.to_string()))?;
    let parsed = parse(&body).ok_or_else(|| bad(FOREIGN))?;
    if parsed.fingerprint != fingerprint(request) {
        return Err(bad("it belongs to a different query, type or order"));
    }
    if parsed.valid_until_ms < now {
        return Err(bad(EXPIRED));
    }
    Ok(parsed.key)
}

const FOREIGN: &str = "it is not one that this service made";
const EXPIRED: &str = "it is older than a day";

fn bad(reason: &str) -> Problem {
    Problem::new(Code::BadCursor, format!("cursor: {reason}"))
}

/// Identifies the list of all tags of a type.
fn list_fingerprint(content_type: Option<&ContentType>) -> [u8; 8] {
    let mut hash = Sha256::new();
    hash.update(b"tags");
    hash.update([u8::from(content_type.is_some())]);
    hash.update(content_type.map(ContentType::as_str).unwrap_or_default());
    let digest = hash.finalize();
    std::array::from_fn(|i| digest[i])
}

/// Seals the tag after which the next page of a list starts. `now` is the present time, Unix ms.
pub(crate) fn seal_tag(
    sealer: &Sealer,
    tenant: &TenantId,
    content_type: Option<&ContentType>,
    next: &TagName,
    now: i64,
) -> String {
    let mut body = vec![TAG_CURSOR_FORMAT];
    body.extend_from_slice(&list_fingerprint(content_type));
    body.extend_from_slice(&now.saturating_add(CURSOR_TTL_MS).to_be_bytes());
    body.extend_from_slice(next.as_str().as_bytes());
    sealer.seal(SealKind::SearchCursor, tenant, &body)
}

/// Opens a cursor that was sealed for the list of the same tenant and type.
pub(crate) fn open_tag(
    sealer: &Sealer,
    tenant: &TenantId,
    content_type: Option<&ContentType>,
    sealed: &str,
    now: i64,
) -> Result<TagName, Problem> {
    let body =
        sealer.open(SealKind::SearchCursor, tenant, sealed).map_err(|e| bad(&e.to_string()))?;
    let parsed = || {
        let (format, rest) = body.split_first()?;
        let (fingerprint, rest) = rest.split_first_chunk::<8>()?;
        let (until, rest) = rest.split_first_chunk::<8>()?;
        let name = std::str::from_utf8(rest).ok()?;
        let is_one = *format == TAG_CURSOR_FORMAT && !name.is_empty();
        is_one.then(|| (*fingerprint, i64::from_be_bytes(*until), TagName::from_canonical(name)))
    };
    let (fingerprint, valid_until_ms, name) = parsed().ok_or_else(|| bad(FOREIGN))?;
    if fingerprint != list_fingerprint(content_type) {
        return Err(bad("it belongs to the list of a different type"));
    }
    if valid_until_ms < now {
        return Err(bad(EXPIRED));
    }
    Ok(name)
}

struct Parsed {
    fingerprint: [u8; 8],
    valid_until_ms: i64,
    key: SortKey,
}

fn parse(body: &[u8]) -> Option<Parsed> {
    let (format, rest) = body.split_first()?;
    let (fingerprint, rest) = rest.split_first_chunk::<8>()?;
    let (until, rest) = rest.split_first_chunk::<8>()?;
    let (updated_at, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first()?;
    let (content_type, content_id) = rest.split_at_checked(usize::from(*length))?;
    if *format != CURSOR_FORMAT {
        return None;
    }
    let content = Content {
        content_type: ContentType::parse(std::str::from_utf8(content_type).ok()?).ok()?,
        content_id: ContentId::parse(std::str::from_utf8(content_id).ok()?).ok()?,
    };
    let key = SortKey { updated_at: i64::from_be_bytes(*updated_at), content };
    Some(Parsed { fingerprint: *fingerprint, valid_until_ms: i64::from_be_bytes(*until), key })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(query: &str, sort: Sort) -> SearchRequest {
        SearchRequest {
            query: Some(query.to_owned()),
            content_type: None,
            sort,
            after: None,
            limit: 20,
            facets: false,
            total_exact: false,
            criticality: tagfast_resilience::Criticality::Degradable,
        }
    }

    fn sort_key() -> SortKey {
        let content = Content {
            content_type: ContentType::parse("jira.issue").unwrap(),
            content_id: ContentId::parse("a/ü 🎉").unwrap(),
        };
        SortKey { updated_at: 1_704_067_200_000, content }
    }

    #[test]
    fn a_cursor_fits_its_tenant_query_order_and_day_only() {
        let sealer = Sealer::new(&[[7; 32]]);
        let (a, b) = (TenantId::parse("a").unwrap(), TenantId::parse("b").unwrap());
        let wanted = request("x", Sort::Updated);
        let cursor = seal(&sealer, &a, &wanted, &sort_key(), 1000);
        let open =
            |t, r: &SearchRequest, now| open(&sealer, t, r, &cursor, now).map_err(|p| p.code());
        assert_eq!(open(&a, &wanted, 1000), Ok(sort_key()));
        assert_eq!(open(&a, &wanted, 1000 + CURSOR_TTL_MS), Ok(sort_key()));
        assert_eq!(open(&a, &wanted, 1001 + CURSOR_TTL_MS), Err(Code::BadCursor));
        assert_eq!(open(&b, &wanted, 1000), Err(Code::BadCursor));
        assert_eq!(open(&a, &request("y", Sort::Updated), 1000), Err(Code::BadCursor));
        assert_eq!(open(&a, &request("x", Sort::Id), 1000), Err(Code::BadCursor));
    }

    #[test]
    fn a_cursor_of_a_list_fits_its_tenant_type_and_day_only() {
        let sealer = Sealer::new(&[[7; 32]]);
        let (a, b) = (TenantId::parse("a").unwrap(), TenantId::parse("b").unwrap());
        let page = ContentType::parse("page").unwrap();
        let name = TagName::parse("한글 x").unwrap();
        let cursor = seal_tag(&sealer, &a, Some(&page), &name, 1000);
        let open = |t, of: Option<&ContentType>, now| {
            open_tag(&sealer, t, of, &cursor, now).map_err(|p| p.code())
        };
        assert_eq!(open(&a, Some(&page), 1000 + CURSOR_TTL_MS), Ok(name));
        assert_eq!(open(&a, Some(&page), 1001 + CURSOR_TTL_MS), Err(Code::BadCursor));
        assert_eq!(open(&b, Some(&page), 1000), Err(Code::BadCursor));
        assert_eq!(open(&a, None, 1000), Err(Code::BadCursor));
        let of_search = seal(&sealer, &a, &request("x", Sort::Id), &sort_key(), 1000);
        assert!(open_tag(&sealer, &a, None, &of_search, 1000).is_err());
        let wanted = request("x", Sort::Updated);
        assert!(super::open(&sealer, &a, &wanted, &cursor, 1000).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(
            text in "\\PC{0,80}|[A-Za-z0-9_-]{0,120}",
            body in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let sealer = Sealer::new(&[[7; 32]]);
            let tenant = TenantId::parse("a").unwrap();
            let _ = open(&sealer, &tenant, &request("x", Sort::Id), &text, 0);
            let sealed = sealer.seal(SealKind::SearchCursor, &tenant, &body);
            let _ = open(&sealer, &tenant, &request("x", Sort::Id), &sealed, 0);
            let _ = open_tag(&sealer, &tenant, None, &text, 0);
            let _ = open_tag(&sealer, &tenant, None, &sealed, 0);
        }
    }
}
