//! The workload of the load generator: the mix of calls, the contents and queries, and the bytes of
//! each request.

use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use fastrand::Rng;
use serde::Deserialize;
use serde_json::Value;

use super::distributions::Zipf;
use crate::args::BenchArgs;
use crate::error::CliError;
use crate::http::{Client, encode};
use crate::input::open_lines;
use crate::json;

/// Number of tags that `tag` adds to a content and removes again.
const TAGS_PER_CONTENT: u32 = 50;
/// Contents in a `batch_view` and in a `batch_tag`.
const BATCH_ITEMS: usize = 20;
/// Number of prepared queries and prefixes.
const QUERIES: usize = 2000;
/// Longest prefix of `suggest`, in characters.
const PREFIX_CHARS_MAX: usize = 5;

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// One content's tags.
    View,
    /// One change: adds a tag or, every second time, removes it again, so that every request
    /// changes something.
    Tag,
    /// A search.
    Search,
    /// Popular tags.
    Popular,
    /// Typeahead.
    Suggest,
    /// Twenty contents at once.
    BatchView,
    /// Twenty changes at once.
    BatchTag,
    /// A `GET` of the fixed path.
    Path,
}

impl RequestKind {
    /// The kinds that a mix can name.
    const MIX: [Self; 7] = [
        Self::View,
        Self::Tag,
        Self::Search,
        Self::Popular,
        Self::Suggest,
        Self::BatchView,
        Self::BatchTag,
    ];

    /// Whether the requests change tags.
    fn writes(self) -> bool {
        match self {
            Self::Tag | Self::BatchTag => true,
            Self::View
            | Self::Search
            | Self::Popular
            | Self::Suggest
            | Self::BatchView
            | Self::Path => false,
        }
    }

    /// Name in `--mix` and in the report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Tag => "tag",
            Self::Search => "search",
            Self::Popular => "popular",
            Self::Suggest => "suggest",
            Self::BatchView => "batch_view",
            Self::BatchTag => "batch_tag",
            Self::Path => "path",
        }
    }
}

/// Parses `view=90,tag=10`.
fn parse_mix(text: &str) -> Result<Vec<(RequestKind, u32)>, CliError> {
    let bad = |part: &str| {
        let words = RequestKind::MIX.map(RequestKind::as_str).join(", ");
        CliError::usage(format!("--mix: {part:?} is not KIND=WEIGHT; the kinds are {words}"))
    };
    let mut mix = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (word, weight) = part.split_once('=').unwrap_or((part, "1"));
        let kind =
            RequestKind::MIX.into_iter().find(|k| k.as_str() == word).ok_or_else(|| bad(part))?;
        let weight: u32 = weight.parse().map_err(|_| bad(part))?;
        if weight > 0 {
            mix.push((kind, weight));
        }
    }
    if mix.is_empty() { Err(bad(text)) } else { Ok(mix) }
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    content_type: String,
    id: String,
    #[serde(default)]
    tags: Vec<Value>,
}

struct Content {
    content_type: String,
    id: String,
    changes: AtomicU32,
}

/// The requests of the load generator; shared by its threads.
pub struct Workload {
    mix: Vec<(RequestKind, u32)>,
    weights: u32,
    contents: Vec<Content>,
    zipf: Zipf,
    searches: Vec<String>,
    prefixes: Vec<String>,
    popular: String,
    path: String,
    /// `Host` and `Authorization` lines, copied into each head.
    headers: Vec<u8>,
    /// What the names of the tags that this run writes begin with.
    tag_prefix: String,
}

/// A content that this run wrote.
pub(super) struct Written {
    pub(super) content_type: String,
    pub(super) id: String,
    /// Number of tags that were written: those with the numbers 0 to `tags - 1`.
    pub(super) tags: u32,
}

