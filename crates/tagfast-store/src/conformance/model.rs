//! Random operations against a model: one client at a time exactly, many at once through the
//! history checker.
//!
//! The model is written from the promises alone (sets and a memory of answers); it does not use the
//! code under test.

use std::collections::{BTreeMap, BTreeSet};

use tagfast_domain::{ContentKey, Operation, Refusal, TagName, Version};

use super::harness::StoreHarness;
use super::history::History;
use super::support::{
    Fixture, Random, names, refusal, run_concurrently, same_answer, scaled, seed, tags, user,
};
use super::tags::odd_keys;
use crate::{Consistency, WriteAnswer, WriteRequest};

/// What the model knows of one content.
#[derive(Default)]
struct Content {
    /// Canonical name -> (display, user).
    tags: BTreeMap<TagName, (String, String)>,
    version: Version,
}

/// How many different tags the random operations use: somewhat more than fit, so that the limit is
/// met.
fn distinct_tag_count(fixture: &Fixture) -> usize {
    fixture.limits.tags_per_content * 5 / 4 + 2
}

fn spelling(random: &mut Random, tag: usize) -> String {
    match random.below(4) {
        0 => format!("tag ß{tag}"),
        1 => format!("TAG  SS{tag}"),
        2 => format!("Ｔag-ẞ{tag}"),
        _ => format!(" tag\tss{tag} "),
    }
}

fn some(random: &mut Random, universe: usize, max: usize) -> Vec<String> {
    let count = 1 + random.below(max);
    let first = random.below(universe);
    (0..count).map(|n| spelling(random, (first + n * 7) % universe)).collect()
}

fn operation(fixture: &Fixture, random: &mut Random) -> Operation {
    let (universe, limit) = (distinct_tag_count(fixture), fixture.limits.tags_per_content);
    let as_tags = |list: &[String]| tags(&list.iter().map(String::as_str).collect::<Vec<_>>());
    let as_names = |list: &[String]| names(&list.iter().map(String::as_str).collect::<Vec<_>>());
    if random.chance(8) {
        let max = if random.chance(50) { limit } else { 5 };
        let set = if random.chance(15) { Vec::new() } else { some(random, universe, max) };
        return Operation::replace(as_tags(&set), &fixture.limits)
            .expect("a replace within the limits");
    }
    let max = if random.chance(10) { limit / 2 + 1 } else { 4 };
    let add = if random.chance(65) { some(random, universe, max) } else { Vec::new() };
    let remove =
        if add.is_empty() || random.chance(30) { some(random, universe, max) } else { Vec::new() };
    let added: BTreeSet<TagName> = as_names(&add).into_iter().collect();
    let mut remove = as_names(&remove);
    remove.retain(|name| !added.contains(name));
    if add.is_empty() && remove.is_empty() {
        return Operation::patch(as_tags(&["alone".to_owned()]), Vec::new(), &fixture.limits)
            .expect("a patch");
    }
    Operation::patch(as_tags(&add), remove, &fixture.limits).expect("a patch within the limits")
}

impl Content {
    /// What the promises say about an operation: the names it adds and removes, or the refusal.
    fn expected_answer(
        &self,
        request: &WriteRequest,
        limit: usize,
    ) -> Result<(Vec<TagName>, Vec<TagName>), Refusal> {
        if request.write.if_match.as_ref().is_some_and(|c| !c.holds(self.version)) {
            return Err(Refusal::VersionMismatch { current: self.version });
        }
        let (add, remove): (Vec<TagName>, Vec<TagName>) = match &request.write.operation {
            Operation::Patch { add, remove } => {
                (add.iter().map(|t| t.name.clone()).collect(), remove.clone())
            }
            Operation::Replace { tags } => {
                let set: Vec<TagName> = tags.iter().map(|t| t.name.clone()).collect();
                let gone = self.tags.keys().filter(|n| !set.contains(n)).cloned().collect();
                (set, gone)
            }
        };
        let added: Vec<TagName> = add.into_iter().filter(|n| !self.tags.contains_key(n)).collect();
        let removed: Vec<TagName> =
            remove.into_iter().filter(|n| self.tags.contains_key(n)).collect();
        let given = self.tags.len() + added.len() - removed.len();
        if given > limit && !added.is_empty() {
            return Err(Refusal::TooManyTags { allowed: limit, given });
        }
        Ok((added, removed))
    }

    fn follow(&mut self, request: &WriteRequest, answer: &WriteAnswer) {
        for name in &answer.removed {
            self.tags.remove(name);
        }
        let listed = match &request.write.operation {
            Operation::Patch { add, .. } => add,
            Operation::Replace { tags } => tags,
        };
        for name in &answer.added {
            let tag = listed.iter().find(|t| t.name == *name).expect("only listed tags are added");
            self.tags
                .insert(name.clone(), (tag.display.to_string(), request.write.user.to_string()));
        }
        self.version = answer.version;
    }
}

