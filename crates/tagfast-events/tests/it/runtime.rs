//! Normal operation: order, collapsing, positions, lag, rebuilds, stopping.

use std::time::Duration;

use tagfast_domain::Version;
use tagfast_events::{ConsumerState, Positions, RecordVerdict};

use crate::support::{BASE, MemoryBus, ScriptedSink, VirtualClock, event, spawn, until};

fn version(n: u64) -> Version {
    Version::from_packed(n).expect("fits")
}

#[tokio::test(start_paused = true)]
async fn everything_is_applied_and_a_batch_collapses_to_the_newest() {
    let clock = VirtualClock::new();
    let (bus, sink) = (MemoryBus::new(2, &clock), ScriptedSink::willing());
    for n in 1..=5 {
        bus.publish(&event("a", n, 1));
        bus.publish(&event("b", n, 1));
    }
    let consumer = spawn(&bus, &sink, &clock);
    until("both contents at version 5", Duration::from_secs(5), || {
        sink.state().applied.values().filter(|v| **v == version(5)).count() == 2
    })
    .await;
    assert_eq!(sink.state().offered.len(), 2, "older states of a batch are superseded");
    until("caught up", Duration::from_secs(5), || consumer.status().caught_up).await;
    let committed = bus.state().committed.clone();
    assert!(committed.values().any(|p| p.next >= 6), "{committed:?}");
    consumer.stop().await;
    assert!(sink.state().closed);
    assert_eq!(consumer.status().state, ConsumerState::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_restart_goes_on_where_the_sink_was_durable() {
    let clock = VirtualClock::new();
    let (bus, sink) = (MemoryBus::new(1, &clock), ScriptedSink::willing());
    bus.publish(&event("a", 1, 1));
    let consumer = spawn(&bus, &sink, &clock);
    until("the first", Duration::from_secs(5), || consumer.status().caught_up).await;
    consumer.stop().await;
    bus.publish(&event("b", 1, 1));
    let consumer = spawn(&bus, &sink, &clock);
    until("the second", Duration::from_secs(5), || sink.state().applied.len() == 2).await;
    assert_eq!(sink.state().offered.len(), 2, "the first is not read again");
    consumer.stop().await;
}

/// Events that a replaced epoch publishes later are dropped, also after a restart.
#[tokio::test(start_paused = true)]
async fn events_of_a_replaced_epoch_are_dropped() {
    let clock = VirtualClock::new();
    let (bus, sink) = (MemoryBus::new(1, &clock), ScriptedSink::willing());
    bus.publish(&event("a", 5, 2));
    let consumer = spawn(&bus, &sink, &clock);
    until("the newer epoch", Duration::from_secs(5), || consumer.status().caught_up).await;
    consumer.stop().await;
    bus.publish(&event("a", 9, 1));
    bus.publish(&event("b", 1, 2));
    let consumer = spawn(&bus, &sink, &clock);
    until("the next event", Duration::from_secs(5), || sink.state().applied.len() == 2).await;
    let applied: Vec<_> = sink.state().applied.values().copied().collect();
    assert_eq!(applied, [version(5), version(1)], "version 9 of the older epoch was dropped");
    consumer.stop().await;
}

/// The lag is true on an idle bus and while the sink is stuck.
#[tokio::test(start_paused = true)]
async fn the_lag_is_true() {
    let clock = VirtualClock::new();
    let (bus, sink) = (MemoryBus::new(4, &clock), ScriptedSink::willing());
    let consumer = spawn(&bus, &sink, &clock);
    until("idle for a minute", Duration::from_secs(61), || sink.state().visible > BASE + 60_000)
        .await;
    let lag = consumer.status().lag_seconds;
    assert!(lag.is_some_and(|lag| lag < 0.2), "{lag:?}");
    sink.state().down = true;
    bus.publish(&event("a", 1, 1));
    let stuck = sink.state().visible;
    until("stuck for ten seconds", Duration::from_secs(20), || {
        consumer.status().lag_seconds > Some(10.0)
    })
    .await;
    assert!(sink.state().visible <= stuck + 100, "nothing became visible meanwhile");
    sink.state().down = false;
    until("back", Duration::from_secs(20), || consumer.status().lag_seconds < Some(0.2)).await;
    consumer.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_empty_sink_and_one_that_fell_behind_rebuild() {
    let clock = VirtualClock::new();
    let (bus, sink) = (MemoryBus::new(1, &clock), ScriptedSink::willing());
    sink.state().positions = None;
    bus.publish(&event("a", 1, 1));
    let consumer = spawn(&bus, &sink, &clock);
    until("rebuilt", Duration::from_secs(5), || consumer.status().caught_up).await;
    assert_eq!(sink.state().rebuilds, 1);
    assert!(sink.state().offered.is_empty(), "the copy holds what was published");
    assert_eq!(consumer.rebuild().await, Ok(42));
    assert_eq!(sink.state().rebuilds, 2);
    consumer.stop().await;
    bus.publish(&event("b", 1, 1));
    bus.state().retained.insert(tagfast_events::Partition(0), 2);
    sink.state().positions =
        Some(Positions::from([(tagfast_events::Partition(0), Default::default())]));
    let consumer = spawn(&bus, &sink, &clock);
    until("rebuilt again", Duration::from_secs(5), || sink.state().rebuilds == 3).await;
    consumer.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_key_does_not_stop_the_others() {
    let clock = VirtualClock::new();
    let bus = MemoryBus::new(1, &clock);
    let sink = ScriptedSink::new(|r, attempt| {
        if r.event.key.content.content_id.as_str() == "slow" && attempt < 4 {
            return RecordVerdict::Failed { code: "slow", message: String::new() };
        }
        RecordVerdict::Applied
    });
    bus.publish(&event("slow", 1, 1));
    for n in 0..500 {
        bus.publish(&event(&format!("c{n}"), 1, 1));
    }
    let consumer = spawn(&bus, &sink, &clock);
    until("the others", Duration::from_millis(300), || sink.state().applied.len() == 500).await;
    let position = bus.state().committed.values().next().map_or(1, |p| p.next);
    assert!(position <= 1, "the position waits for the slow record");
    until("the slow one", Duration::from_secs(10), || sink.state().applied.len() == 501).await;
    until("the position", Duration::from_secs(1), || {
        bus.state().committed.values().any(|p| p.next == 502)
    })
    .await;
    assert!(bus.state().dead_letters.is_empty());
    consumer.stop().await;
}

/// The topic is made again under a running consumer: the sink is rebuilt, keeps its partitions, and
/// gets what is published from then on. The age that it shows goes on only with what was proven.
#[tokio::test(start_paused = true)]
async fn a_topic_that_was_made_again_is_rebuilt_and_goes_on() {
    let clock = VirtualClock::new();
    let (bus, sink) = (MemoryBus::new(2, &clock), ScriptedSink::willing());
    (0..20).for_each(|n| {
        bus.publish(&event(&format!("c{n}"), 1, 1));
    });
    let consumer = spawn(&bus, &sink, &clock);
    until("caught up", Duration::from_secs(5), || consumer.status().caught_up).await;
    let owned = sink.state().owned.clone();
    assert_eq!(owned.len(), 2);
    bus.state().recreate(true);
    // As many as before, so that no offset is out of range.
    (0..20).for_each(|n| {
        bus.publish(&event(&format!("d{n}"), 1, 1));
    });
    until("rebuilt", Duration::from_secs(5), || sink.state().rebuilds == 1).await;
    until("the partitions are its own", Duration::from_secs(5), || sink.state().owned == owned)
        .await;
    bus.publish(&event("after", 1, 1));
    let after = event("after", 1, 1).key;
    until("it goes on", Duration::from_secs(5), || sink.state().applied.contains_key(&after)).await;
    until("no problem is left", Duration::from_secs(5), || consumer.problem().is_none()).await;
    assert_eq!(sink.state().rebuilds, 1);
    consumer.stop().await;
}

/// A topic that was made again while no consumer read it, and is longer than the positions.
#[tokio::test(start_paused = true)]
async fn a_start_beyond_a_topic_that_was_made_again_is_a_rebuild() {
    let clock = VirtualClock::new();
    let (bus, sink) = (MemoryBus::new(1, &clock), ScriptedSink::willing());
    (0..5).for_each(|n| {
        bus.publish(&event(&format!("c{n}"), 1, 1));
    });
    let consumer = spawn(&bus, &sink, &clock);
    until("caught up", Duration::from_secs(5), || consumer.status().caught_up).await;
    consumer.stop().await;
    bus.state().recreate(false);
    (0..50).for_each(|n| {
        bus.publish(&event(&format!("d{n}"), 1, 1));
    });
    let consumer = spawn(&bus, &sink, &clock);
    until("rebuilt", Duration::from_secs(5), || sink.state().rebuilds == 1).await;
    consumer.stop().await;
}

/// What the bus or the sink lacks is told with the time since when, and ends with its cause.
#[tokio::test(start_paused = true)]
async fn what_is_wrong_is_told_with_its_beginning() {
    let clock = VirtualClock::new();
    let (bus, sink) = (MemoryBus::new(1, &clock), ScriptedSink::willing());
    bus.state().down = true;
    let consumer = spawn(&bus, &sink, &clock);
    assert_eq!(consumer.status().lag_seconds, None, "nothing is proven yet");
    let told = |text: &str| consumer.problem().is_some_and(|problem| problem.text.contains(text));
    until("the bus", Duration::from_secs(5), || told("the bus is down")).await;
    let since = consumer.problem().expect("a problem").since;
    assert!((BASE..BASE + 1000).contains(&since), "{since}");
    assert_eq!(consumer.status().lag_seconds, None);
    bus.state().down = false;
    until("all is well", Duration::from_secs(10), || consumer.problem().is_none()).await;
    bus.state().problem = Some("no heartbeat of cluster c1".to_owned());
    until("the feed", Duration::from_secs(5), || told("cluster c1")).await;
    bus.state().problem = None;
    sink.state().down = true;
    bus.publish(&event("a", 1, 1));
    until("the sink", Duration::from_secs(5), || told("the sink is down")).await;
    sink.state().down = false;
    until("all is well again", Duration::from_secs(10), || consumer.problem().is_none()).await;
    consumer.stop().await;
}
