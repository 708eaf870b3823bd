//! What is asked: the mix of calls, the contents and queries, and the bytes of each request.

use std::io::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::Deserialize;
use serde_json::Value;

use super::pick::{Rng, Zipf};
use crate::cli::BenchArgs;
use crate::client::{Client, encode};
use crate::failure::Failure;
use crate::transfer::open_lines;

/// Tags that `tag` puts on and takes off again.
const TAGS: u32 = 50;
/// Contents in a `batch_view` and in a `batch_tag`.
const BATCH: usize = 20;
const QUERIES: usize = 2000;

/// A kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One content's tags.
    View,
    /// One change: a tag put on or, every second time, taken off again, so that every call changes
    /// something.
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
    /// The fixed path.
    Path,
}

impl Kind {
    /// Every kind that a mix can name.
    const MIX: [Self; 7] = [
        Self::View,
        Self::Tag,
        Self::Search,
        Self::Popular,
        Self::Suggest,
        Self::BatchView,
        Self::BatchTag,
    ];

    /// The word in `--mix` and in the report.
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
pub fn parse_mix(text: &str) -> Result<Vec<(Kind, u32)>, Failure> {
    let bad = |part: &str| {
        let words = Kind::MIX.map(Kind::as_str).join(", ");
        Failure::usage(format!("--mix: {part:?} is not KIND=WEIGHT; the kinds are {words}"))
    };
    let mut mix = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (word, weight) = part.split_once('=').unwrap_or((part, "1"));
        let kind = Kind::MIX.into_iter().find(|k| k.as_str() == word).ok_or_else(|| bad(part))?;
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

/// Everything the generator asks; shared by its threads.
pub struct Load {
    mix: Vec<(Kind, u32)>,
    weights: u32,
    contents: Vec<Content>,
    zipf: Zipf,
    searches: Vec<String>,
    prefixes: Vec<String>,
    popular: String,
    path: String,
    /// Host and authorization, ready to be copied into a head.
    headers: Vec<u8>,
}

impl Load {
    /// Reads contents and prepares queries; asks the server for its popular tags if it needs some.
    pub async fn prepare(args: &BenchArgs, host: &str, client: &Client) -> Result<Self, Failure> {
        let mix = match &args.path {
            Some(_) => vec![(Kind::Path, 1)],
            None => parse_mix(&args.mix)?,
        };
        let has = |kinds: &[Kind]| mix.iter().any(|(k, _)| kinds.contains(k));
        let mut rng = Rng::new(args.seed);
        let (contents, mut tags) = match &args.ids_from {
            Some(file) => read_contents(&file.to_string_lossy())?,
            None => (synthetic(args.contents), Vec::new()),
        };
        if tags.is_empty()
            && (has(&[Kind::Search]) && args.query.is_empty() || has(&[Kind::Suggest]))
        {
            tags = vec![popular_tags(client).await?];
        }
        let searches = if !has(&[Kind::Search]) {
            Vec::new()
        } else if args.query.is_empty() {
            pairs(&tags, &mut rng)
        } else {
            args.query.clone()
        };
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
            prefixes: if has(&[Kind::Suggest]) {
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
        })
    }

    /// Writes the next request into `request`.
    pub fn next(&self, rng: &mut Rng, request: &mut Vec<u8>) -> Kind {
        let mut at = rng.below(self.weights as usize) as u32;
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
            Kind::View => {
                let c = &self.contents[self.zipf.pick(rng)];
                self.head(
                    request,
                    format_args!("GET /v1/content/{}/{}/tags", c.content_type, c.id),
                );
                request.extend_from_slice(b"\r\n");
            }
            Kind::Tag => {
                let c = &self.contents[self.zipf.pick(rng)];
                let (method, tag) = change(c);
                self.head(
                    request,
                    format_args!(
                        "{method} /v1/content/{}/{}/tags/bench-{tag}",
                        c.content_type, c.id
                    ),
                );
                request.extend_from_slice(b"Content-Length: 0\r\n\r\n");
            }
            Kind::Search => self.get(request, &self.searches[rng.below(self.searches.len())]),
            Kind::Popular => self.get(request, &self.popular),
            Kind::Suggest => self.get(request, &self.prefixes[rng.below(self.prefixes.len())]),
            Kind::Path => self.get(request, &self.path),
            Kind::BatchView => self.batch(request, rng, "batchGet", |_| String::new()),
            Kind::BatchTag => self.batch(request, rng, "batchTag", |c| {
                let (method, tag) = change(c);
                let field = if method == "PUT" { "add" } else { "remove" };
                format!(",\"{field}\":[\"bench-{tag}\"]")
            }),
        }
        kind
    }

