//! Faults of etcd's members, and who leads them.
//!
//! How it fails: a fault that needs a network or a disk of the member's own, which the stack lacks,
//! is an error that says so.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use serde_json::Value;

use super::etcd::{PORTS, START_TIMEOUT, disks_in, freeze_disk, name, thaw_disks};
use super::fault::{Fault, link_mode};
use super::host::{Process, wait_until};
use super::info::ServerInfo;
use super::netns;
use super::running::Stack;
use crate::http::Client;

impl Stack {
    /// The places of the members that a target names: `etcd` for all, `etcd1` for one of them.
    fn etcd_members(&self, target: &str) -> Result<Vec<usize>> {
        let count = self.info.etcd.len();
        let places: Vec<usize> = match target.strip_prefix("etcd") {
            Some("") => (0..count).collect(),
            Some(number) => number.parse::<usize>().into_iter().filter(|n| *n < count).collect(),
            None => Vec::new(),
        };
        ensure!(!places.is_empty(), "{target} is not part of this stack");
        Ok(places)
    }

    /// Whether a target of a fault is etcd or a member of it.
    pub(super) fn is_etcd(target: &str) -> bool {
        target.strip_prefix("etcd").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
    }

    pub(super) fn fault_etcd(&mut self, fault: Fault, target: &str) -> Result<()> {
        for place in self.etcd_members(target)? {
            let (process, name) = (self.info.etcd[place].process(), name(place as u8));
            match fault {
                Fault::Kill => process.kill()?,
                Fault::Freeze => process.signal(Signal::STOP),
                Fault::Thaw => {
                    process.signal(Signal::CONT);
                    thaw_disks(&self.info.base.join(&name));
                }
                Fault::Restart => self.restart_etcd(place, process)?,
                Fault::FreezeDisk => {
                    let disks = disks_in(&self.info.base.join(&name));
                    let disk = disks.first().context("it has no disk of its own: --netns")?;
                    freeze_disk(disk, true)?;
                }
                Fault::CutPeers => {
                    self.set_peers(place, false);
                    ensure!(self.set_peers(place, true), "it has no network of its own: --netns");
                }
                Fault::Heal => {
                    self.set_peers(place, false);
                    self.control().set(&name, link_mode(fault))?;
                }
                Fault::Cut
                | Fault::Slow { .. }
                | Fault::Hang
                | Fault::Reset
                | Fault::Refuse
                | Fault::Garbage => self.control().set(&name, link_mode(fault))?,
                Fault::KillPatroni
                | Fault::KillNode
                | Fault::FreezePostgres
                | Fault::FreezePatroni
                | Fault::State(_)
                | Fault::EndState(_)
                | Fault::Switchover => bail!("this is no fault of etcd"),
            }
        }
        Ok(())
    }

    /// Lets packets between a member and the others vanish, or arrive again. False: not all could
    /// be changed, because there are none, or they had been.
    fn set_peers(&self, place: usize, is_cut: bool) -> bool {
        let members = &self.info.etcd;
        let peer = |member: &ServerInfo| SocketAddr::new(member.direct.ip(), PORTS[1]);
        let between = |from: &ServerInfo, to: &ServerInfo| {
            let namespace = from.netns.as_deref();
            namespace.is_some_and(|from| netns::set_unreachable(from, peer(to), is_cut).is_ok())
        };
        let member = &members[place];
        let others: Vec<_> = members.iter().filter(|other| other.pid != member.pid).collect();
        let changed: Vec<bool> = others
            .iter()
            .flat_map(|other| [between(member, other), between(other, member)])
            .collect();
        !changed.is_empty() && changed.iter().all(|is_changed| *is_changed)
    }

    fn restart_etcd(&mut self, place: usize, old: Process) -> Result<()> {
        let name = name(place as u8);
        ensure!(!old.is_alive(), "{name} is running");
        let netns = self.info.etcd[place].netns.clone();
        let dir = self.info.base.join(&name);
        let new = self.run_as.restart("etcd", &dir, netns.as_deref())?;
        let server = &mut self.info.etcd[place];
        (server.pid, server.started) = (new.pid, new.started);
        self.info.write(&self.dir)
    }

    /// The place of the member that leads etcd, as the member of the latest raft term says.
    ///
    /// # Errors
    /// No member says that one leads.
    pub fn etcd_leader(&self) -> Result<usize> {
        self.etcd_status().map(|(leader, _)| leader)
    }

    /// The place of the leader, and the ids of the members; `None`: it does not answer.
    fn etcd_status(&self) -> Result<(usize, Vec<Option<String>>)> {
        let status = |member: &ServerInfo| etcd_call(member, "/v3/maintenance/status", "{}").ok();
        let answers: Vec<Option<Value>> = self.info.etcd.iter().map(status).collect();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let term = |answer: &&Value| text(&answer["raftTerm"])?.parse::<u64>().ok();
        let newest = answers.iter().flatten().max_by_key(term).context("no member answers")?;
        let leader = text(&newest["leader"]).context("etcd has no leader")?;
        let id = |answer: Option<Value>| text(&answer?["header"]["member_id"]);
        let ids: Vec<Option<String>> = answers.into_iter().map(id).collect();
        let place = ids.iter().position(|id| id.as_ref() == Some(&leader));
        Ok((place.context("etcd has no leader that answers")?, ids))
    }

    /// Makes a member the leader of etcd; returns when it is.
    ///
    /// # Errors
    /// It does not become the leader.
    pub fn lead_etcd(&self, place: usize) -> Result<()> {
        wait_until("etcd's leadership to move", START_TIMEOUT, || {
            let (leader, ids) = self.etcd_status()?;
            if leader == place {
                return Ok(());
            }
            let id = ids.get(place).and_then(Option::as_ref).context("it does not answer")?;
            let body = serde_json::json!({"targetID": id}).to_string();
            etcd_call(&self.info.etcd[leader], "/v3/maintenance/transfer-leadership", &body)?;
            bail!("it was asked")
        })
    }

    /// Deletes a key in etcd, as it ends with its lease; whether it was there.
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn delete_etcd_key(&self, key: &str) -> Result<bool> {
        let server = self.info.etcd.first().context("etcd is not part of this stack")?;
        let body = serde_json::json!({"key": STANDARD.encode(key)}).to_string();
        let answer = etcd_call(server, "/v3/kv/deleterange", &body)?;
        Ok(answer["deleted"].as_str() == Some("1"))
    }
}

fn etcd_call(member: &ServerInfo, path: &str, body: &str) -> Result<Value> {
    let mut client = Client::new(member.direct).with_timeout(Duration::from_secs(2));
    let answer = client.request("POST", path, &[], Some(body))?;
    ensure!(answer.status == 200, "etcd answered {} to {path}: {}", answer.status, answer.text());
    Ok(answer.json())
}
