//! The span of acknowledgements that a partition of the primary loses: its packets to the replicas,
//! to their Patronis and to etcd vanish, while the service still reaches it. The service goes on
//! acknowledging until the guard holds; then the lease runs out, and a replica takes over.

use std::sync::Arc;
use std::time::Duration;

use tagfast_store_postgres::PostgresStore;
use tagfast_testkit::stack::{NodeInfo, Unreachable};

use crate::figure::Figure;
use crate::fixture::{Fixture, closed_report, epoch_of, next_epoch};
use crate::load::{CONTENTS, Callers, tag_contents};
use crate::repair::{Fates, is_lost};
use crate::{Options, progress};

/// What a span may take beyond `max_loss`.
const ALLOWED_MS: f64 = 60.0;
/// How long the callers write before the partition, and in the new epoch.
const AROUND: Duration = Duration::from_secs(1);

fn set_partition(fixture: &Fixture, node: &NodeInfo, is_cut: bool) {
    let info = fixture.stack.info();
    let replicas = info.clusters[0].nodes.iter().filter(|other| other.name != node.name);
    let replicas = replicas.flat_map(|other| {
        // Patroni asks the others through the proxy, which has an address of its own.
        let patroni = other.patroni.rsplit('/').next().and_then(|at| at.parse().ok());
        let patroni = patroni.expect("the address of a Patroni");
        [Unreachable::Address(other.direct_postgres.ip()), Unreachable::Port(patroni)]
    });
    let etcd = info.etcd.iter().map(|etcd| Unreachable::Port(etcd.direct));
    for place in replicas.chain(etcd) {
        fixture.stack.set_unreachable(&node.name, place, is_cut).expect("its routes change");
    }
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
    set_partition(fixture, &primary, true);
    let acknowledged = fixture.runtime.block_on(async {
        next_epoch(store, before).await;
        tokio::time::sleep(AROUND).await;
        callers.finish().await
    });
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
        let what =
            format!("span of lost acknowledgements in a partition, max_loss {max_loss_ms} ms");
        Figure::new(what, span_ms, "ms")
            .beside(fates.to_string())
            .at_most(*max_loss_ms as f64 + ALLOWED_MS, "ms")
    };
    bounds.iter().map(figure).collect()
}
