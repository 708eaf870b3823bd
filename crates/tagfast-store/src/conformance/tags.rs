//! Adding, removing, viewing: what one client sees of one content.

use tagfast_domain::{ContentKey, Operation, Origin, Tag, TagName, Version};

use super::harness::StoreHarness;
use super::support::{Fixture, chain, refusal, scaled, tags, user};
use crate::{Durability, StoreError, Verdict};

/// A content that was never tagged is an empty view of version 0, not an error.
pub async fn an_untagged_content_is_an_empty_view(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let view = fixture.view(&fixture.key("never written")).await;
    assert_eq!(view.tags, [], "a content that was never tagged has no tags");
    assert_eq!(view.version, Version::NONE, "a content that was never tagged has no version");
}

/// An acknowledged add is in the next view, sorted by canonical name.
pub async fn an_added_tag_is_seen(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    let mut expected = Vec::new();
    for name in ["ui", "api", "日本語", "c++", "implemented-in::c++", "größe"] {
        let answer = fixture.add(&key, &[name]).await;
        let view = fixture.view(&key).await;
        assert_eq!(
            view.version, answer.version,
            "the view has the version of the only writer's last write"
        );
        expected.push(Tag::parse(name).expect("a tag").name);
        expected.sort();
        let seen: Vec<_> = view.tags.iter().map(|t| t.name.clone()).collect();
        assert_eq!(seen, expected, "the view shows every added tag, sorted");
        assert!(view.tags.iter().all(|t| t.present), "a view shows no tombstones");
    }
}

/// An acknowledged remove is gone from the next view and stays gone.
pub async fn a_removed_tag_is_gone(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    fixture.add(&key, &["ui", "api", "db"]).await;
    let answer = fixture.remove(&key, &["api"]).await;
    assert_eq!(fixture.tags(&key).await, ["db", "ui"]);
    assert!(answer.changed);
    fixture.add(&key, &["zz"]).await;
    assert_eq!(
        fixture.tags(&key).await,
        ["db", "ui", "zz"],
        "a removed tag stays removed under later writes"
    );
    fixture.add(&key, &["api"]).await;
    assert_eq!(
        fixture.tags(&key).await,
        ["api", "db", "ui", "zz"],
        "a removed tag can be added again"
    );
}

/// A tagging that an earlier release stored under a name with invisible characters is shown as it
/// is, confirmed by an add, kept by a replace, and removed by any spelling.
pub async fn a_former_name_is_kept_and_removed(h: &dyn StoreHarness) {
    const FORMER: &str = "crit\u{200B}ical";
    let fixture = Fixture::new(h).await;
    for (n, spelling) in [FORMER, "Critical", "criti\u{AD}cal"].into_iter().enumerate() {
        let key = fixture.key(&format!("former {n}"));
        let mut old = fixture.patch(&key, &["critical", "ui"], &[]);
        if let Operation::Patch { add, .. } = &mut old.write.operation {
            add[0].name = TagName::from_canonical(FORMER);
        }
        fixture.write(old).await;
        assert_eq!(fixture.tags(&key).await, [FORMER, "ui"], "a stored name is shown as it is");
        let again = fixture.add(&key, &[spelling]).await;
        assert!(!again.changed, "{spelling:?} is there already: {again:?}");
        let replaced = fixture.write(fixture.replace(&key, &[spelling])).await;
        assert_eq!(replaced.removed.len(), 1, "a set keeps the stored name: {replaced:?}");
        assert_eq!(fixture.tags(&key).await, [FORMER]);
        let removed = fixture.remove(&key, &[spelling]).await;
        assert_eq!(removed.removed, [TagName::from_canonical(FORMER)], "{spelling:?}");
        assert!(fixture.tags(&key).await.is_empty());
        fixture.add(&key, &[spelling]).await;
        assert_eq!(fixture.tags(&key).await, ["critical"], "a former name is never made again");
    }
}

