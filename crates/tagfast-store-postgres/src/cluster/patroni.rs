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
        let nodes = nodes_of(&bytes);
        if !nodes.is_empty() {
            return nodes;
        }
    }
    Vec::new()
}

/// The members in an answer to `GET /cluster`; those without an address are left out. An answer
/// that is not JSON has none.
fn nodes_of(answer: &[u8]) -> Vec<Node> {
    let value: serde_json::Value = tagfast_json::from_slice(answer).unwrap_or_default();
    let members = value["members"].as_array().into_iter().flatten();
    let node = |member: &serde_json::Value| {
        let (host, port) = (member["host"].as_str()?, member["port"].as_u64()?);
        let name = member["name"].as_str()?.to_owned();
        Some(Node { name, address: format!("{host}:{port}") })
    };
    members.filter_map(node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer that is damaged, or of something else, names no node that the cluster lacks.
    #[test]
    fn a_damaged_answer_names_no_wrong_node() {
        let text = r#"{"members": [
            {"name": "n1", "role": "leader", "host": "10.0.0.1", "port": 5432, "tags": {"x": true}},
            {"name": "n2", "role": "replica", "host": "10.0.0.2", "port": 5433, "lag": 0}
        ], "scope": "c0"}"#;
        let names = |text: &str| -> Vec<String> {
            let nodes = nodes_of(text.as_bytes()).into_iter();
            nodes.map(|node| format!("{} {}", node.name, node.address)).collect()
        };
        let all = ["n1 10.0.0.1:5432", "n2 10.0.0.2:5433"];
        assert_eq!(names(text), all);
        for damaged in tagfast_json::testing::arrays_for_objects(text) {
            let found = names(&damaged);
            assert!(found.iter().all(|node| all.contains(&&**node)), "{damaged}: {found:?}");
        }
        for damaged in tagfast_json::testing::repeated_keys(text) {
            assert!(names(&damaged).is_empty(), "{damaged}: it says two things");
        }
        for part in 0..text.len() {
            assert!(names(&text[..part]).is_empty(), "cut off after {part} bytes");
        }
        for other in ["null", "[]", "7", "<html>", r#"{"members": {}}"#, r#"{"members": [[1]]}"#] {
            assert!(names(other).is_empty(), "{other}");
        }
    }
}
