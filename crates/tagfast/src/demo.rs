//! The bundled sample: 29,795 Debian packages with their debtags, loaded once through the store's
//! write path.
//!
//! A marker file in the data directory says that it is loaded.
//!
//! How it fails: after an interrupted load there is no marker, and the next start loads the sample
//! again, which changes no content that is there already.

use std::io::{BufRead, BufReader};
use std::path::Path;

use tagfast_client::error::CliError;
use tagfast_client::progress::Progress;
use tagfast_client::terminal::Terminal;
use tagfast_domain::{ContentKey, Limits, Operation, Tag, TenantId, UserId, Write, WriteId};
use tagfast_store::{SharedStore, StoreError, WriteRequest};

/// The sample's lines, gzipped NDJSON; see demo/README.md for where they come from.
static SAMPLE: &[u8] = include_bytes!("../../../demo/debtags.ndjson.gz");
/// Contents in the sample.
pub(crate) const CONTENTS: u64 = 29_795;
/// Name of the marker file.
const MARKER_FILE: &str = "demo-loaded";
/// Contents in one batch of writes.
const WRITE_BATCH: usize = 1000;
/// Attempts to write one batch before the load fails.
const WRITE_ATTEMPTS_MAX: u32 = 20;

/// Size of a loaded sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LoadSummary {
    /// Contents.
    pub(crate) contents: u64,
    /// Taggings.
    pub(crate) taggings: u64,
}

#[derive(serde::Deserialize)]
struct Line {
    #[serde(rename = "type")]
    content_type: String,
    id: String,
    tags: Vec<String>,
}

/// Loads the sample; `None` = it is loaded already.
///
/// # Errors
/// The store refused a write for good, or retryable refusals did not end.
pub(crate) async fn load_once(
    store: &SharedStore,
    data_dir: &Path,
    limits: &Limits,
    terminal: &Terminal,
) -> Result<Option<LoadSummary>, CliError> {
    let marker = data_dir.join(MARKER_FILE);
    if marker.exists() {
        return Ok(None);
    }
    let progress = Progress::new(terminal, "loading the demo data", Some(CONTENTS));
    let mut loaded = LoadSummary::default();
    let mut batch = Vec::with_capacity(WRITE_BATCH);
    for line in BufReader::new(flate2::read::GzDecoder::new(SAMPLE)).lines() {
        let line: Line = tagfast_json::from_str(&line?)?;
        loaded.taggings += line.tags.len() as u64;
        batch.push(request(line, limits).map_err(|e| CliError::new("demo data").with_source(e))?);
        if batch.len() == WRITE_BATCH {
            loaded.contents += write(store, std::mem::take(&mut batch)).await?;
            progress.set(loaded.contents);
        }
    }
    loaded.contents += write(store, batch).await?;
    progress.finish();
    std::fs::write(&marker, format!("{} contents\n", loaded.contents))?;
    Ok(Some(loaded))
}

fn request(line: Line, limits: &Limits) -> Result<WriteRequest, tagfast_domain::DomainError> {
    let key = ContentKey::parse(TenantId::default_tenant().as_str(), &line.content_type, &line.id)?;
    let add = line.tags.iter().map(|t| Tag::parse(t)).collect::<Result<_, _>>()?;
    let write = Write {
        id: WriteId(uuid::Uuid::now_v7().into_bytes()),
        key,
        user: UserId::parse("debtags")?,
        operation: Operation::patch(add, Vec::new(), limits)?,
        if_match: None,
    };
    // Its id is new: no key is to be remembered.
    Ok(WriteRequest { keyed: None, ..WriteRequest::new(write) })
}

/// Writes a batch and retries the writes that a full queue refused.
async fn write(store: &SharedStore, mut requests: Vec<WriteRequest>) -> Result<u64, CliError> {
    let count = requests.len() as u64;
    for _ in 0..WRITE_ATTEMPTS_MAX {
        let answers = store.write_many(requests.clone()).await;
        let mut refused = Vec::new();
        let mut wait = None;
        for (request, answer) in requests.into_iter().zip(answers) {
            match answer {
                Ok(_) => {}
                Err(error) if error.is_retryable() => {
                    wait = wait.max(error.retry_after());
                    refused.push(request);
                }
                Err(error) => return Err(failed(error)),
            }
        }
        if refused.is_empty() {
            return Ok(count);
        }
        requests = refused;
        tokio::time::sleep(wait.unwrap_or_default()).await;
    }
    Err(CliError::new("cannot load the demo data: the store refused writes for too long"))
}

fn failed(error: StoreError) -> CliError {
    CliError::new("cannot load the demo data").with_source(error)
}

/// The links and commands to try first.
pub(crate) fn hints(base: &str, with_token: bool) -> String {
    let auth = if with_token { " -H \"Authorization: Bearer $TAGFAST_TOKEN\"" } else { "" };
    let token = if with_token {
        "  export TAGFAST_TOKEN=$(tagfast token issue --secret-file SECRET --tenant default --user me)\n"
    } else {
        ""
    };
    format!(
        "The demo data is there: {CONTENTS} Debian packages with their tags. Open {base}/docs or try:\n{token}\
         \x20 curl{auth} {base}/v1/content/debian.package/0ad/tags\n\
         \x20 curl{auth} -X PUT {base}/v1/content/debian.package/0ad/tags/my-favourite\n\
         \x20 curl{auth} -G {base}/v1/search --data-urlencode 'q=role::program AND NOT use::gameplaying' -d limit=3\n\
         \x20 curl{auth} '{base}/v1/tags/popular?window=all&limit=5'\n\
         \x20 curl{auth} '{base}/v1/tags?prefix=interface'\n\
         or with the client: tagfast search 'role::program AND interface::commandline' --url {base}"
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_sample_has_the_size_that_the_help_states() {
        let (mut contents, mut taggings, mut tags) = (0u64, 0u64, BTreeSet::new());
        for line in BufReader::new(flate2::read::GzDecoder::new(SAMPLE)).lines() {
            let line: Line = serde_json::from_str(&line.unwrap()).unwrap();
            contents += 1;
            taggings += line.tags.len() as u64;
            tags.extend(line.tags);
        }
        assert_eq!((contents, taggings, tags.len()), (CONTENTS, 109_908, 597));
    }

    #[test]
    fn every_line_is_a_valid_write() {
        for line in BufReader::new(flate2::read::GzDecoder::new(SAMPLE)).lines() {
            request(serde_json::from_str(&line.unwrap()).unwrap(), &Limits::default()).unwrap();
        }
    }
}
