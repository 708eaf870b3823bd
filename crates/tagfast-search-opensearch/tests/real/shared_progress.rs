//! Age of the index when several processes feed it.

use std::collections::BTreeMap;
use std::time::Duration;

use tagfast_events::{Partition, Sink, VisibleThrough};
use tagfast_search::SearchIndex;
use tagfast_testkit::wait_for_condition_async;

use crate::support::Engine;

fn visible(all: &[(u16, i64)]) -> VisibleThrough {
    VisibleThrough {
        partitions: all.iter().map(|(p, at)| (Partition(*p), *at)).collect::<BTreeMap<_, _>>(),
        complete: true,
    }
}

/// Processes that index some partitions, and a process that only searches, know the age of the
/// whole index.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_process_knows_the_age_of_the_whole_index() {
    let engine = Engine::new().await;
    let (one, other, asker) = (engine.reopen(), engine.reopen(), engine.reopen());
    let _shared: Vec<_> = [&one, &other, &asker].map(|index| index.share_progress(3)).into();
    let seen = async |what: &str, expected: i64| {
        for index in [&one, &other, &asker] {
            wait_for_condition_async(what, Duration::from_secs(15), || async {
                let as_of = index.as_of();
                if as_of == expected { Ok(()) } else { Err(format!("{as_of}")) }
            })
            .await;
        }
    };
    one.visible(&visible(&[(0, 100), (1, 300)]));
    seen("the time of partition 2 is unknown", 0).await;
    other.visible(&visible(&[(2, 200)]));
    seen("the oldest of three", 100).await;
    // A partition moves to an owner that is further ahead.
    one.visible(&visible(&[(1, 400)]));
    other.visible(&visible(&[(0, 250), (2, 260)]));
    seen("after a move", 250).await;
}