impl Workload {
    /// Reads the contents and prepares the queries; fetches the server's popular tags if the mix
    /// needs tags and the contents have none.
    ///
    /// # Errors
    /// The mix or the file is not usable, or the server has no tags.
    pub async fn prepare(args: &BenchArgs, host: &str, client: &Client) -> Result<Self, CliError> {
        let mix = match &args.path {
            Some(_) => vec![(RequestKind::Path, 1)],
            None => parse_mix(args.mix())?,
        };
        if let Some((kind, _)) = mix.iter().find(|(kind, _)| kind.writes() && !args.write) {
            let kind = kind.as_str();
            return Err(CliError::usage(format!("--mix: {kind} changes tags of the server"))
                .hint("allow it with --write; what it wrote is removed at the end"));
        }
        let has = |kinds: &[RequestKind]| mix.iter().any(|(k, _)| kinds.contains(k));
        let mut rng = Rng::with_seed(args.seed);
        let (contents, mut tags) = match &args.ids_from {
            Some(file) => read_contents(file)?,
            None => (synthetic(args.contents), Vec::new()),
        };
        if tags.is_empty()
            && (has(&[RequestKind::Search]) && args.query.is_empty()
                || has(&[RequestKind::Suggest]))
        {
            tags = vec![popular_tags(client).await?];
        }
        let searches = if !has(&[RequestKind::Search]) {
            Vec::new()
        } else if args.query.is_empty() {
            pairs(&tags, &mut rng)
        } else {
            args.query.clone()
        };
        if has(&[RequestKind::Search]) && searches.is_empty() {
            return Err(CliError::usage("the contents have no tags to search for; give --query"));
        }
        let facets = if args.facets { "&facets=true" } else { "" };
        let searches = searches
            .iter()
            .map(|q| format!("/v1/search?q={}&limit={}{facets}", encode(q), args.limit))
            .collect();
        let mut headers = format!("Host: {host}\r\n");
        if let Some(token) = args.token.as_ref().filter(|t| !t.is_empty()) {
            headers.push_str(&format!("Authorization: Bearer {token}\r\n"));
        }
        Ok(Self {
            weights: mix.iter().map(|(_, w)| w).sum(),
            zipf: Zipf::new(contents.len(), args.zipf),
            prefixes: if has(&[RequestKind::Suggest]) {
                prefixes(&tags, args.limit, &mut rng)
            } else {
                Vec::new()
            },
            popular: format!("/v1/tags/popular?window=all&limit={}", args.limit),
            path: args.path.clone().unwrap_or_default(),
            headers: headers.into_bytes(),
            mix,
            contents,
            searches,
            // Not from the seed: two runs with one seed write different tags.
            tag_prefix: format!("bench-{:08x}-", fastrand::u32(..)),
        })
    }

    /// What the names of the tags that this run writes begin with.
    pub(super) fn tag_prefix(&self) -> &str {
        &self.tag_prefix
    }

    /// The contents that this run wrote.
    pub(super) fn written(&self) -> Vec<Written> {
        let written = |content: &Content| {
            let changes = content.changes.load(Ordering::Relaxed);
            (changes > 0).then(|| Written {
                content_type: decode(&content.content_type),
                id: decode(&content.id),
                tags: changes.div_ceil(2).min(TAGS_PER_CONTENT),
            })
        };
        self.contents.iter().filter_map(written).collect()
    }

    /// Writes the next request into `request`, and returns its kind.
    pub fn next(&self, rng: &mut Rng, request: &mut Vec<u8>) -> RequestKind {
        let mut at = rng.u32(..self.weights);
        let mut kind = self.mix[0].0;
        for (k, weight) in &self.mix {
            kind = *k;
            if at < *weight {
                break;
            }
            at -= weight;
        }
        request.clear();
        match kind {
            RequestKind::View => {
                let c = &self.contents[self.zipf.pick(rng)];
                self.head(
                    request,
                    format_args!("GET /v1/content/{}/{}/tags", c.content_type, c.id),
                );
                request.extend_from_slice(b"\r\n");
            }
            RequestKind::Tag => {
                let c = &self.contents[self.zipf.pick(rng)];
                let (method, tag) = change(c);
                self.head(
                    request,
                    format_args!(
                        "{method} /v1/content/{}/{}/tags/{}{tag}",
                        c.content_type, c.id, self.tag_prefix
                    ),
                );
                request.extend_from_slice(b"Content-Length: 0\r\n\r\n");
            }
            RequestKind::Search => {
                self.get(request, &self.searches[rng.usize(..self.searches.len())])
            }
            RequestKind::Popular => self.get(request, &self.popular),
            RequestKind::Suggest => {
                self.get(request, &self.prefixes[rng.usize(..self.prefixes.len())])
            }
            RequestKind::Path => self.get(request, &self.path),
            RequestKind::BatchView => self.batch(request, rng, "batchGet", |_| String::new()),
            RequestKind::BatchTag => self.batch(request, rng, "batchTag", |c| {
                let (method, tag) = change(c);
                let field = if method == "PUT" { "add" } else { "remove" };
                format!(",\"{field}\":[\"{}{tag}\"]", self.tag_prefix)
            }),
        }
        kind
    }

