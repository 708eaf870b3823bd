//! `kill -9` under write load: nothing that was acknowledged is lost, nothing is there twice, and
//! search and counts converge to the store's state without a manual step.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fastrand::Rng;
use tagfast_testkit::{Client, Outcome, SetHistory, wait_for_condition};

use crate::support::{Contents, full, server, tag_path, wait_until_converged};

const WRITERS: usize = 4;
/// Tags per content; below the limit, so that nothing is refused.
const PER_CONTENT: usize = 50;

/// One writer: an endless list of elements, each a tag on a content.
struct Writer {
    number: usize,
    next: usize,
    history: SetHistory,
    unknown: Vec<usize>,
}

impl Writer {
    fn place(&self, n: usize) -> (String, String) {
        (format!("w{}-{}", self.number, n / PER_CONTENT), format!("t{:02}", n % PER_CONTENT))
    }

    /// Writes element `n` under a name of its own, so that a retry can settle what was unknown.
    fn write(&mut self, client: &mut Client, n: usize) -> Outcome {
        let (id, tag) = self.place(n);
        let key = format!("w{}-{n}", self.number);
        let answer = client.request(
            "PUT",
            &tag_path("crash", &id, &tag),
            &[("idempotency-key", &key)],
            None,
        );
        let outcome = match answer {
            Ok(answer) if answer.status == 200 => Outcome::Acknowledged,
            Ok(answer) if answer.status >= 500 => Outcome::Unknown,
            Ok(answer) => panic!("{}: {}", answer.status, answer.text()),
            Err(_) => Outcome::Unknown,
        };
        self.history.record(format!("crash/{id}/{tag}"), outcome);
        outcome
    }

    /// Settles every second unknown write, then writes until the server is gone.
    fn run(&mut self, mut client: Client, acknowledged: &AtomicUsize) {
        let unknown = std::mem::take(&mut self.unknown);
        for n in unknown.into_iter().step_by(2) {
            if self.write(&mut client, n) == Outcome::Unknown {
                return;
            }
        }
        loop {
            let n = self.next;
            self.next += 1;
            if self.write(&mut client, n) == Outcome::Unknown {
                self.unknown.push(n);
                return;
            }
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn elements(contents: &Contents) -> Vec<String> {
    contents.iter().flat_map(|(key, tags)| tags.iter().map(move |t| format!("{key}/{t}"))).collect()
}

#[test]
fn no_acknowledged_write_is_lost_by_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let rounds = if full() { 50 } else { 5 };
    let mut rng = Rng::with_seed(7);
    let mut writers: Vec<Writer> = (0..WRITERS)
        .map(|number| Writer {
            number,
            next: 0,
            history: SetHistory::default(),
            unknown: Vec::new(),
        })
        .collect();
    for round in 0..rounds {
        let mut running = server(dir.path()).start();
        let acknowledged = Arc::new(AtomicUsize::new(0));
        // Sometimes at once, while the consumers still rebuild or catch up; sometimes in the middle
        // of much work.
        let enough = 1 + rng.usize(..300);
        std::thread::scope(|scope| {
            for writer in &mut writers {
                let (client, acknowledged) = (running.client(), Arc::clone(&acknowledged));
                scope.spawn(move || writer.run(client, &acknowledged));
            }
            wait_for_condition("enough acknowledged writes", Duration::from_secs(60), || {
                let so_far = acknowledged.load(Ordering::Relaxed);
                if so_far >= enough {
                    Ok(())
                } else {
                    Err(format!("round {round}: {so_far} of {enough}"))
                }
            });
            running.kill();
        });
    }
    let mut history = SetHistory::default();
    writers.into_iter().for_each(|w| history.merge(w.history));

    let running = server(dir.path()).start();
    running.wait_until_ready();
    let contents = wait_until_converged(&mut running.client());
    let elements = elements(&contents);
    assert_eq!(history.check(elements.iter().map(String::as_str)), Vec::<String>::new());
    assert!(history.count(Outcome::Acknowledged) >= rounds, "{history:?}");
}

#[test]
fn a_write_that_was_repeated_after_kill_9_happened_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = tag_path("crash", "repeat", "once");
    let repeatable = |client: &mut Client| {
        let key = [("idempotency-key", "k1")];
        client.request("PUT", &path, &key, None).unwrap().expect(200).json()
    };
    let mut running = server(dir.path()).start();
    let mut client = running.client();
    let first = repeatable(&mut client);
    client.delete(&path).expect(200);
    running.kill();

    let running = server(dir.path()).start();
    let mut client = running.client();
    let again = repeatable(&mut client);
    assert_eq!(
        (&again["repeated"], &again["version"]),
        (&true.into(), &first["version"]),
        "{again}"
    );
    let view = client.get("/v1/content/crash/repeat/tags").expect(200).json();
    assert_eq!(view["tags"], serde_json::json!([]), "the retry must not undo the later removal");
}
