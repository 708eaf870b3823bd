//! A backup that is not, byte for byte, what was saved is refused before anything is made.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tagfast_store_embedded::backup::{backup, restore, verify};
use tagfast_store_embedded::{EmbeddedStore, OpenError};

use crate::support::{Fixture, add, chain, copy_dir, events, key, names, write};

/// Changed bytes that are tried in each file.
const CHANGES: usize = if cfg!(feature = "full") { 400 } else { 12 };

/// A backup with a signing key in `saved`.
async fn saved() -> Fixture {
    let fixture = Fixture::new();
    let mut options = fixture.options();
    options.files = 3;
    let store = EmbeddedStore::open(options).expect("a store");
    for n in 0..30 {
        write(&store, add(&key("t", &format!("page {n}")), &["urgent", "reviewed"])).await;
    }
    std::fs::write(fixture.dir().join("token.key"), format!("{}\n", "ab".repeat(32)))
        .expect("a key");
    backup(&fixture.dir(), &fixture.beside("saved"), &*fixture.clock, &|_, _| {})
        .unwrap_or_else(|e| panic!("the backup succeeds: {}", chain(&e)));
    store.close();
    fixture
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).expect("a directory").map(|entry| {
        let entry = entry.expect("an entry");
        let content = std::fs::read(entry.path()).expect("a file");
        (entry.file_name().to_string_lossy().into_owned(), content)
    });
    entries.collect()
}

/// The directory `saved` is refused by both commands, which make and change nothing. Returns what
/// they say.
#[track_caller]
fn refused(fixture: &Fixture, what: &str) -> String {
    let (dir, target) = (fixture.beside("saved"), fixture.beside("new"));
    let error = verify(&dir, &|_, _| {}).expect_err(what);
    let restored = restore(&dir, &target, &*fixture.clock, &|_, _| {}).expect_err(what);
    assert_eq!(chain(&error), chain(&restored), "{what}");
    assert!(!target.exists(), "{what}: nothing is made before everything was checked");
    chain(&error)
}

#[tokio::test]
async fn one_changed_byte_anywhere_is_refused() {
    let fixture = saved().await;
    let dir = fixture.beside("saved");
    let whole = files(&dir);
    assert_eq!(whole.len(), 5, "three store files, the key and the manifest");
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    for (name, content) in &whole {
        let mut places: Vec<usize> = (0..CHANGES).map(|_| random.usize(..content.len())).collect();
        // A tag of a content is data that no structure of the database covers.
        places.extend(content.windows(6).position(|bytes| bytes == b"urgent"));
        places.extend([0, content.len() - 1]);
        for at in places {
            let mut changed = content.clone();
            changed[at] ^= 1 << random.u8(0..8);
            std::fs::write(dir.join(name), &changed).expect("changed");
            let message = refused(&fixture, &format!("byte {at} of {name}, seed {seed}"));
            assert!(message.contains(name), "{message}");
        }
        std::fs::write(dir.join(name), content).expect("put back");
    }
    assert_eq!(files(&dir), whole, "a check changes nothing in the backup");
    verify(&dir, &|_, _| {}).expect("it is whole again");
}

