//! Faults of the search index: what its alias, its settings and its documents are, while OpenSearch
//! itself answers.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::change::Change;
use super::host::wait_until;
use super::info::StackInfo;
use crate::http::Client;

/// A fault of the search index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexFault {
    /// The alias points to a second, empty index too.
    AliasTwice,
    /// The alias points to a different, empty index.
    AliasForeign,
    /// The index is closed.
    Close,
    /// The index has a write block.
    Block,
    /// Every document of the index is deleted.
    Empty,
    /// The index is deleted.
    Delete,
    /// The index is deleted and made again, empty, with its settings, mapping and alias.
    Recreate,
}

/// The alias of the service's index.
const ALIAS: &str = "tagfast-content";
/// An index that the service has not made.
const FOREIGN_INDEX: &str = "stack-foreign";
const TIMEOUT: Duration = Duration::from_secs(30);

struct OpenSearch(Client);

impl OpenSearch {
    fn of(info: &StackInfo) -> Result<Self> {
        let server = info.opensearch.as_ref().context("opensearch is not part of this stack")?;
        Ok(Self(Client::new(server.direct).with_timeout(TIMEOUT)))
    }

    /// The answer's status and body.
    fn call(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let body = body.map(Value::to_string);
        let answer = self.0.request(method, path, &[], body.as_deref())?;
        Ok((answer.status, answer.json()))
    }

    fn expect(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let (status, answer) = self.call(method, path, body)?;
        ensure!(status < 300, "OpenSearch answered {status} to {method} {path}: {answer}");
        Ok(answer)
    }

    /// The indices behind the alias.
    fn behind_alias(&mut self) -> Result<Vec<String>> {
        let (status, answer) = self.call("GET", &format!("/_alias/{ALIAS}"), None)?;
        match (status, answer.as_object()) {
            (200, Some(indices)) => Ok(indices.keys().cloned().collect()),
            (404, _) => Ok(Vec::new()),
            _ => bail!("OpenSearch answered {status}: {answer}"),
        }
    }

    /// The one index behind the alias.
    fn index(&mut self) -> Result<String> {
        let mut indices = self.behind_alias()?;
        ensure!(indices.len() == 1, "the alias {ALIAS} is on {indices:?}");
        Ok(indices.remove(0))
    }

    /// Makes the foreign index, which remembers where the alias was.
    fn make_foreign(&mut self, index: &str) -> Result<()> {
        let body = json!({"settings": {"number_of_replicas": 0},
            "mappings": {"_meta": {"alias_was_on": index}}});
        self.expect("PUT", &format!("/{FOREIGN_INDEX}"), Some(&body)).map(drop)
    }

    fn change_alias(&mut self, actions: &Value) -> Result<()> {
        self.expect("POST", "/_aliases", Some(&json!({"actions": actions}))).map(drop)
    }

    /// Deletes the foreign index and puts the alias back on an index that has none any more.
    fn end_foreign(&mut self) -> Result<()> {
        let (status, answer) = self.call("GET", &format!("/{FOREIGN_INDEX}/_mapping"), None)?;
        if status == 404 {
            return Ok(());
        }
        let before = answer[FOREIGN_INDEX]["mappings"]["_meta"]["alias_was_on"].as_str();
        let before = before.context("the foreign index does not say where the alias was")?;
        self.expect("DELETE", &format!("/{FOREIGN_INDEX}"), None)?;
        // The service may have made an index of its own meanwhile.
        if self.behind_alias()?.is_empty()
            && self.call("HEAD", &format!("/{before}"), None)?.0 == 200
        {
            self.change_alias(&json!([{"add": {"index": before, "alias": ALIAS}}]))?;
        }
        Ok(())
    }

    fn set_write_block(&mut self, blocked: bool) -> Result<()> {
        let value = if blocked { json!(true) } else { Value::Null };
        for index in self.behind_alias()? {
            let body = json!({"index.blocks.write": value});
            self.expect("PUT", &format!("/{index}/_settings"), Some(&body))?;
        }
        Ok(())
    }