/// One client, thousands of random operations: every answer and every view is what the promises
/// say.
pub async fn random_operations_match_the_model(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let seed = seed();
    let mut random = Random::new(seed, 1);
    let keys: Vec<ContentKey> = odd_keys(&fixture).into_iter().step_by(5).collect();
    let mut model: BTreeMap<ContentKey, Content> = BTreeMap::new();
    let mut done: Vec<(WriteRequest, WriteAnswer)> = Vec::new();
    for step in 0..scaled(400) {
        let context = format!("seed {seed}, step {step}");
        if !done.is_empty() && random.chance(12) {
            let back = random.below(done.len().min(60));
            let (request, first) = &done[done.len() - 1 - back];
            let again = fixture.write(request.clone()).await;
            assert!(
                again.repeated && same_answer(first, &again),
                "{context}: retry of {first:?} got {again:?}"
            );
        } else {
            let key = random.pick(&keys).clone();
            let content = model.entry(key.clone()).or_default();
            let mut request = fixture.request(&key, operation(&fixture, &mut random));
            request.write.user = user(["ann", "ben", "cleo"][random.below(3)]);
            if random.chance(10) {
                let wrong = Version::from_packed(random.next() >> 1).expect("63 bits");
                request.write.if_match =
                    Some(if random.chance(70) { content.version } else { wrong }.into());
            }
            match content.expected_answer(&request, fixture.limits.tags_per_content) {
                Err(expected) => {
                    assert_eq!(refusal(fixture.store.write(request).await), expected, "{context}");
                }
                Ok((added, removed)) => {
                    let answer = fixture.write(request.clone()).await;
                    assert_eq!(
                        (&answer.added, &answer.removed),
                        (&added, &removed),
                        "{context}: {:?}",
                        request.write
                    );
                    assert_eq!(
                        answer.changed,
                        !added.is_empty() || !removed.is_empty(),
                        "{context}"
                    );
                    let newer = answer.version > content.version;
                    assert!(
                        newer || (!answer.changed && answer.version == content.version),
                        "{context}: {answer:?}"
                    );
                    content.follow(&request, &answer);
                    if newer {
                        done.push((request, answer));
                    }
                }
            }
        }
        let key = random.pick(&keys);
        let consistency = *random.pick(&[Consistency::Strong, Consistency::Session]);
        let view = fixture.try_view(key, consistency, None).await.expect("a view");
        let nothing = Content::default();
        let content = model.get(key).unwrap_or(&nothing);
        if consistency == Consistency::Session && view.version < content.version {
            // Without a token a session read may be answered by a replica that is not there yet.
            continue;
        }
        assert_eq!(view.version, content.version, "{context}: the version of {key}");
        let seen: Vec<_> = view
            .tags
            .iter()
            .map(|t| (&t.name, (t.display.to_string(), t.user.to_string())))
            .collect();
        let expected: Vec<_> = content.tags.iter().map(|(n, v)| (n, v.clone())).collect();
        assert_eq!(seen, expected, "{context}: the tags of {key}");
    }
    let history = History::new();
    history.check(&fixture, h).await;
    let published: usize = fixture.events(h).await.iter().map(|e| e.changes.len()).sum();
    assert_eq!(published, done.len(), "seed {seed}: each effective write is published once");
}

/// Many clients at once: whatever order the store chose, answers, events and views tell one story.
pub async fn concurrent_operations_leave_a_true_history(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let history = History::new();
    let seed = seed();
    let keys: Vec<ContentKey> = (0..6).map(|n| fixture.key(&format!("page {n}"))).collect();
    let clients = (0..12u64).map(|client| {
        let (fixture, history, keys) = (fixture.clone(), history.clone(), keys.clone());
        async move {
            let mut random = Random::new(seed, 100 + client);
            let mut sent: Vec<WriteRequest> = Vec::new();
            let mut seen: BTreeMap<ContentKey, Version> = BTreeMap::new();
            for _ in 0..scaled(25) {
                // Two hot contents and some quiet ones.
                let key =
                    if random.chance(60) { &keys[random.below(2)] } else { random.pick(&keys) };
                let mut request = fixture.request(key, operation(&fixture, &mut random));
                request.write.user = user(&format!("client-{client}"));
                if random.chance(10) {
                    request.write.if_match = seen.get(key).copied().map(Into::into);
                }
                if !sent.is_empty() && random.chance(15) {
                    request = random.pick(&sent).clone();
                }
                if random.chance(20) {
                    let mut batch = vec![request.clone()];
                    for _ in 0..random.below(6) {
                        let mut item =
                            fixture.request(random.pick(&keys), operation(&fixture, &mut random));
                        item.write.user = request.write.user.clone();
                        batch.push(item);
                    }
                    sent.extend(batch.iter().cloned());
                    history.write_many(&fixture, batch).await;
                } else {
                    sent.push(request.clone());
                    let key = request.write.key.clone();
                    if let Ok(answer) = history.write(&fixture, request).await {
                        let view = fixture.view(&key).await;
                        assert!(
                            view.version >= answer.version,
                            "seed {seed}: {key} was answered and not shown"
                        );
                        assert!(view.tags.len() <= fixture.limits.tags_per_content);
                        seen.insert(key, view.version);
                    }
                }
            }
        }
    });
    run_concurrently(clients).await;
    history.check(&fixture, h).await;
    let published: usize = fixture.events(h).await.iter().map(|e| e.changes.len()).sum();
    assert!(published > 12 * 5, "seed {seed}: the clients really wrote ({published} changes)");
}
