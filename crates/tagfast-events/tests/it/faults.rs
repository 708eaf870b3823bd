//! Records that cannot be applied, sinks that fail, dead letters that cannot be written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tagfast_events::{ConsumerState, FailureClass, RecordVerdict};

use crate::support::{MemoryBus, ScriptedSink, VirtualClock, event, spawn, until};

fn failed() -> RecordVerdict {
    RecordVerdict::Failed { code: "flaky", message: "not this time".to_owned() }
}

#[tokio::test(start_paused = true)]
async fn poison_is_parked_at_once_untouched() {
    let clock = VirtualClock::new();
    let bus = MemoryBus::new(1, &clock);
    let sink = ScriptedSink::new(|r, _| {
        if r.event.key.content.content_id.as_str() == "bad" {
            return RecordVerdict::Poison { code: "refused", message: "never".to_owned() };
        }
        RecordVerdict::Applied
    });
    let mut undecodable = bus.record(&event("x", 1, 1));
    undecodable.payload = b"{\"type\":\"tagfast.taggings.v2\"}".to_vec();
    bus.publish_raw(undecodable.clone());
    let mut mismatch = bus.record(&event("y", 1, 1));
    mismatch.key = b"another key".to_vec();
    bus.publish_raw(mismatch);
    bus.publish(&event("bad", 1, 1));
    bus.publish(&event("good", 1, 1));
    let consumer = spawn(&bus, &sink, &clock);
    until("the position", Duration::from_secs(1), || {
        bus.state().committed.values().any(|p| p.next == 5)
    })
    .await;
    let parked = bus.state().dead_letters.clone();
    let dead_letters: Vec<_> =
        parked.values().map(|l| (l.code.as_str(), l.class, l.attempts)).collect();
    let poison = FailureClass::Poison;
    assert_eq!(
        dead_letters,
        [
            ("event_type_unknown", poison, 1),
            ("event_key_mismatch", poison, 1),
            ("refused", poison, 1)
        ]
    );
    assert_eq!(parked["test/0/1"].record.payload, undecodable.payload);
    assert_eq!(consumer.status().parked, 3);
    consumer.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_failing_record_is_tried_four_times_with_growing_delays() {
    let clock = VirtualClock::new();
    let (bus, sink) = (MemoryBus::new(1, &clock), ScriptedSink::new(|_, _| failed()));
    bus.publish(&event("a", 1, 1));
    let consumer = spawn(&bus, &sink, &clock);
    until("the dead letter", Duration::from_secs(30), || !bus.state().dead_letters.is_empty())
        .await;
    let times: Vec<_> = sink.state().offered.iter().map(|(_, _, at)| *at).collect();
    let delays: Vec<u128> = times.windows(2).map(|w| (w[1] - w[0]).as_millis()).collect();
    assert_eq!(delays.len(), 3, "one attempt and three retries");
    for (delay, nominal) in delays.iter().zip([200, 800, 3200]) {
        // Half to one and a half of the nominal delay, plus a step of the loop.
        assert!((nominal / 2..=nominal * 3 / 2 + 60).contains(delay), "{delays:?}");
    }
    let dead_letter = bus.state().dead_letters.values().next().cloned().expect("a dead letter");
    assert_eq!(
        (dead_letter.class, dead_letter.attempts, dead_letter.code.as_str()),
        (FailureClass::Exhausted, 4, "flaky")
    );
    assert!(dead_letter.first_failed_at < dead_letter.last_failed_at);
    consumer.stop().await;
}

/// A key's versions reach the sink in rising order, and a newer one replaces a waiting one.
#[tokio::test(start_paused = true)]
async fn a_newer_version_supersedes_a_waiting_one() {
    let clock = VirtualClock::new();
    let bus = MemoryBus::new(1, &clock);
    let sink = ScriptedSink::new(|r, _| {
        if r.event.version.packed() == 1 { failed() } else { RecordVerdict::Applied }
    });
    bus.publish(&event("a", 1, 1));
    let consumer = spawn(&bus, &sink, &clock);
    until("the first attempt", Duration::from_secs(1), || !sink.state().offered.is_empty()).await;
    for n in 2..=10 {
        bus.publish(&event("a", n, 1));
    }
    until("the newest", Duration::from_secs(1), || {
        sink.state().applied.values().any(|v| v.packed() == 10)
    })
    .await;
    until("the position", Duration::from_secs(1), || {
        bus.state().committed.values().any(|p| p.next == 11)
    })
    .await;
    let versions: Vec<u64> = sink.state().offered.iter().map(|(_, v, _)| v.packed()).collect();
    assert!(versions.is_sorted(), "{versions:?}");
    assert!(bus.state().dead_letters.is_empty(), "the superseded one is not parked");
    consumer.stop().await;
}

/// An outage of the sink parks nothing and counts no attempt.
#[tokio::test(start_paused = true)]
async fn an_outage_is_not_poison() {
    let clock = VirtualClock::new();
    let (bus, sink) = (MemoryBus::new(2, &clock), ScriptedSink::willing());
    let consumer = spawn(&bus, &sink, &clock);
    until("running", Duration::from_secs(1), || consumer.status().caught_up).await;
    sink.state().down = true;
    for n in 0..2000 {
        bus.publish(&event(&format!("c{n}"), 1, 1));
    }
    until("paused", Duration::from_secs(5), || consumer.status().state == ConsumerState::Paused)
        .await;
    until("ten minutes", Duration::from_secs(601), || consumer.status().lag_seconds > Some(600.0))
        .await;
    sink.state().down = false;
    until("drained", Duration::from_secs(10), || sink.state().applied.len() == 2000).await;
    assert!(bus.state().dead_letters.is_empty());
    until("running again", Duration::from_secs(1), || {
        consumer.status().state == ConsumerState::Running
    })
    .await;
    consumer.stop().await;
}

/// After an outage a canary goes first: while it fails, no record is applied and the consumer
/// waits.
#[tokio::test(start_paused = true)]
async fn a_canary_goes_before_records() {
    let clock = VirtualClock::new();
    let (bus, sink) = (MemoryBus::new(1, &clock), ScriptedSink::willing());
    let consumer = spawn(&bus, &sink, &clock);
    until("running", Duration::from_secs(1), || consumer.status().caught_up).await;
    assert_eq!(sink.state().canaries, 0, "nothing is in doubt");
    (sink.state().down, sink.state().canary_dies) = (true, true);
    bus.publish(&event("a", 1, 1));
    until("paused", Duration::from_secs(5), || consumer.status().state == ConsumerState::Paused)
        .await;
    sink.state().down = false;
    until("some canaries died", Duration::from_secs(60), || sink.state().canaries >= 5).await;
    assert!(sink.state().offered.is_empty(), "no record was offered while canaries failed");
    sink.state().canary_dies = false;
    until("applied", Duration::from_secs(10), || sink.state().applied.len() == 1).await;
    assert!(bus.state().dead_letters.is_empty());
    consumer.stop().await;
}

/// A dead letter that cannot be written holds the position back; the consumer goes on trying.
#[tokio::test(start_paused = true)]
async fn the_position_waits_for_the_dead_letter() {
    let clock = VirtualClock::new();
    let bus = MemoryBus::new(1, &clock);
    let sink =
        ScriptedSink::new(|_, _| RecordVerdict::Poison { code: "no", message: String::new() });
    bus.state().refuse_park = true;
    bus.publish(&event("a", 1, 1));
    let consumer = spawn(&bus, &sink, &clock);
    until("it pauses", Duration::from_secs(5), || consumer.status().state == ConsumerState::Paused)
        .await;
    assert!(bus.state().committed.values().all(|p| p.next <= 1), "{:?}", bus.state().committed);
    bus.state().refuse_park = false;
    until("parked", Duration::from_secs(20), || bus.state().dead_letters.len() == 1).await;
    until("the position", Duration::from_secs(1), || {
        bus.state().committed.values().any(|p| p.next == 2)
    })
    .await;
    consumer.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_is_down_is_polled_again() {
    let clock = VirtualClock::new();
    let (bus, sink) = (MemoryBus::new(1, &clock), ScriptedSink::willing());
    bus.state().down = true;
    let consumer = spawn(&bus, &sink, &clock);
    until("it pauses", Duration::from_secs(5), || consumer.status().state == ConsumerState::Paused)
        .await;
    bus.publish(&event("a", 1, 1));
    bus.state().down = false;
    until("applied", Duration::from_secs(10), || sink.state().applied.len() == 1).await;
    consumer.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_a_sink_that_is_down() {
    let clock = VirtualClock::new();
    let (bus, sink) = (MemoryBus::new(1, &clock), ScriptedSink::willing());
    sink.state().down = true;
    let consumer = spawn(&bus, &sink, &clock);
    until("it pauses", Duration::from_secs(5), || consumer.status().state == ConsumerState::Paused)
        .await;
    consumer.stop().await;
    assert_eq!(consumer.status().state, ConsumerState::Stopped);
}

/// When every record fails, the records are not to blame: few dead letters, an alarm, and all of
/// them are applied once the cause is gone.
#[tokio::test(start_paused = true)]
async fn a_storm_is_stopped_and_ends_by_itself() {
    let clock = VirtualClock::new();
    let bus = MemoryBus::new(2, &clock);
    let broken = Arc::new(AtomicBool::new(true));
    let is_broken = Arc::clone(&broken);
    let sink = ScriptedSink::new(move |_, _| {
        if is_broken.load(Ordering::SeqCst) {
            return RecordVerdict::Poison {
                code: "mapping",
                message: "a broken release".to_owned(),
            };
        }
        RecordVerdict::Applied
    });
    for n in 0..1000 {
        bus.publish(&event(&format!("c{n}"), 1, 1));
    }
    let consumer = spawn(&bus, &sink, &clock);
    until("the alarm", Duration::from_secs(15), || consumer.status().storm).await;
    until("a minute", Duration::from_secs(70), || consumer.status().lag_seconds > Some(60.0)).await;
    let dead_letters = bus.state().dead_letters.len();
    assert!(dead_letters <= 100, "{dead_letters} dead letters");
    let committed = bus.state().committed.clone();
    assert!(
        committed.values().map(|p| p.next).sum::<u64>() < 1000,
        "the position waits: {committed:?}"
    );
    broken.store(false, Ordering::SeqCst);
    until("everything else is applied", Duration::from_secs(15), || {
        sink.state().applied.len() == 1000 - dead_letters
    })
    .await;
    until("the storm is over", Duration::from_secs(5), || !consumer.status().storm).await;
    bus.publish(&event("later", 1, 1));
    until("records flow again", Duration::from_secs(5), || {
        sink.state().applied.len() == 1001 - dead_letters
    })
    .await;
    assert_eq!(bus.state().dead_letters.len(), dead_letters);
    consumer.stop().await;
}

/// An operator has looked, and the records are to blame: the dead letters are written.
#[tokio::test(start_paused = true)]
async fn a_storm_can_be_allowed() {
    let clock = VirtualClock::new();
    let bus = MemoryBus::new(2, &clock);
    let sink = ScriptedSink::willing();
    for n in 0..200 {
        let mut record = bus.record(&event(&format!("c{n}"), 1, 1));
        record.payload = b"garbage".to_vec();
        bus.publish_raw(record);
    }
    let consumer = spawn(&bus, &sink, &clock);
    until("the alarm", Duration::from_secs(15), || consumer.status().storm).await;
    assert!(bus.state().dead_letters.len() <= 100);
    consumer.allow_storm();
    until("all dead letters", Duration::from_secs(15), || bus.state().dead_letters.len() == 200)
        .await;
    until("it is over", Duration::from_secs(5), || !consumer.status().storm).await;
    consumer.stop().await;
}
