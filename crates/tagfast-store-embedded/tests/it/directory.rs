//! Opening a data directory: the lock, versions, damage, and the permissions of the files.

use std::io::{Seek, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tagfast_store::{ReadOptions, StoreError, TagReader, TagWriter};
use tagfast_store_embedded::OpenError;

use crate::support::{Fixture, add, chain, copy_dir, key, names, write};

async fn filled(fixture: &Fixture) {
    let store = fixture.open();
    let many = (0..800).map(|n| add(&key("t", &format!("page {n}")), &["a", "b", "c"])).collect();
    assert!(store.write_many(many).await.iter().all(Result::is_ok));
    store.close();
}

fn message(error: &OpenError, file: &str, hint: &str) {
    let text = chain(error);
    assert!(text.contains(file) && text.contains(hint), "{text:?} names {file} and says {hint:?}");
}

/// Overwrites the middle of a file.
fn damage(path: &Path, from: u64, bytes: usize) {
    let mut file = std::fs::File::options().write(true).open(path).expect("the file");
    file.seek(SeekFrom::Start(from)).expect("a place");
    file.write_all(&vec![0xA5; bytes]).expect("written");
}

#[tokio::test]
async fn a_second_opener_gets_the_pid_and_the_directory_is_private() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let error = fixture.refused();
    assert!(
        matches!(error, OpenError::Locked { pid, .. } if pid == std::process::id()),
        "{error:?}"
    );
    message(&error, "data", &std::process::id().to_string());
    let mode = std::fs::metadata(fixture.dir()).expect("the directory").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    store.close();
    drop(store);
    fixture.open();
}

#[tokio::test]
async fn a_newer_file_is_refused() {
    let fixture = Fixture::new();
    filled(&fixture).await;
    let path = fixture.dir().join("store-5.sqlite");
    Connection::open(&path)
        .and_then(|c| c.pragma_update(None, "user_version", 99))
        .expect("a newer version");
    let error = fixture.refused();
    assert!(matches!(error, OpenError::Newer { found: 99, .. }), "{error:?}");
    message(&error, "store-5.sqlite", "newer tagfast");
}

#[tokio::test]
async fn a_foreign_database_is_refused() {
    let fixture = Fixture::new();
    filled(&fixture).await;
    let path = fixture.dir().join("store-2.sqlite");
    Connection::open(&path)
        .and_then(|c| c.pragma_update(None, "application_id", 7))
        .expect("another program's");
    message(&fixture.refused(), "store-2.sqlite", "not a tagfast file");
}

#[tokio::test]
async fn missing_empty_and_truncated_files_are_refused_by_name() {
    let fixture = Fixture::new();
    filled(&fixture).await;
    for (n, hint) in [(0, "missing"), (3, "missing"), (0, "empty"), (3, "empty"), (3, "restore")] {
        let name = format!("store-{n}.sqlite");
        let path = fixture.dir().join(&name);
        let saved = std::fs::read(&path).expect("the file");
        match hint {
            "missing" => std::fs::remove_file(&path).expect("removed"),
            "empty" => std::fs::write(&path, []).expect("emptied"),
            _ => std::fs::write(&path, &saved[..saved.len() / 2]).expect("truncated"),
        }
        let error = fixture.refused();
        assert!(matches!(error, OpenError::Damaged { .. }), "{name} {hint}: {error:?}");
        message(&error, &name, hint);
        message(&error, &name, "tagfast restore");
        std::fs::write(&path, saved).expect("put back");
    }
    assert_eq!(names(&fixture.open(), &key("t", "page 7")).await, ["a", "b", "c"]);
}

#[tokio::test]
async fn a_damaged_file_is_found_at_open_after_a_crash_and_at_the_read_otherwise() {
    let fixture = Fixture::new();
    filled(&fixture).await;
    let store = fixture.open();
    // As a crash leaves it: not marked clean.
    copy_dir(&fixture.dir(), &fixture.beside("crashed"));
    store.close();
    drop(store);
    let spoil = |dir: &Path| {
        let path = dir.join("store-4.sqlite");
        let length = std::fs::metadata(&path).expect("the file").len();
        damage(&path, 8192, usize::try_from(length).expect("small") - 8192);
    };
    spoil(&fixture.dir());
    spoil(&fixture.beside("crashed"));

    let mut options = fixture.options();
    options.data_dir = fixture.beside("crashed");
    let error = match tagfast_store_embedded::EmbeddedStore::open(options) {
        Ok(_) => panic!("a damaged file is refused"),
        Err(error) => error,
    };
    assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
    message(&error, "store-4.sqlite", "tagfast restore");

    // After a clean stop no page is read at open; the first read reports the damage.
    match tagfast_store_embedded::EmbeddedStore::open(fixture.options()) {
        Err(error) => message(&error, "store-4.sqlite", "damaged"),
        Ok(store) => {
            let mut damaged = 0;
            for n in 0..800 {
                match store.view(&key("t", &format!("page {n}")), &ReadOptions::default()).await {
                    Ok(view) => assert_eq!(view.tags.len(), 3),
                    Err(StoreError::Damaged { .. }) => damaged += 1,
                    Err(other) => panic!("damage is reported as damage: {other}"),
                }
            }
            assert!(damaged > 0);
        }
    }
}

#[tokio::test]
async fn the_number_of_files_is_the_directorys_for_ever() {
    let fixture = Fixture::new();
    let mut options = fixture.options();
    options.files = 3;
    let store = tagfast_store_embedded::EmbeddedStore::open(options).expect("a store");
    let page = key("t", "page");
    write(&store, add(&page, &["a"])).await;
    assert_eq!(store.bus().partitions().len(), 3);
    drop(store);
    let store = fixture.open();
    assert_eq!(
        (store.bus().partitions().len(), names(&store, &page).await),
        (3, vec!["a".to_owned()])
    );
}

#[tokio::test]
async fn an_epoch_outlives_restarts_and_a_clean_directory_opens_within_a_second() {
    let fixture = Fixture::new();
    filled(&fixture).await;
    let first = fixture.open().current_epoch();
    let started = Instant::now();
    let again = fixture.open();
    assert!(started.elapsed() < Duration::from_secs(1), "opened after {:?}", started.elapsed());
    assert_eq!(again.current_epoch(), first);
}

#[tokio::test]
async fn stored_bytes_can_be_looked_at_while_a_server_runs() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let page = key("t", "page");
    let answer = write(&store, add(&page, &["Some Tag"])).await;
    let dump = tagfast_store_embedded::debug_dump(&fixture.dir(), &page)
        .expect("readable")
        .expect("a document");
    assert_eq!(
        (dump.0, dump.2.version, &*dump.2.taggings[0].display),
        (answer.version, answer.version, "Some Tag")
    );
    assert_eq!(tagfast_domain::codec::decode(&dump.1).expect("a document"), dump.2);
    assert!(
        tagfast_store_embedded::debug_dump(&fixture.dir(), &key("t", "none"))
            .expect("readable")
            .is_none()
    );
}
