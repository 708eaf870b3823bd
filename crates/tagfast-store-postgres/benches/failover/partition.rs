//! The span of acknowledgements that a partition of the primary loses: nothing of its log reaches
//! the replicas, and it reaches neither etcd nor their Patronis, while the service still reaches
//! it. The service goes on acknowledging until the guard holds; then the lease runs out, and a
//! replica takes over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tagfast_store_postgres::PostgresStore;
use tagfast_testkit::stack::NodeInfo;

use crate::figure::Figure;
use crate::fixture::{Fixture, FrozenSenders, closed_report, epoch_of, next_epoch};
use crate::load::{CONTENTS, Callers, tag_contents};
use crate::repair::{Fates, is_lost};
use crate::{Options, progress};

/// What a span may take beyond `max_loss`.
const ALLOWED_MS: f64 = 60.0;
/// How long the callers write before the partition, and in the new epoch.
const AROUND: Duration = Duration::from_secs(1);

/// Begins or ends it. Servers reach each other through the proxy, at ports of the host.
fn set_partition(fixture: &Fixture, primary: &NodeInfo, is_cut: bool) {
    let info = fixture.stack.info();
    let patroni = |node: &NodeInfo| -> SocketAddr {
        let address = node.patroni.rsplit('/').next().and_then(|at| at.parse().ok());
        address.expect("the address of a Patroni")
    };
    let set = |node: &NodeInfo, port| {
        fixture.stack.set_unreachable(&node.name, port, is_cut).expect("its routes change");
    };
    let replicas = info.clusters[0].nodes.iter().filter(|node| node.name != primary.name);
    for replica in replicas {
        set(replica, primary.postgres);
        set(replica, patroni(primary));
        set(primary, patroni(replica));
    }
    info.etcd.iter().for_each(|etcd| set(primary, etcd.direct));
}

/// The span that was lost, in ms, and what became of its writes.
fn lost_span(fixture: &Fixture, store: &Arc<PostgresStore>) -> (f64, Fates) {
    fixture.wait_until_healthy();
    let before = epoch_of(store).expect("an epoch");
    let primary = fixture.primary();
    let callers = {
        let _runtime = fixture.runtime.enter();
        Callers::start(store)
    };
    fixture.sleep(AROUND);
    // What is on its way to the replicas stops at once, as when a cable is pulled.
    let senders = FrozenSenders::of(&primary);
    set_partition(fixture, &primary, true);
    let acknowledged = fixture.runtime.block_on(async {
        next_epoch(store, before).await;
        tokio::time::sleep(AROUND).await;
        callers.finish().await
    });
    senders.kill();
    set_partition(fixture, &primary, false);
    fixture.runtime.block_on(closed_report(store, before));
    let (mut times, mut receipts) = (Vec::new(), Vec::new());
    for write in acknowledged.iter().filter(|write| is_lost(store, &write.receipt)) {
        times.push(write.at);
        receipts.push(write.receipt);
    }
    let span = match (times.iter().min(), times.iter().max()) {
        (Some(first), Some(last)) => *last - *first,
        _ => Duration::ZERO,
    };
    let fates = fixture.runtime.block_on(Fates::of(store, &receipts));
    (span.as_secs_f64() * 1000.0, fates)
}

pub(crate) fn figures(fixture: &Fixture, options: &Options) -> Vec<Figure> {
    let bounds: &[u64] = if options.is_quick { &[500] } else { &[200, 500, 1000] };
    let figure = |max_loss_ms: &u64| {
        progress(&format!("partition of the primary, at most {max_loss_ms} ms are lost"));
        let store = fixture.open("partition", Duration::from_millis(*max_loss_ms));
        fixture.runtime.block_on(tag_contents(&store, "content", CONTENTS));
        let (span_ms, fates) = lost_span(fixture, &store);
        fixture.close(store);
        let what = format!("span lost in a partition of the primary, max_loss {max_loss_ms} ms");
        let limit = *max_loss_ms as f64 + ALLOWED_MS;
        // A partition that loses nothing proves nothing about the bound.
        let ok = span_ms > 0.0 && span_ms <= limit;
        Figure::new(what, span_ms, "ms")
            .beside(fates.to_string())
            .target(format!("<= {limit} ms, and something is lost"), ok)
    };
    bounds.iter().map(figure).collect()
}
