//! After a crash: acknowledged writes are there with their events, and no transaction is partial.

use std::collections::BTreeMap;

use tagfast_store::TagWriter;
use tagfast_store_embedded::EmbeddedStore;

use crate::support::{Fixture, add, copy_dir, events, key, names};

fn wal_length(dir: &std::path::Path) -> u64 {
    std::fs::metadata(dir.join("store-0.sqlite-wal")).map_or(0, |m| m.len())
}

/// Writes go to one file; its log is truncated at many places behind the acknowledged part, and the
/// tail is garbled.
#[tokio::test(flavor = "multi_thread")]
async fn a_torn_log_loses_nothing_acknowledged_and_keeps_documents_and_events_together() {
    let fixture = Fixture::new();
    let mut options = fixture.options();
    options.files = 1;
    let store = EmbeddedStore::open(options).expect("a store");
    for n in 0..20 {
        store.write(add(&key("t", &format!("acknowledged {n}")), &["a"])).await.expect("written");
    }
    let safe = wal_length(&fixture.dir());
    let more =
        (0..60).map(|n| store.write_many(vec![add(&key("t", &format!("later {n}")), &["b", "c"])]));
    for write in more {
        write.await;
    }
    copy_dir(&fixture.dir(), &fixture.beside("crashed"));
    let end = wal_length(&fixture.beside("crashed"));
    assert!(safe > 0 && end > safe, "both parts are in the log");

    let cuts: u64 = if cfg!(feature = "full") { 200 } else { 12 };
    let mut seen = Vec::new();
    for cut in 0..=cuts {
        let dir = fixture.beside(&format!("cut {cut}"));
        copy_dir(&fixture.beside("crashed"), &dir);
        let wal = dir.join("store-0.sqlite-wal");
        let mut log = std::fs::read(&wal).expect("the log");
        log.truncate(usize::try_from(safe + (end - safe) * cut / cuts).expect("small"));
        if cut % 2 == 1 {
            // Sectors of the tail reached the disk, others did not.
            let at = log.len() - 600.min(log.len() - usize::try_from(safe).expect("small"));
            log[at..].iter_mut().step_by(7).for_each(|b| *b ^= 0x5A);
        }
        std::fs::write(&wal, log).expect("written");

        let mut options = fixture.options();
        options.data_dir = dir;
        let store = EmbeddedStore::open(options).expect("it opens by itself");
        let published: BTreeMap<_, _> =
            events(&store).await.into_iter().map(|e| (e.key.clone(), e.tags.len())).collect();
        for n in 0..20 {
            let key = key("t", &format!("acknowledged {n}"));
            assert_eq!(names(&store, &key).await, ["a"], "cut {cut}");
            assert_eq!(published.get(&key), Some(&1), "cut {cut}");
        }
        let mut later = 0;
        for n in 0..60 {
            let key = key("t", &format!("later {n}"));
            let tags = names(&store, &key).await.len();
            assert!(tags == 0 || tags == 2, "cut {cut}: a write is whole or not there");
            assert_eq!(
                published.get(&key).copied().unwrap_or(0),
                tags,
                "cut {cut}: document and event together"
            );
            later += usize::from(tags == 2);
        }
        seen.push(later);
        // It goes on: versions and positions stay usable.
        store.write(add(&key("t", "after the crash"), &["d"])).await.expect("written");
    }
    assert_eq!(
        (seen.first(), seen.last()),
        (Some(&0), Some(&60)),
        "cuts cover nothing to everything: {seen:?}"
    );
}

/// A process ends without closing: the next one finds everything, positions continue, and the check
/// passes.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_leaves_a_directory_that_opens() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let keys: Vec<_> = (0..200).map(|n| key("t", &format!("page {n}"))).collect();
    let answers = store.write_many(keys.iter().map(|k| add(k, &["a"])).collect()).await;
    let last = answers.iter().map(|a| a.as_ref().expect("written").receipt.position.lsn).max();
    copy_dir(&fixture.dir(), &fixture.beside("killed"));
    let mut options = fixture.options();
    options.data_dir = fixture.beside("killed");
    let killed = EmbeddedStore::open(options).expect("it opens");
    for key in &keys {
        assert_eq!(names(&killed, key).await, ["a"]);
    }
    assert_eq!(events(&killed).await.len(), 200);
    assert_eq!(killed.current_epoch(), store.current_epoch());
    let answers = killed.write_many(keys.iter().map(|k| add(k, &["b"])).collect()).await;
    let next = answers.iter().map(|a| a.as_ref().expect("written").receipt.position.lsn).max();
    assert!(next > last, "positions go on");
}