#[tokio::test]
async fn missing_added_renamed_truncated_and_swapped_files_are_refused() {
    let fixture = saved().await;
    let dir = fixture.beside("saved");
    let at = |name: &str| dir.join(name);
    type Damage<'a> = Box<dyn Fn() + 'a>;
    let mut damages: Vec<(String, &str, Damage<'_>)> = Vec::new();
    for name in ["store-0.sqlite", "store-2.sqlite", "token.key"] {
        let path = at(name);
        let (p, q) = (path.clone(), path.clone());
        damages.push((
            name.to_owned(),
            "missing",
            Box::new(move || {
                std::fs::remove_file(&p).expect("removed");
            }),
        ));
        damages.push((
            name.to_owned(),
            "bytes",
            Box::new(move || {
                let content = std::fs::read(&q).expect("read");
                std::fs::write(&q, &content[..content.len() - 1]).expect("truncated");
            }),
        ));
        let p = path.clone();
        damages.push((
            name.to_owned(),
            "bytes",
            Box::new(move || {
                let mut content = std::fs::read(&p).expect("read");
                content.push(0);
                std::fs::write(&p, content).expect("longer");
            }),
        ));
        let p = path.clone();
        damages.push((
            name.to_owned(),
            "not a regular file",
            Box::new(move || {
                std::fs::remove_file(&p).expect("removed");
                std::fs::create_dir(&p).expect("a directory");
            }),
        ));
        let (p, to) = (path.clone(), at("store-9.sqlite"));
        damages.push((
            "store-9.sqlite".to_owned(),
            "does not belong",
            Box::new(move || {
                std::fs::rename(&p, &to).expect("renamed");
            }),
        ));
    }
    for name in
        ["store-3.sqlite", "store-0.sqlite-wal", "store-0.sqlite-journal", "x", "token.key~"]
    {
        let path = at(name);
        damages.push((
            name.to_owned(),
            "does not belong",
            Box::new(move || {
                std::fs::write(&path, "more").expect("added");
            }),
        ));
    }
    damages.push((
        "store-1.sqlite".to_owned(),
        "manifest",
        Box::new(|| {
            std::fs::rename(at("store-1.sqlite"), at("x")).expect("renamed");
            std::fs::rename(at("store-2.sqlite"), at("store-1.sqlite")).expect("renamed");
            std::fs::rename(at("x"), at("store-2.sqlite")).expect("renamed");
        }),
    ));
    damages.push((
        "manifest.json".to_owned(),
        "no manifest.json",
        Box::new(|| {
            std::fs::remove_file(at("manifest.json")).expect("removed");
        }),
    ));
    copy_dir(&dir, &fixture.beside("whole"));
    for (name, words, damage) in damages {
        damage();
        let message = refused(&fixture, &format!("{name}: {words}"));
        assert!(message.contains(&name) && message.contains(words), "{name} {words}: {message}");
        std::fs::remove_dir_all(&dir).expect("removed");
        copy_dir(&fixture.beside("whole"), &dir);
    }
    let report = verify(&dir, &|_, _| {}).expect("it is whole again");
    assert_eq!((report.files, report.signing_key, report.checksums), (3, true, true));
}

#[tokio::test]
async fn every_fault_is_named_at_once() {
    let fixture = saved().await;
    let dir = fixture.beside("saved");
    std::fs::remove_file(dir.join("store-1.sqlite")).expect("removed");
    std::fs::write(dir.join("token.key"), format!("{}\n", "ac".repeat(32))).expect("changed");
    std::fs::write(dir.join("store-7.sqlite\u{1b}[2J"), "x").expect("added");
    let message = refused(&fixture, "three faults");
    for word in ["store-1.sqlite: it is missing", "token.key: its SHA-256", "store-7.sqlite\\u{1b}"]
    {
        assert!(message.contains(word), "{word}: {message}");
    }
}

#[tokio::test]
async fn a_backup_without_a_signing_key_says_so() {
    let fixture = saved().await;
    std::fs::remove_file(fixture.dir().join("token.key")).expect("removed");
    let without = fixture.beside("without");
    let made = backup(&fixture.dir(), &without, &*fixture.clock, &|_, _| {}).expect("a backup");
    let verified = verify(&without, &|_, _| {}).expect("whole");
    let restored = restore(&without, &fixture.beside("new"), &*fixture.clock, &|_, _| {});
    let restored = restored.expect("restored");
    for report in [&made, &verified, &restored] {
        assert!(!report.signing_key && report.checksums, "{report:?}");
    }
    assert!(!fixture.beside("new").join("token.key").exists());
}

#[tokio::test]
async fn a_backup_of_format_1_is_restored_and_said_to_be_unverified() {
    let fixture = saved().await;
    let dir = fixture.beside("saved");
    let manifest = dir.join("manifest.json");
    let new: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&manifest).expect("read")).expect("JSON");
    let positions: Vec<_> = (0..3).map(|n| new["files"][n]["position"].clone()).collect();
    let old = serde_json::json!({
        "format": 1, "schema": new["schema"], "created_at": new["created_at"],
        "epoch": new["epoch"], "epoch_ordinal": new["epoch_ordinal"], "positions": positions,
    });
    std::fs::write(&manifest, old.to_string()).expect("written");
    let report = verify(&dir, &|_, _| {}).expect("whole databases");
    assert_eq!((report.checksums, report.signing_key), (false, true));
    let target = fixture.beside("new");
    let report = restore(&dir, &target, &*fixture.clock, &|_, _| {}).expect("restored");
    assert!(!report.checksums);
    let mut options = fixture.options();
    options.data_dir = target.clone();
    let store = EmbeddedStore::open(options).expect("it opens");
    assert_eq!(names(&store, &key("t", "page 3")).await, ["reviewed", "urgent"]);
    assert_eq!(events(&store).await.len(), 30);
    store.close();
    std::fs::remove_dir_all(&target).expect("removed");
    // What can be seen without checksums is seen.
    std::fs::write(dir.join("store-0.sqlite-wal"), "x").expect("added");
    assert!(refused(&fixture, "a log beside it").contains("store-0.sqlite-wal"));
}

#[tokio::test]
async fn a_failed_backup_or_restore_leaves_nothing_behind() {
    let fixture = saved().await;
    // The third file of the data directory cannot be copied.
    std::fs::write(fixture.dir().join("store-2.sqlite"), [0xA5; 9000]).expect("damaged");
    let target = fixture.beside("failed");
    backup(&fixture.dir(), &target, &*fixture.clock, &|_, _| {}).expect_err("damaged");
    assert!(!target.exists(), "{:?}", files(&target).keys());
}

#[tokio::test]
async fn backups_and_restored_directories_are_their_owners_alone() {
    let fixture = saved().await;
    let mode =
        |path: &Path| std::fs::metadata(path).expect("it exists").permissions().mode() & 0o7777;
    let wide = |name: &str| {
        let dir = fixture.beside(name);
        std::fs::create_dir(&dir).expect("made");
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).expect("set");
        dir
    };
    let (saved, new) = (wide("wide-backup"), wide("wide-data"));
    let widened = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(fixture.dir().join("token.key"), widened).expect("set");
    let made = backup(&fixture.dir(), &saved, &*fixture.clock, &|_, _| {}).expect("a backup");
    let restored = restore(&saved, &new, &*fixture.clock, &|_, _| {}).expect("restored");
    assert!(made.made_private && restored.made_private);
    for dir in [&saved, &new] {
        assert_eq!(mode(dir), 0o700);
        for entry in std::fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    }
    // A directory of others is not taken over.
    let shared = wide("shared");
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o1777)).expect("set");
    let refused = backup(&fixture.dir(), &shared, &*fixture.clock, &|_, _| {}).expect_err("shared");
    assert!(matches!(refused, OpenError::NotPrivate(_)), "{refused:?}");
    assert_eq!(mode(&shared), 0o1777);
}
