//! Backup and restore: the content of a backup, and the verdicts about writes made after it.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tagfast_domain::{Epoch, Version};
use tagfast_sharding::{ContentHash, LogicalShard};
use tagfast_store::{
    ConsistencyToken, Degraded, ReadOptions, ReceiptReader, ShardScanner, TagReader, Verdict,
    WriteAnswer,
};
use tagfast_store_embedded::backup::{BackupReport, backup, restore};
use tagfast_store_embedded::{EmbeddedStore, OpenError};

use crate::support::{Fixture, add, chain, events, key, names, write};

fn backed_up(fixture: &Fixture, target: &str) -> BackupReport {
    backup(&fixture.dir(), &fixture.beside(target), &*fixture.clock, &|_, _| {})
        .unwrap_or_else(|e| panic!("the backup succeeds: {}", chain(&e)))
}

fn restored(fixture: &Fixture, from: &str, to: &str) -> Arc<EmbeddedStore> {
    restore(&fixture.beside(from), &fixture.beside(to), &*fixture.clock, &|_, _| {})
        .unwrap_or_else(|e| panic!("the restore succeeds: {}", chain(&e)));
    let mut options = fixture.options();
    options.data_dir = fixture.beside(to);
    EmbeddedStore::open(options).unwrap_or_else(|e| panic!("it opens: {}", chain(&e)))
}

fn token_of(key: &tagfast_domain::ContentKey, answer: &WriteAnswer) -> ConsistencyToken {
    let mut token = ConsistencyToken::default();
    token.observe(ContentHash::of(key), answer.version, answer.receipt.position);
    token
}

async fn degraded(
    store: &EmbeddedStore,
    key: &tagfast_domain::ContentKey,
    token: &ConsistencyToken,
) -> Vec<Degraded> {
    let options = ReadOptions { token: Some(token), ..ReadOptions::default() };
    store.view(key, &options).await.expect("readable").degraded
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_begins_a_new_epoch_and_tells_what_came_after_the_backup() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let (page, other) = (key("t", "page"), key("t", "other"));
    let before = write(&store, add(&page, &["before"])).await;
    std::fs::write(fixture.dir().join("token.key"), b"secret").expect("a key file");
    std::fs::create_dir(fixture.dir().join("search")).expect("an index");
    backed_up(&fixture, "backup");
    let after = write(&store, add(&page, &["after"])).await;
    let lost = write(&store, add(&other, &["lost"])).await;
    let old: Epoch = store.current_epoch();
    store.close();

    let store = restored(&fixture, "backup", "restored");
    assert_eq!(names(&store, &page).await, ["before"]);
    assert!(names(&store, &other).await.is_empty());
    let epoch = store.current_epoch();
    assert!(epoch.id != old.id && epoch.ordinal > old.ordinal, "{old:?} then {epoch:?}");
    assert_eq!(store.epoch().await.expect("an epoch"), epoch);
    assert_eq!(store.bus().epoch(), epoch.id);
    assert_eq!(
        std::fs::read(fixture.beside("restored").join("token.key")).expect("the key"),
        b"secret"
    );
    assert!(!fixture.beside("restored").join("search").exists(), "an index belongs to its epoch");

    assert_eq!(store.verdict(&before.receipt).await.expect("a verdict"), Verdict::Kept);
    assert_eq!(
        store.verdict(&after.receipt).await.expect("a verdict"),
        Verdict::Unknown("restored")
    );
    assert_eq!(
        store.verdict(&lost.receipt).await.expect("a verdict"),
        Verdict::Unknown("restored")
    );

    let unknown = [Degraded { feature: "session", reason: "token_unknown" }];
    assert_eq!(degraded(&store, &page, &token_of(&page, &before)).await, []);
    assert_eq!(degraded(&store, &page, &token_of(&page, &after)).await, unknown);
    // A floor alone tells too: another content of the shard, whose version the token does not hold.
    let shard = LogicalShard::of(&page);
    let neighbour = (0..)
        .map(|n| key("t", &format!("n{n}")))
        .find(|k| LogicalShard::of(k) == shard)
        .expect("one");
    assert_eq!(degraded(&store, &neighbour, &token_of(&page, &after)).await, unknown);
    assert_eq!(degraded(&store, &neighbour, &token_of(&page, &before)).await, []);
    // The answer's own token ends it.
    let seen = store.view(&page, &ReadOptions::default()).await.expect("readable");
    let mut token = token_of(&other, &lost);
    token.observe(ContentHash::of(&page), seen.version, seen.position);
    assert_eq!(degraded(&store, &page, &token).await, []);

    // Versions and positions never come twice, also not those that were lost.
    let again = write(&store, add(&page, &["again"])).await;
    assert!(again.version > after.version, "{} then {}", after.version, again.version);
    assert_eq!(store.verdict(&again.receipt).await.expect("a verdict"), Verdict::Kept);

    // A second restore, of the first one's successor: each older epoch keeps its own end.
    let second = fixture.beside("restored");
    backup(&second, &fixture.beside("backup 2"), &*fixture.clock, &|_, _| {}).expect("a backup");
    let newest = write(&store, add(&page, &["newest"])).await;
    store.close();
    let store = restored(&fixture, "backup 2", "restored 2");
    for (answer, verdict) in [
        (&before, Verdict::Kept),
        (&after, Verdict::Unknown("restored")),
        (&again, Verdict::Kept),
        (&newest, Verdict::Unknown("restored")),
    ] {
        assert_eq!(store.verdict(&answer.receipt).await.expect("a verdict"), verdict);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_while_writes_go_on_is_consistent() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|w| {
            let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut n = 0u32;
                while !stop.load(Ordering::Acquire) || n < 50 {
                    write(&store, add(&key("t", &format!("{w}/{}", n % 40)), &[&format!("t{n}")]))
                        .await;
                    n += 1;
                    if n >= 3000 {
                        break;
                    }
                }
            })
        })
        .collect();
    let sources = (fixture.dir(), fixture.beside("backup"), Arc::clone(&fixture.clock));
    let (seen, report) = tokio::task::spawn_blocking(move || {
        let seen = RefCell::new(Vec::new());
        let report = backup(&sources.0, &sources.1, &*sources.2, &|done, total| {
            seen.borrow_mut().push((done, total))
        });
        (seen.into_inner(), report)
    })
    .await
    .expect("no panic");
    stop.store(true, Ordering::Release);
    for writer in writers {
        writer.await.expect("no panic");
    }
    assert_eq!(report.expect("a backup").files, 8);
    assert!(seen.windows(2).all(|w| w[0].0 <= w[1].0), "progress only grows: {seen:?}");
    assert!(seen.iter().all(|(done, total)| done <= total), "{seen:?}");

    let copy = restored(&fixture, "backup", "restored");
    // Within each file document and event are of one moment: the newest event of a content is its
    // document.
    let mut newest = std::collections::BTreeMap::new();
    for event in events(&copy).await {
        newest.insert(event.key.clone(), (event.version, event.tags.len()));
    }
    for (key, (version, tags)) in newest {
        let view = crate::support::view(&copy, &key).await;
        assert_eq!((view.version, view.tags.len()), (version, tags), "{key}");
    }
}

