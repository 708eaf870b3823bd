//! Faults of etcd that an acknowledgement must survive: a member key that is missing.

use std::sync::Arc;

use tagfast_resilience::{Clock, SystemClock};
use tagfast_store_postgres::NullSink;
use tagfast_testkit::stack::Fault;
use tokio::runtime::Handle;

use crate::load::{LIMIT, Load, Work};
use crate::scenarios::{NODES, ONE_AT_A_TIME, SECOND, all_whole, fault, on_stack, primary};
use crate::support;

/// The primary's member key ends before the leader key does. Every Patroni stands still meanwhile:
/// one on a replica would take the primary that has no member key for gone, and stop following it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_while_the_leaders_member_key_is_missing() {
    let _turn = ONE_AT_A_TIME.lock().await;
    all_whole().await;
    let mut options = support::options(Arc::new(SystemClock) as Arc<dyn Clock>).await;
    options.limits.tags_per_content = LIMIT;
    let store = support::open(options, Arc::new(NullSink)).await;
    let work = Work { run: "memberkey", clients: 4, clusters: 1, replicates: false };
    let load = Load::start(&[(Arc::clone(&store), Handle::current())], &work);
    load.acknowledged_after(0, load.now() + SECOND, 30 * SECOND).await;
    let primary = primary().await.name;
    for node in NODES {
        fault(Fault::FreezePatroni, node).await;
    }
    let key = format!("/service/c0/members/{primary}");
    let delete = {
        let key = key.clone();
        move |stack: &mut tagfast_testkit::stack::Stack| stack.delete_etcd_key(&key)
    };
    assert!(on_stack(delete.clone()).await.expect("etcd answers"), "{key} was there");
    let missing = load.now();
    // A poll each second finds it missing. The lease lasts longer.
    load.acknowledged_after(0, missing + 5 * SECOND, 30 * SECOND).await;
    let was_back = on_stack(delete).await.expect("etcd answers");
    for node in NODES {
        fault(Fault::Thaw, node).await;
    }
    assert!(!was_back, "{key} was missing throughout");
    let [checked, _] = load.finish(&store, &[]).await;
    assert_eq!(checked.findings.violations, []);
    assert_eq!(checked.answers.refused, []);
    let gap = checked.largest_gap();
    assert!(gap < 3 * SECOND, "the largest gap between two acknowledgements was {gap:?}");
}
