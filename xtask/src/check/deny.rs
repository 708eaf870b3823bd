//! `deny.toml`, for people who use cargo-deny, is made from the tables that `cargo xtask check`
//! enforces, so that the two cannot differ.
//!
//! `UPDATE_GOLDEN=1 cargo test -p xtask` writes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Result, bail};
use serde_json::Value;

use super::{arrows, licences};
use crate::run::{cargo, output, root};

pub(crate) fn check() -> Result<()> {
    let file = std::fs::read_to_string(root().join("deny.toml"))?;
    if file != render()? {
        bail!("deny.toml differs from the tables: run UPDATE_GOLDEN=1 cargo test -p xtask deny");
    }
    Ok(())
}

/// The whole file.
fn render() -> Result<String> {
    let graph = Graph::read()?;
    let mut out = String::from(
        "# Made from xtask/src/check/{arrows,licences}.rs (UPDATE_GOLDEN=1 cargo test -p xtask deny).\n\
         # `cargo xtask check` enforces the same without cargo-deny.\n[licenses]\nallow = [\n",
    );
    licences::ALLOWED.iter().for_each(|licence| _ = writeln!(out, "    \"{licence}\","));
    out.push_str("]\n\n[bans]\nmultiple-versions = \"warn\"\ndeny = [\n");
    for (name, why) in licences::BANNED {
        let users = graph.users(name);
        line(&mut out, name, &users, why);
    }
    for (name, may, why) in arrows::RESERVED {
        let mut users = graph.users(name);
        users.extend(may.iter().map(|user| (*user).to_owned()));
        line(&mut out, name, &users, why);
    }
    out.push_str(
        "]\n\n[advisories]\nyanked = \"deny\"\n\n[sources]\nunknown-registry = \"deny\"\nunknown-git = \"deny\"\n",
    );
    Ok(out)
}

fn line(out: &mut String, name: &str, users: &BTreeSet<String>, why: &str) {
    let users: Vec<String> = users.iter().map(|user| format!("\"{user}\"")).collect();
    let wrappers = if users.is_empty() {
        String::new()
    } else {
        format!(", wrappers = [{}]", users.join(", "))
    };
    _ = writeln!(out, "    {{ crate = \"{name}\"{wrappers}, reason = \"{why}\" }},");
}

/// Who depends on whom, with every feature, on this system.
struct Graph(Value);

impl Graph {
    fn read() -> Result<Self> {
        let host = licences::host()?;
        let text = output(cargo().args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--all-features",
            "--filter-platform",
            &host,
        ]))?;
        Ok(Self(serde_json::from_str(&text)?))
    }

    /// Names of the packages that depend on `name` directly, also for tests only.
    fn users(&self, name: &str) -> BTreeSet<String> {
        let packages = self.0["packages"].as_array().into_iter().flatten();
        let names: BTreeMap<&str, &str> =
            packages.filter_map(|p| Some((p["id"].as_str()?, p["name"].as_str()?))).collect();
        let nodes = self.0["resolve"]["nodes"].as_array().into_iter().flatten();
        let uses = |node: &&Value| {
            let mut dependencies = node["dependencies"].as_array().into_iter().flatten();
            dependencies.any(|id| id.as_str().is_some_and(|id| names.get(id) == Some(&name)))
        };
        let name_of = |node: &Value| names.get(node["id"].as_str()?).map(|n| (*n).to_owned());
        nodes.filter(uses).filter_map(name_of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::root;

    #[test]
    fn deny_toml_is_made_from_the_tables() {
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            let path = root().join("deny.toml");
            std::fs::write(path, super::render().expect("a file")).expect("it is written");
        }
        super::check().expect("deny.toml is the rendered one");
    }
}