    /// Deletes every document, page by page, until none is found.
    fn empty(&mut self, index: &str) -> Result<()> {
        wait_until("the index to be empty", TIMEOUT, || {
            let path = format!("/{index}/_search?size=1000&_source=false");
            let page = self.expect("GET", &path, None)?;
            let hits = page["hits"]["hits"].as_array().context("no hits in the answer")?;
            if hits.is_empty() {
                return Ok(());
            }
            let line = |hit: &Value| {
                let mut which = json!({"_id": hit["_id"]});
                if let Some(routing) = hit["_routing"].as_str() {
                    which["routing"] = json!(routing);
                }
                format!("{}\n", json!({"delete": which}))
            };
            let lines: String = hits.iter().map(line).collect();
            let path = format!("/{index}/_bulk?refresh=true");
            let answer = self.0.request("POST", &path, &[], Some(&lines))?;
            ensure!(answer.status == 200, "OpenSearch answered {}", answer.text());
            bail!("{} documents deleted, perhaps more", hits.len())
        })
    }

    /// Deletes an index and makes it again with the same settings, mapping and alias.
    fn recreate(&mut self) -> Result<()> {
        let index = self.index()?;
        let mut described = self.expect("GET", &format!("/{index}"), None)?;
        let described = described[&index].take();
        let mut settings = described["settings"]["index"].clone();
        let known = settings.as_object_mut().context("the index has no settings")?;
        // What OpenSearch itself sets.
        for key in ["creation_date", "uuid", "version", "provided_name", "resize", "routing"] {
            known.remove(key);
        }
        self.expect("DELETE", &format!("/{index}"), None)?;
        let body = json!({"settings": {"index": settings}, "mappings": described["mappings"],
            "aliases": {ALIAS: {}}});
        self.expect("PUT", &format!("/{index}"), Some(&body)).map(drop)
    }
}

/// Begins or ends a fault of the index.
pub(super) fn change(info: &StackInfo, fault: IndexFault, change: Change) -> Result<()> {
    let mut server = OpenSearch::of(info)?;
    if change == Change::End {
        return end(&mut server, fault);
    }
    let index = server.index()?;
    match fault {
        IndexFault::AliasTwice => {
            server.make_foreign(&index)?;
            server.change_alias(&json!([{"add": {"index": FOREIGN_INDEX, "alias": ALIAS}}]))
        }
        IndexFault::AliasForeign => {
            server.make_foreign(&index)?;
            server.change_alias(&json!([
                {"remove": {"index": index, "alias": ALIAS}},
                {"add": {"index": FOREIGN_INDEX, "alias": ALIAS}},
            ]))
        }
        IndexFault::Close => server.expect("POST", &format!("/{index}/_close"), None).map(drop),
        IndexFault::Block => server.set_write_block(true),
        IndexFault::Empty => server.empty(&index),
        IndexFault::Delete => server.expect("DELETE", &format!("/{index}"), None).map(drop),
        IndexFault::Recreate => server.recreate(),
    }
}

fn end(server: &mut OpenSearch, fault: IndexFault) -> Result<()> {
    match fault {
        IndexFault::AliasTwice | IndexFault::AliasForeign => server.end_foreign()?,
        IndexFault::Close => {
            for index in server.behind_alias()? {
                server.expect("POST", &format!("/{index}/_open"), None)?;
            }
        }
        IndexFault::Block => server.set_write_block(false)?,
        // The service makes the index, or its documents, again.
        IndexFault::Empty | IndexFault::Delete | IndexFault::Recreate => {}
    }
    wait_until("every shard of the index to be assigned", TIMEOUT, || {
        let health = server.expect("GET", "/_cluster/health", None)?;
        if health["status"] == "red" { bail!("{health}") } else { Ok(()) }
    })
}
