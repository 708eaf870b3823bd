//! Writers that note what was acknowledged when. A write that was not acknowledged is sent again:
//! all of them set what they set already.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tagfast_testkit::Client;

use crate::judge::{NOT_OWED, now};

/// Contents of each source of views, each rewritten again and again.
pub(crate) const CONTENTS_PER_SOURCE: usize = 8;
/// Sources of views. Each has contents of its own, so that a read of one fills no cache for others.
pub(crate) const VIEW_SOURCES: usize = 3;
const REWRITE_INTERVAL: Duration = Duration::from_millis(200);
const COUNT_INTERVAL: Duration = Duration::from_millis(100);
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);

/// The times at which the writes of one kind were acknowledged, in order, Unix ms.
#[derive(Default)]
pub(crate) struct Acknowledged(Mutex<Vec<u64>>);

impl Acknowledged {
    fn push(&self, time: u64) {
        self.0.lock().push(time);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.lock().len()
    }

    pub(crate) fn read<T>(&self, with: impl FnOnce(&[u64]) -> T) -> T {
        with(&self.0.lock())
    }
}

/// What one wave writes.
pub(crate) struct Written {
    /// In every name, so that waves do not meet.
    wave: usize,
    /// Per content that is rewritten: the n-th write makes `v{n}` its only tag.
    rewrites: Vec<Acknowledged>,
    /// New contents with the tag of the wave.
    pub(crate) counted: Acknowledged,
}

impl Written {
    pub(crate) fn new(wave: usize) -> Self {
        let rewrites = VIEW_SOURCES * CONTENTS_PER_SOURCE;
        let rewrites = (0..rewrites).map(|_| Acknowledged::default()).collect();
        Self { wave, rewrites, counted: Acknowledged::default() }
    }

    /// The tag that every new content of the wave carries.
    pub(crate) fn tag(&self) -> String {
        format!("wave-{}", self.wave)
    }

    /// The path of a content's tags.
    pub(crate) fn path(&self, source: usize, content: usize) -> String {
        let number = source * CONTENTS_PER_SOURCE + content;
        format!("/v1/content/page/rewritten-{}-{number}/tags", self.wave)
    }

    pub(crate) fn rewrites(&self, source: usize, content: usize) -> &Acknowledged {
        &self.rewrites[source * CONTENTS_PER_SOURCE + content]
    }

    /// Writes acknowledged so far, of both kinds.
    pub(crate) fn count(&self) -> usize {
        self.counted.count() + self.rewrites.iter().map(Acknowledged::count).sum::<usize>()
    }
}

/// The running writers.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start(server: SocketAddr, written: &Arc<Written>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let writer = |write: fn(&Written, &mut Client, &AtomicBool)| {
            let (written, stop) = (Arc::clone(written), Arc::clone(&stop));
            let mut client = Client::new(server).with_timeout(WRITE_TIMEOUT);
            std::thread::spawn(move || write(&written, &mut client, &stop))
        };
        let writers = vec![writer(rewrite), writer(count)];
        Self { stop, writers }
    }

    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        for writer in self.writers {
            writer.join().expect("a writer meets only refusals");
        }
    }
}

/// Sends a write until it is acknowledged; returns when that was, Unix ms.
fn write(
    client: &mut Client,
    stop: &AtomicBool,
    method: &str,
    path: &str,
    body: Option<&str>,
) -> Option<u64> {
    while !stop.load(Ordering::SeqCst) {
        // A connection that broke says as little as a refusal.
        if let Ok(answer) = client.request(method, path, &[], body) {
            match answer.status {
                200 => {
                    let owed = answer.json()["degraded"].as_array().is_none_or(Vec::is_empty);
                    return Some(if owed { now() } else { NOT_OWED });
                }
                500..600 => {}
                other => panic!("{method} {path}: {other} {}", answer.text()),
            }
        }
        pause(COUNT_INTERVAL);
    }
    None
}

fn rewrite(written: &Written, client: &mut Client, stop: &AtomicBool) {
    for n in 1.. {
        for source in 0..VIEW_SOURCES {
            for content in 0..CONTENTS_PER_SOURCE {
                let body = format!("{{\"tags\": [\"v{n}\"]}}");
                let path = written.path(source, content);
                let Some(time) = write(client, stop, "PUT", &path, Some(&body)) else { return };
                written.rewrites(source, content).push(time);
                pause(REWRITE_INTERVAL);
            }
        }
    }
}

fn count(written: &Written, client: &mut Client, stop: &AtomicBool) {
    for n in 1.. {
        let path = format!("/v1/content/page/counted-{}-{n}/tags/{}", written.wave, written.tag());
        let Some(time) = write(client, stop, "PUT", &path, None) else { return };
        // What a write's answer says of later reads concerns views.
        written.counted.push(if time == NOT_OWED { now() } else { time });
        pause(COUNT_INTERVAL);
    }
}

#[expect(clippy::disallowed_methods, reason = "the rate of a load, not a synchronisation")]
pub(crate) fn pause(interval: Duration) {
    std::thread::sleep(interval);
}