/// Two spellings with one canonical name are one tag: in adds, removes and replaces.
pub async fn every_spelling_is_one_tag(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let spellings = [
        ["Ｃ＋＋", "c++", "C++"],
        ["STRASSE", "straße", "Straẞe"],
        ["Cafe\u{301}", "café", "CAFÉ"],
        ["needs  review", "needs-review", " NEEDS\u{3000}review "],
        ["ΟΔΟΣ", "οδος", "οδοσ"],
    ];
    for (n, [first, second, third]) in spellings.into_iter().enumerate() {
        let key = fixture.key(&format!("spelling {n}"));
        assert!(fixture.add(&key, &[first]).await.changed);
        let again = fixture.add(&key, &[second]).await;
        assert!(
            !again.changed,
            "{second:?} is the tag {first:?}, which is there already: {again:?}"
        );
        assert_eq!(fixture.tags(&key).await.len(), 1, "{first:?} and {second:?} are one tag");
        let replaced = fixture.write(fixture.replace(&key, &[third])).await;
        assert!(!replaced.changed, "{third:?} is the whole set already: {replaced:?}");
        assert_eq!(
            fixture.remove(&key, &[third]).await.removed.len(),
            1,
            "{third:?} removes {first:?}"
        );
        assert_eq!(fixture.view(&key).await.tags, []);
    }
}

/// A tagging keeps the spelling, the user and the time of its adder, also when it is added again.
pub async fn the_adders_spelling_is_kept(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    let before = h.clock().now_ms();
    let mut first = fixture.patch(&key, &["Needs  Review"], &[]);
    first.write.user = user("ann");
    fixture.write(first).await;
    let after = h.clock().now_ms();
    h.advance(1000);
    let mut second = fixture.patch(&key, &["NEEDS REVIEW"], &[]);
    second.write.user = user("ben");
    fixture.write(second).await;
    let tag = fixture.view(&key).await.tags[0].clone();
    assert_eq!(
        (&*tag.display, tag.user.as_str()),
        ("Needs Review", "ann"),
        "the first adder's spelling stays"
    );
    assert!(
        (before..=after).contains(&tag.at),
        "the time of the add is kept: {} in {before}..={after}",
        tag.at
    );

    fixture.remove(&key, &["needs-review"]).await;
    let mut third = fixture.patch(&key, &["needs REVIEW"], &[]);
    third.write.user = user("ben");
    fixture.write(third).await;
    let tag = fixture.view(&key).await.tags[0].clone();
    assert_eq!(
        (&*tag.display, tag.user.as_str()),
        ("needs REVIEW", "ben"),
        "a new adder after a remove is the adder"
    );
}

/// An import says who tagged and when; a view shows that.
pub async fn an_import_keeps_who_and_when(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    let mut old = tags(&["Old Tag", "new"]);
    old[0].origin = Some(Origin { by: user("long-gone"), at: 946_684_800_123 });
    fixture
        .write(
            fixture.request(
                &key,
                Operation::patch(old, Vec::new(), &fixture.limits).expect("a patch"),
            ),
        )
        .await;
    let view = fixture.view(&key).await;
    let old =
        view.tags.iter().find(|t| t.name.as_str() == "old-tag").expect("the imported tag is there");
    assert_eq!(
        (old.user.as_str(), old.at, &*old.display),
        ("long-gone", 946_684_800_123, "Old Tag")
    );
    let new = view.tags.iter().find(|t| t.name.as_str() == "new").expect("the other tag is there");
    assert_eq!(new.user.as_str(), "someone");
}