    fn head(&self, request: &mut Vec<u8>, line: std::fmt::Arguments<'_>) {
        // Cannot fail: the writer is memory.
        let _ = write!(request, "{line} HTTP/1.1\r\n");
        request.extend_from_slice(&self.headers);
    }

    fn get(&self, request: &mut Vec<u8>, path: &str) {
        self.head(request, format_args!("GET {path}"));
        request.extend_from_slice(b"\r\n");
    }

    fn batch(
        &self,
        request: &mut Vec<u8>,
        rng: &mut Rng,
        call: &str,
        more: impl Fn(&Content) -> String,
    ) {
        let items: Vec<String> = (0..BATCH_ITEMS)
            .map(|_| {
                let c = &self.contents[self.zipf.pick(rng)];
                let (content_type, id) =
                    (Value::from(decode(&c.content_type)), Value::from(decode(&c.id)));
                format!("{{\"type\":{content_type},\"id\":{id}{}}}", more(c))
            })
            .collect();
        let body = format!("{{\"items\":[{}]}}", items.join(","));
        self.head(request, format_args!("POST /v1/content:{call}"));
        let _ = write!(
            request,
            "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
    }
}

/// What [`encode`] encoded.
fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// Method and tag number of the next change of a content.
fn change(content: &Content) -> (&'static str, u32) {
    let n = content.changes.fetch_add(1, Ordering::Relaxed);
    (if n.is_multiple_of(2) { "PUT" } else { "DELETE" }, n / 2 % TAGS_PER_CONTENT)
}

fn synthetic(count: u32) -> Vec<Content> {
    let content = |n| Content {
        content_type: "bench.item".to_owned(),
        id: format!("item-{n:08}"),
        changes: AtomicU32::new(0),
    };
    (0..count).map(content).collect()
}

/// The contents of an NDJSON file, encoded for a path, and the tags of each.
fn read_contents(path: &Path) -> Result<(Vec<Content>, Vec<Vec<String>>), CliError> {
    let file = path.display();
    let (mut contents, mut tags) = (Vec::new(), Vec::new());
    for (number, line) in std::io::BufRead::lines(open_lines(path)?).enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let line: Line = tagfast_json::from_str(&line)
            .map_err(|e| CliError::usage(format!("{file}, line {}", number + 1)).with_source(e))?;
        let name = |t: &Value| t.as_str().or_else(|| t.get("tag")?.as_str()).map(str::to_owned);
        tags.push(line.tags.iter().filter_map(name).collect());
        contents.push(Content {
            content_type: encode(&line.content_type),
            id: encode(&line.id),
            changes: AtomicU32::new(0),
        });
    }
    if contents.is_empty() {
        return Err(CliError::usage(format!("{file} holds no content")));
    }
    Ok((contents, tags))
}

async fn popular_tags(client: &Client) -> Result<Vec<String>, CliError> {
    let answer = client.get("/v1/tags/popular?window=all&limit=50").await?;
    let names: Vec<String> = json::list(&answer, "tags")
        .iter()
        .filter_map(|t| t.get("tag").and_then(Value::as_str))
        .map(str::to_owned)
        .collect();
    if names.is_empty() {
        return Err(CliError::usage(
            "the server has no tags to search for; give --ids-from or --query",
        ));
    }
    Ok(names)
}

/// Queries `a AND b` of two tags that occur together.
fn pairs(tags: &[Vec<String>], rng: &mut Rng) -> Vec<String> {
    let quoted = |t: &str| {
        let plain =
            t.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b':' | b'-' | b'.' | b'_'));
        if plain { t.to_owned() } else { format!("\"{t}\"") }
    };
    let with_pairs: Vec<&Vec<String>> = tags.iter().filter(|t| t.len() >= 2).collect();
    if with_pairs.is_empty() {
        return tags.iter().flatten().take(1).map(|t| quoted(t)).collect();
    }
    (0..QUERIES)
        .map(|_| {
            let tags = with_pairs[rng.usize(..with_pairs.len())];
            let first = rng.usize(..tags.len());
            let second = (first + 1 + rng.usize(..tags.len() - 1)) % tags.len();
            format!("{} AND {}", quoted(&tags[first]), quoted(&tags[second]))
        })
        .collect()
}

