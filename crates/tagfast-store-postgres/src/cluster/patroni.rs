//! Patroni's REST API, which finds a cluster's nodes while etcd has not answered yet: their
//! PostgreSQL can be read without etcd.
//!
//! How it fails: a URL that does not answer within [`limit::ETCD_TIMEOUT`] is skipped; if none
//! answers, no node is found.

use tagfast_resilience::Address;

use crate::cluster::topology::Node;
#[cfg(doc)]
use crate::options::limit;

/// The members of a cluster, as the first Patroni that answers lists them.
pub(crate) async fn discover_nodes(http: &reqwest::Client, urls: &[Address]) -> Vec<Node> {
    for url in urls {
        let Ok(answer) =
            http.get(format!("{}/cluster", url.expose().trim_end_matches('/'))).send().await
        else {
            continue;
        };
        let Ok(bytes) = answer.bytes().await else { continue };
        let Ok(value) = tagfast_json::from_slice::<serde_json::Value>(&bytes) else { continue };
        let nodes = value["members"].as_array().into_iter().flatten().filter_map(|m| {
            let (host, port) = (m["host"].as_str()?, m["port"].as_u64()?);
            Some(Node { name: m["name"].as_str()?.to_owned(), address: format!("{host}:{port}") })
        });
        let nodes: Vec<Node> = nodes.collect();
        if !nodes.is_empty() {
            return nodes;
        }
    }
    Vec::new()
}