/// The answer lists exactly what this write added and removed, and the version it made.
pub async fn a_write_answer_says_what_changed(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    let text = |names: &[tagfast_domain::TagName]| {
        names.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let request = fixture.patch(&key, &["B", "a"], &[]);
    let id = request.write.id;
    let first = fixture.write(request).await;
    assert_eq!(
        (first.changed, text(&first.added), text(&first.removed)),
        (true, vec!["b".into(), "a".into()], vec![])
    );
    assert_eq!(first.receipt.write_id, id, "the receipt names the write");
    assert!(!first.repeated);

    let second = fixture.write(fixture.patch(&key, &["a", "c"], &["b", "z"])).await;
    assert_eq!((text(&second.added), text(&second.removed)), (vec!["c".into()], vec!["b".into()]));
    assert!(second.version > first.version, "a change makes a larger version");

    let third = fixture.write(fixture.patch(&key, &["a"], &["b"])).await;
    assert_eq!(
        (third.changed, third.added.len(), third.removed.len()),
        (false, 0, 0),
        "nothing was left to change"
    );
    assert!(third.version >= second.version);
    assert!(third.version <= fixture.view(&key).await.version);
}

/// A patch happens as a whole or not at all.
pub async fn a_patch_is_atomic(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    fixture.add(&key, &["a", "b", "c"]).await;
    let answer = fixture.write(fixture.patch(&key, &["x", "y"], &["a", "b"])).await;
    assert_eq!((answer.added.len(), answer.removed.len()), (2, 2));
    assert_eq!(fixture.tags(&key).await, ["c", "x", "y"]);

    let before = fixture.view(&key).await;
    let many: Vec<String> = (0..fixture.limits.tags_per_content).map(|n| format!("n{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    refusal(fixture.store.write(fixture.patch(&key, &many, &["c"])).await);
    let after = fixture.view(&key).await;
    assert_eq!(
        (after.version, after.tags),
        (before.version, before.tags),
        "a refused patch leaves everything as it was"
    );
}

/// A replace makes the set exactly the given one and keeps the taggings that stay as they were.
pub async fn a_replace_makes_the_set_exact(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    let mut first = fixture.patch(&key, &["a", "Bee", "c"], &[]);
    first.write.user = user("ann");
    fixture.write(first).await;
    let answer = fixture.write(fixture.replace(&key, &["d", "BEE"])).await;
    assert_eq!(answer.added.iter().map(ToString::to_string).collect::<Vec<_>>(), ["d"]);
    assert_eq!(answer.removed.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a", "c"]);
    let view = fixture.view(&key).await;
    assert_eq!(view.tags.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["bee", "d"]);
    assert_eq!(
        (&*view.tags[0].display, view.tags[0].user.as_str()),
        ("Bee", "ann"),
        "what stays keeps its adder"
    );
    let emptied = fixture.write(fixture.replace(&key, &[])).await;
    assert_eq!(emptied.removed.len(), 2);
    assert_eq!(fixture.view(&key).await.tags, []);
}

/// Versions of a content only grow, also after its last tag is gone.
pub async fn versions_go_on_after_the_last_tag_is_gone(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    let mut last = Version::NONE;
    for round in 0..scaled(5) {
        for answer in
            [fixture.add(&key, &["a", "b"]).await, fixture.write(fixture.replace(&key, &[])).await]
        {
            assert!(answer.changed);
            assert!(
                answer.version > last,
                "round {round}: {} must be larger than {last}",
                answer.version
            );
            last = answer.version;
        }
        let view = fixture.view(&key).await;
        assert_eq!(
            (view.version, view.tags.len()),
            (last, 0),
            "an emptied content keeps its version"
        );
    }
}

/// Ids that a path, a query, a path of a file or a text comparison might confuse.
pub(super) fn odd_keys(fixture: &Fixture) -> Vec<ContentKey> {
    let longest = "x".repeat(256);
    let longest_in_bytes = "漢".repeat(85);
    let ids: [&str; 24] = [
        "a",
        "A",
        "a ",
        " a",
        "á",
        "a\u{301}",
        "a/b",
        "a//b",
        "a+b",
        "a%2Fb",
        "a%b",
        "a::b",
        "a.b",
        "..",
        "'",
        "\"; --",
        "\\",
        "?q=1#f",
        "👩‍👩‍👧",
        "שלום",
        "\u{202e}abc",
        "{a}",
        &longest,
        &longest_in_bytes,
    ];
    let mut keys: Vec<ContentKey> = ids.iter().map(|id| fixture.key(id)).collect();
    for content_type in ["test.doc.a", "test", "-", "_", &"t".repeat(64)] {
        keys.push(
            ContentKey::parse(fixture.tenant.as_str(), content_type, "a").expect("a content"),
        );
    }
    keys
}

/// Contents whose ids look alike, or like syntax, never share tags.
pub async fn odd_contents_stay_distinct(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let keys = odd_keys(&fixture);
    for (n, key) in keys.iter().enumerate() {
        fixture.add(key, &[&format!("tag-{n}"), "all"]).await;
    }
    for (n, key) in keys.iter().enumerate() {
        assert_eq!(
            fixture.tags(key).await,
            ["all".to_owned(), format!("tag-{n}")],
            "the tags of {key:?}"
        );
    }
}

/// The same content of two tenants is two contents, for reads and for writes.
pub async fn tenants_are_isolated(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let other = tagfast_domain::TenantId::parse(&format!("{}x", fixture.tenant)).expect("a tenant");
    let ours = fixture.key("page");
    let theirs = ContentKey { tenant: other.clone(), content: ours.content.clone() };
    fixture.add(&ours, &["ours"]).await;
    assert_eq!(fixture.view(&theirs).await.tags, []);
    fixture.add(&theirs, &["theirs"]).await;
    fixture.write(fixture.replace(&ours, &["still-ours"])).await;
    assert_eq!(fixture.tags(&theirs).await, ["theirs"]);
    assert_eq!(fixture.tags(&ours).await, ["still-ours"]);
    let published = fixture.events(h).await;
    assert!(published.iter().all(|e| e.key == ours), "events of one tenant name that tenant only");
    assert_eq!(h.events(&other).await.len(), 1, "the other tenant's write is its own event");
}

/// The receipt of an acknowledged write says `kept`, whether the write changed anything or not.
pub async fn a_receipt_is_kept(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let mut receipts = Vec::new();
    for n in 0..20 {
        let key = fixture.key(&format!("page {}", n % 3));
        receipts.push(fixture.add(&key, &[&format!("t{n}")]).await.receipt);
        receipts.push(fixture.add(&key, &[&format!("t{n}")]).await.receipt);
    }
    let check = async |fixture: &Fixture, when: &str| {
        for receipt in &receipts {
            match fixture.store.verdict(receipt).await {
                Ok(verdict) => {
                    assert_eq!(verdict, Verdict::Kept, "{when}: the verdict of {receipt:?}")
                }
                Err(e) => {
                    panic!("{when}: a verdict must be given for {receipt:?}, but: {}", chain(&e))
                }
            }
        }
    };
    check(&fixture, "at once").await;
    if let Some(fixture) = fixture.reopened(h).await {
        check(&fixture, "after a restart").await;
    }
}

/// A store that cannot give a durability says so and does nothing.
pub async fn a_refused_durability_has_no_effect(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let key = fixture.key("page");
    let mut request = fixture.patch(&key, &["a"], &[]);
    request.durability = Durability::Replicated;
    match fixture.store.write(request).await {
        Ok(_) => assert_eq!(fixture.tags(&key).await, ["a"]),
        Err(StoreError::NotInThisMode(_)) => {
            assert_eq!(
                fixture.view(&key).await.version,
                Version::NONE,
                "a refused write leaves no trace"
            );
            assert_eq!(fixture.events(h).await, []);
        }
        Err(e) => {
            panic!("replicated must be given or refused as not in this mode, but: {}", chain(&e))
        }
    }
}

/// Tags, versions, spellings and the epoch are the same after a restart, and versions go on from
/// there.
pub async fn everything_survives_a_restart(h: &dyn StoreHarness) {
    let fixture = Fixture::new(h).await;
    let keys = odd_keys(&fixture);
    let mut before = Vec::new();
    for (n, key) in keys.iter().enumerate() {
        fixture.add(key, &["Kept Tag", "gone", &format!("t{n}")]).await;
        fixture.remove(key, &["gone"]).await;
        before.push(fixture.view(key).await);
    }
    let epoch = fixture.store.epoch().await.expect("an epoch");
    let published = fixture.events(h).await;
    let Some(fixture) = fixture.reopened(h).await else { return };
    assert_eq!(
        fixture.store.epoch().await.expect("an epoch"),
        epoch,
        "a restart begins no new epoch"
    );
    for (key, before) in keys.iter().zip(&before) {
        let after = fixture.view(key).await;
        assert_eq!(
            (after.version, &after.tags),
            (before.version, &before.tags),
            "{key} after a restart"
        );
        assert!(
            fixture.add(key, &["later"]).await.version > before.version,
            "versions of {key} go on after a restart"
        );
    }
    let all = fixture.events(h).await;
    assert_eq!(
        all[..published.len()],
        published[..],
        "what was published before a restart stays published"
    );
    assert_eq!(all.len(), published.len() + keys.len(), "and each write after it is published");
}