/// Paths that complete prefixes of tags.
fn prefixes(tags: &[Vec<String>], limit: u32, rng: &mut Rng) -> Vec<String> {
    let all: Vec<&String> = tags.iter().flatten().collect();
    if all.is_empty() {
        return vec![format!("/v1/tags?prefix=a&limit={limit}")];
    }
    (0..QUERIES)
        .map(|_| {
            let tag = all[rng.usize(..all.len())];
            let prefix: String = tag.chars().take(rng.usize(1..=PREFIX_CHARS_MAX)).collect();
            format!("/v1/tags?prefix={}&limit={limit}", encode(&prefix))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(mix: &str) -> Workload {
        let mix = parse_mix(mix).unwrap();
        let contents = synthetic(10);
        Workload {
            weights: mix.iter().map(|(_, w)| w).sum(),
            zipf: Zipf::new(contents.len(), 0.0),
            mix,
            contents,
            searches: vec!["/v1/search?q=a".to_owned()],
            prefixes: vec!["/v1/tags?prefix=a".to_owned()],
            popular: "/v1/tags/popular".to_owned(),
            path: "/hello".to_owned(),
            headers: b"Host: h\r\n".to_vec(),
            tag_prefix: "bench-1-".to_owned(),
        }
    }

    #[test]
    fn mixes_are_weights_of_known_kinds() {
        assert_eq!(
            parse_mix("view=90, tag=10").unwrap(),
            [(RequestKind::View, 90), (RequestKind::Tag, 10)]
        );
        assert_eq!(parse_mix("search").unwrap(), [(RequestKind::Search, 1)]);
        for bad in ["", "view=0", "vew=1", "view=x", "view=-1"] {
            assert_eq!(parse_mix(bad).unwrap_err().exit, crate::error::Exit::Usage, "{bad}");
        }
    }

    #[test]
    fn the_mix_is_kept() {
        let (workload, mut rng, mut request) =
            (workload("view=90,tag=10"), Rng::with_seed(1), Vec::new());
        let views = (0..10_000)
            .filter(|_| workload.next(&mut rng, &mut request) == RequestKind::View)
            .count();
        assert!((8_800..9_200).contains(&views), "{views}");
    }

    #[test]
    fn every_write_changes_something() {
        let content = &synthetic(1)[0];
        let changes: Vec<_> = (0..4).map(|_| change(content)).collect();
        assert_eq!(changes, [("PUT", 0), ("DELETE", 0), ("PUT", 1), ("DELETE", 1)]);
    }

    #[test]
    fn what_was_written_is_known() {
        let (workload, mut rng, mut request) = (workload("tag"), Rng::with_seed(1), Vec::new());
        assert!(workload.written().is_empty());
        let mut named = std::collections::HashSet::new();
        for _ in 0..2_000 {
            workload.next(&mut rng, &mut request);
            let path = String::from_utf8_lossy(&request);
            named.insert(path.split(' ').nth(1).unwrap().to_owned());
        }
        let written: std::collections::HashSet<String> = workload
            .written()
            .iter()
            .flat_map(|w| {
                let path = format!("/v1/content/{}/{}/tags/bench-1-", w.content_type, w.id);
                (0..w.tags).map(move |n| format!("{path}{n}"))
            })
            .collect();
        assert_eq!(written, named);
    }

    #[test]
    fn batches_are_json_of_the_stated_length() {
        let (workload, mut rng, mut request) =
            (workload("batch_tag"), Rng::with_seed(1), Vec::new());
        workload.next(&mut rng, &mut request);
        let text = String::from_utf8(request).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /v1/content:batchTag HTTP/1.1\r\nHost: h\r\n"));
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())));
        let value: Value = serde_json::from_str(body).unwrap();
        assert_eq!(value["items"].as_array().unwrap().len(), BATCH_ITEMS);
    }

    #[test]
    fn pairs_quote_what_is_not_plain() {
        let queries = pairs(&[vec!["c++".to_owned(), "ui::x".to_owned()]], &mut Rng::with_seed(1));
        assert!(
            queries.iter().all(|q| q == "\"c++\" AND ui::x" || q == "ui::x AND \"c++\""),
            "{queries:?}"
        );
    }
}