#[tokio::test]
async fn used_targets_and_broken_backups_are_refused() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let page = key("t", "page");
    write(&store, add(&page, &["a"])).await;
    backed_up(&fixture, "one");
    write(&store, add(&page, &["b"])).await;
    backed_up(&fixture, "two");
    let refused = |from: &str, to: &str| match restore(
        &fixture.beside(from),
        &fixture.beside(to),
        &*fixture.clock,
        &|_, _| {},
    ) {
        Ok(report) => panic!("{from} must not be restored into {to}: {report:?}"),
        Err(error) => error,
    };
    let again = backup(&fixture.dir(), &fixture.beside("one"), &*fixture.clock, &|_, _| {});
    assert!(matches!(again, Err(OpenError::NotEmpty { .. })), "{again:?}");
    assert!(matches!(refused("one", "data"), OpenError::NotEmpty { .. }));
    assert!(matches!(refused("nowhere", "new"), OpenError::NotABackup { .. }));
    let nothing =
        backup(&fixture.beside("nowhere"), &fixture.beside("three"), &*fixture.clock, &|_, _| {});
    assert!(matches!(nothing, Err(OpenError::Damaged { .. })), "{nothing:?}");

    // Files of two backups.
    let file = (0..8)
        .map(|n| format!("store-{n}.sqlite"))
        .find(|f| {
            let read = |dir: &str| std::fs::read(fixture.beside(dir).join(f)).expect("a file");
            read("one") != read("two")
        })
        .expect("the write changed a file");
    let whole = std::fs::read(fixture.beside("one").join(&file)).expect("a file");
    std::fs::copy(fixture.beside("two").join(&file), fixture.beside("one").join(&file))
        .expect("mixed");
    let error = refused("one", "new");
    assert!(
        chain(&error).contains(&file) && chain(&error).contains("manifest"),
        "{}",
        chain(&error)
    );
    // A truncated file.
    std::fs::write(fixture.beside("one").join(&file), &whole[..whole.len() / 2])
        .expect("truncated");
    assert!(matches!(refused("one", "new"), OpenError::BadBackup { .. }));
    assert!(!fixture.beside("new").exists(), "nothing is begun before everything was checked");
    // An interrupted backup.
    std::fs::remove_file(fixture.beside("two").join("manifest.json")).expect("removed");
    assert!(matches!(refused("two", "new"), OpenError::NotABackup { .. }));
    // An interrupted restore is not served.
    std::fs::write(fixture.beside("one").join(&file), &whole).expect("put back");
    restored(&fixture, "one", "half").close();
    std::fs::remove_file(fixture.beside("half").join("store-0.sqlite")).expect("removed");
    let mut options = fixture.options();
    options.data_dir = fixture.beside("half");
    assert!(matches!(EmbeddedStore::open(options), Err(OpenError::Damaged { .. })));
    assert_eq!(
        crate::support::view(&store, &page).await.tags.len(),
        2,
        "the server noticed nothing"
    );
    assert_ne!(crate::support::view(&store, &page).await.version, Version::NONE);
}