    fn head(&self, request: &mut Vec<u8>, line: std::fmt::Arguments<'_>) {
        // Writing to memory cannot fail.
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
        let items: Vec<String> = (0..BATCH)
            .map(|_| {
                let c = &self.contents[self.zipf.pick(rng)];
                let decode = |s: &str| {
                    percent_encoding::percent_decode_str(s).decode_utf8_lossy().into_owned()
                };
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

fn change(content: &Content) -> (&'static str, u32) {
    let n = content.changes.fetch_add(1, Ordering::Relaxed);
    (if n.is_multiple_of(2) { "PUT" } else { "DELETE" }, n / 2 % TAGS)
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
fn read_contents(file: &str) -> Result<(Vec<Content>, Vec<Vec<String>>), Failure> {
    let (mut contents, mut tags) = (Vec::new(), Vec::new());
    for (number, line) in std::io::BufRead::lines(open_lines(file)?).enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let line: Line = serde_json::from_str(&line)
            .map_err(|e| Failure::usage(format!("{file}, line {}: {e}", number + 1)))?;
        let name = |t: &Value| t.as_str().or_else(|| t.get("tag")?.as_str()).map(str::to_owned);
        tags.push(line.tags.iter().filter_map(name).collect());
        contents.push(Content {
            content_type: encode(&line.content_type),
            id: encode(&line.id),
            changes: AtomicU32::new(0),
        });
    }
    if contents.is_empty() {
        return Err(Failure::usage(format!("{file} holds no content")));
    }
    Ok((contents, tags))
}

async fn popular_tags(client: &Client) -> Result<Vec<String>, Failure> {
    let answer = client.get("/v1/tags/popular?window=all&limit=50").await?;
    let tags = answer.get("tags").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let names: Vec<String> = tags
        .iter()
        .filter_map(|t| t.get("tag").and_then(Value::as_str))
        .map(str::to_owned)
        .collect();
    if names.is_empty() {
        return Err(Failure::usage(
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
    let able: Vec<&Vec<String>> = tags.iter().filter(|t| t.len() >= 2).collect();
    if able.is_empty() {
        return tags.iter().flatten().take(1).map(|t| quoted(t)).collect();
    }
    (0..QUERIES)
        .map(|_| {
            let tags = able[rng.below(able.len())];
            let first = rng.below(tags.len());
            let second = (first + 1 + rng.below(tags.len() - 1)) % tags.len();
            format!("{} AND {}", quoted(&tags[first]), quoted(&tags[second]))
        })
        .collect()
}

/// The beginnings of tags, one to five characters long.
fn prefixes(tags: &[Vec<String>], limit: u32, rng: &mut Rng) -> Vec<String> {
    let all: Vec<&String> = tags.iter().flatten().collect();
    if all.is_empty() {
        return vec![format!("/v1/tags?prefix=a&limit={limit}")];
    }
    (0..QUERIES)
        .map(|_| {
            let tag = all[rng.below(all.len())];
            let prefix: String = tag.chars().take(1 + rng.below(5)).collect();
            format!("/v1/tags?prefix={}&limit={limit}", encode(&prefix))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(mix: &str) -> Load {
        let mix = parse_mix(mix).unwrap();
        let contents = synthetic(10);
        Load {
            weights: mix.iter().map(|(_, w)| w).sum(),
            zipf: Zipf::new(contents.len(), 0.0),
            mix,
            contents,
            searches: vec!["/v1/search?q=a".to_owned()],
            prefixes: vec!["/v1/tags?prefix=a".to_owned()],
            popular: "/v1/tags/popular".to_owned(),
            path: "/hello".to_owned(),
            headers: b"Host: h\r\n".to_vec(),
        }
    }

    #[test]
    fn mixes_are_weights_of_known_kinds() {
        assert_eq!(parse_mix("view=90, tag=10").unwrap(), [(Kind::View, 90), (Kind::Tag, 10)]);
        assert_eq!(parse_mix("search").unwrap(), [(Kind::Search, 1)]);
        for bad in ["", "view=0", "vew=1", "view=x", "view=-1"] {
            assert_eq!(parse_mix(bad).unwrap_err().exit, crate::failure::Exit::Usage, "{bad}");
        }
    }

    #[test]
    fn the_mix_is_kept() {
        let (load, mut rng, mut request) = (load("view=90,tag=10"), Rng::new(1), Vec::new());
        let views = (0..10_000).filter(|_| load.next(&mut rng, &mut request) == Kind::View).count();
        assert!((8_800..9_200).contains(&views), "{views}");
    }

    #[test]
    fn every_write_changes_something() {
        let content = &synthetic(1)[0];
        let changes: Vec<_> = (0..4).map(|_| change(content)).collect();
        assert_eq!(changes, [("PUT", 0), ("DELETE", 0), ("PUT", 1), ("DELETE", 1)]);
    }

    #[test]
    fn batches_are_json_of_the_stated_length() {
        let (load, mut rng, mut request) = (load("batch_tag"), Rng::new(1), Vec::new());
        load.next(&mut rng, &mut request);
        let text = String::from_utf8(request).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /v1/content:batchTag HTTP/1.1\r\nHost: h\r\n"));
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())));
        let value: Value = serde_json::from_str(body).unwrap();
        assert_eq!(value["items"].as_array().unwrap().len(), BATCH);
    }

    #[test]
    fn pairs_quote_what_is_not_plain() {
        let queries = pairs(&[vec!["c++".to_owned(), "ui::x".to_owned()]], &mut Rng::new(1));
        assert!(
            queries.iter().all(|q| q == "\"c++\" AND ui::x" || q == "ui::x AND \"c++\""),
            "{queries:?}"
        );
    }
}
