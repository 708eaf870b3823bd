//! Idempotency keys: a directory knows what a key was used for in any of its files.

use tagfast_domain::Refusal;
use tagfast_domain::limits::WRITE_ID_MEMORY_MS;
use tagfast_store::{StoreError, TagWriter, WriteRequest};
use tagfast_store_embedded::EmbeddedStore;
use tagfast_store_embedded::backup::{backup, restore};

use crate::support::{Fixture, add, copy_dir, key, names, reused, write};

/// Contents of every file: there are 8.
const OTHERS: usize = 40;

/// The key of `first` is refused on every other content, and `first` is answered again.
async fn refuse_elsewhere(store: &EmbeddedStore, first: &WriteRequest, when: &str) {
    for n in 0..OTHERS {
        let other = key("t", &format!("other {n}"));
        let error = store.write(reused(first, &other)).await.expect_err("the key is bound");
        assert!(matches!(error, StoreError::Refused(Refusal::KeyReused)), "{when}: {error}");
        assert!(names(store, &other).await.is_empty(), "{when}: nothing happened");
    }
    assert!(write(store, first.clone()).await.repeated, "{when}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_known_in_every_file_after_a_restart_a_crash_and_a_restore() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let first = add(&key("t", "page"), &["a"]);
    write(&store, first.clone()).await;
    refuse_elsewhere(&store, &first, "at once").await;
    let (crashed, saved, restored) =
        (fixture.beside("crashed"), fixture.beside("saved"), fixture.beside("restored"));
    copy_dir(&fixture.dir(), &crashed);
    backup(&fixture.dir(), &saved, &*fixture.clock, &|_, _| {}).expect("a backup");
    restore(&saved, &restored, &*fixture.clock, &|_, _| {}).expect("a restore");
    store.close();
    drop(store);
    fixture.clock.advance(WRITE_ID_MEMORY_MS - 1);
    for (dir, when) in [
        (fixture.dir(), "after a restart"),
        (crashed, "after a power cut"),
        (restored, "after a restore"),
    ] {
        let mut options = fixture.options();
        options.data_dir = dir;
        let store = EmbeddedStore::open(options).expect("it opens");
        refuse_elsewhere(&store, &first, when).await;
    }
}

/// Twenty minutes later at the latest a key names whatever comes first.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_free_again_when_it_expired() {
    let fixture = Fixture::new();
    let first = add(&key("t", "page"), &["a"]);
    write(&fixture.open(), first.clone()).await;
    fixture.clock.advance(2 * WRITE_ID_MEMORY_MS);
    let store = fixture.open();
    for n in 0..OTHERS {
        let other = key("t", &format!("other {n}"));
        let result = store.write(reused(&first, &other)).await;
        match n {
            0 => assert!(result.expect("written").changed, "the key names a new request"),
            _ => drop(result.expect_err("and that one only")),
        }
    }
}
