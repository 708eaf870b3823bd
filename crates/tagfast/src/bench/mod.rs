//! The load generator: open loop (a rate, latency from the intended moment) and closed loop (as
//! fast as it goes).
//!
//! It is cheap, so that on a small machine it measures the server and not itself: one thread by
//! default, its own HTTP client, requests written into one buffer. In the open loop the intended
//! moments are handed out in order to whichever connection is free; a stalled server therefore
//! delays the following requests too, and their waiting counts.

pub mod http;
pub mod load;
pub mod pick;
pub mod report;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::http::Connection;
use self::load::{Kind, Load};
use self::pick::Rng;
use self::report::{Counts, Report};
use crate::cli::{BenchArgs, ClientArgs};
use crate::client::Client;
use crate::commands::runtime;
use crate::failure::{CommandResult, Exit, Failure};
use crate::progress::Progress;
use crate::telemetry::process::{Usage, usage};
use crate::term::Term;

/// Timers are exact to a millisecond: a request may be sent this much before its moment, and then
/// counts from its sending.
const EARLY: Duration = Duration::from_millis(1);

/// When what happens.
#[derive(Debug, Clone, Copy)]
struct Plan {
    start: Instant,
    measure_from: Instant,
    end: Instant,
    timeout: Duration,
    /// Time between two requests of one thread; `None` = closed loop.
    gap: Option<Duration>,
}

/// `bench`
pub fn run(args: &BenchArgs, term: &Term) -> CommandResult {
    let (host, address) = target(&args.url)?;
    let client =
        Client::new(&ClientArgs { url: args.url.clone(), token: args.token.clone(), timeout: 10 })?;
    let load = Arc::new(runtime()?.block_on(Load::prepare(args, &host, &client))?);
    if let Some(pid) = args.server_pid
        && usage(Some(pid)).is_none()
    {
        return Err(Failure::usage(format!("--server-pid {pid}: there is no such process")));
    }
    let threads = args.threads.min(args.connections);
    let start = Instant::now();
    let gap = args.rate.map(|rate| Duration::from_secs_f64(f64::from(threads) / f64::from(rate)));
    let measure_from = start + args.warmup;
    let plan =
        Plan { start, measure_from, end: measure_from + args.duration, timeout: args.timeout, gap };
    let workers: Vec<_> = (0..threads)
        .map(|n| {
            let load = Arc::clone(&load);
            let connections =
                args.connections / threads + u32::from(n < args.connections % threads);
            let seed = args.seed.wrapping_add(u64::from(n) << 32);
            std::thread::Builder::new()
                .name(format!("tagfast-bench-{n}"))
                .spawn(move || worker(address, connections, seed, &load, plan))
        })
        .collect::<Result<_, _>>()?;
    let watched = runtime()?.block_on(watch(args, plan, term));
    let mut counts = Counts::default();
    for worker in workers {
        let own = worker.join().map_err(|_| Failure::new("a thread of the generator failed"))??;
        counts.add(own);
    }
    let cpu = |from: Option<Usage>, to: Option<Usage>| Some(to?.cpu_seconds - from?.cpu_seconds);
    let report = Report {
        mode: args
            .rate
            .map_or_else(|| "closed loop".to_owned(), |rate| format!("open loop, {rate}/s")),
        connections: args.connections,
        seconds: args.duration.as_secs_f64(),
        server_cpu: cpu(watched.server.0, watched.server.1),
        server_rss: watched.server.1.map(|u| u.resident_bytes),
        own_cpu: cpu(watched.own.0, watched.own.1),
        counts,
    };
    if term.json {
        term.value(&report.json())?;
    } else {
        term.line(report.text())?;
    }
    if report.counts.completed == 0 {
        let hint = "is the server running? start it with: tagfast serve --demo";
        return Err(Failure::new(format!("no request to {host} was answered")).hint(hint));
    }
    Ok(if report.failed() > 0 { Exit::Partly } else { Exit::Done })
}

/// Host and address of an `http://` URL.
fn target(url: &str) -> Result<(String, SocketAddr), Failure> {
    use std::net::ToSocketAddrs as _;
    let bad = || Failure::usage(format!("--url {url}: the generator speaks http://HOST:PORT only"));
    let host = url.strip_prefix("http://").ok_or_else(bad)?.trim_end_matches('/');
    if host.is_empty() || host.contains('/') {
        return Err(bad());
    }
    let with_port = if host.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok()) {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let address = with_port.to_socket_addrs().ok().and_then(|mut a| a.next());
    Ok((host.to_owned(), address.ok_or_else(|| Failure::new(format!("cannot resolve {host}")))?))
}

struct Watched {
    server: (Option<Usage>, Option<Usage>),
    own: (Option<Usage>, Option<Usage>),
}

/// Sleeps through the plan, shows progress, and looks at the processes where measuring begins and
/// ends.
async fn watch(args: &BenchArgs, plan: Plan, term: &Term) -> Watched {
    let look = || (args.server_pid.and_then(|pid| usage(Some(pid))), usage(None));
    let whole = plan.end - plan.start;
    let progress =
        Progress::new(term, "bench", Some(u64::try_from(whole.as_millis()).unwrap_or(u64::MAX)));
    let mut first = (None, None);
    let mut measuring = false;
    loop {
        let now = Instant::now();
        if !measuring && now >= plan.measure_from {
            first = look();
            measuring = true;
        }
        if now >= plan.end {
            break;
        }
        let elapsed = now - plan.start;
        let phase = if measuring { "measuring" } else { "warming up" };
        progress.set_with(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX), phase);
        let next = if measuring { plan.end } else { plan.measure_from };
        tokio::time::sleep((next - now).min(Duration::from_millis(100))).await;
    }
    let last = look();
    progress.finish();
    Watched { server: (first.0, last.0), own: (first.1, last.1) }
}

fn worker(
    address: SocketAddr,
    connections: u32,
    seed: u64,
    load: &Arc<Load>,
    plan: Plan,
) -> Result<Counts, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let counts = Rc::new(RefCell::new(Counts::default()));
    let next = Rc::new(Cell::new(0u64));
    let local = tokio::task::LocalSet::new();
    for n in 0..connections {
        let (load, counts, next) = (Arc::clone(load), Rc::clone(&counts), Rc::clone(&next));
        let rng = Rng::new(seed.wrapping_add(u64::from(n).wrapping_mul(0x2545_f491_4f6c_dd1d)));
        local.spawn_local(async move {
            let mut loop_ = Loop { connection: Connection::new(address), rng, load, counts, plan };
            match plan.gap {
                Some(gap) => loop_.open(gap, &next).await,
                None => loop_.closed().await,
            }
        });
    }
    runtime.block_on(local);
    let mut counts = Rc::into_inner(counts)
        .ok_or_else(|| Failure::new("a task outlived its thread"))?
        .into_inner();
    if let Some(gap) = plan.gap {
        // What was due before the end and was never taken by a connection.
        let due = ((plan.end - plan.start).as_nanos() / gap.as_nanos().max(1)) as u64;
        counts.unsent = due.saturating_sub(next.get());
    }
    Ok(counts)
}

struct Loop {
    connection: Connection,
    rng: Rng,
    load: Arc<Load>,
    counts: Rc<RefCell<Counts>>,
    plan: Plan,
}

impl Loop {
    /// One request after the other until the end.
    async fn closed(&mut self) {
        let mut request = Vec::with_capacity(512);
        while Instant::now() < self.plan.end {
            self.one(None, &mut request).await;
        }
    }

    /// The next moment that nobody has taken, until the end. A connection that is behind sends at
    /// once, but gives up when a timeout has passed since the end.
    async fn open(&mut self, gap: Duration, next: &Cell<u64>) {
        let mut request = Vec::with_capacity(512);
        loop {
            let number = next.get();
            let nanos = gap.as_nanos().saturating_mul(u128::from(number));
            let due =
                self.plan.start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            if due >= self.plan.end || Instant::now() >= self.plan.end + self.plan.timeout {
                return;
            }
            next.set(number + 1);
            if due > Instant::now() + EARLY {
                tokio::time::sleep_until((due - EARLY).into()).await;
            }
            self.one(Some(due), &mut request).await;
        }
    }

    async fn one(&mut self, due: Option<Instant>, request: &mut Vec<u8>) {
        let kind = self.load.next(&mut self.rng, request);
        let sent = Instant::now();
        let from = due.map_or(sent, |due| due.min(sent));
        let answered =
            tokio::time::timeout(self.plan.timeout, self.connection.exchange(request)).await;
        let done = Instant::now();
        let refused = matches!(answered, Ok(Err(_)));
        if answered.is_err() {
            self.connection.abandon();
        }
        self.count(kind, from, done, due.unwrap_or(done), answered.ok());
        if refused {
            // A server that is away must not make the generator spin.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Counts a request that belongs to the moment `at`: in the open loop the one it was due at,
    /// else the one it ended at. `None` = no answer in time.
    fn count(
        &self,
        kind: Kind,
        from: Instant,
        done: Instant,
        at: Instant,
        answered: Option<std::io::Result<http::Answer>>,
    ) {
        let within = |moment: Instant| moment >= self.plan.measure_from && moment < self.plan.end;
        let mut counts = self.counts.borrow_mut();
        if within(done) && matches!(answered, Some(Ok(_))) {
            counts.completed += 1;
        }
        if !within(at) {
            return;
        }
        match answered {
            Some(Ok(answer)) => {
                *counts.statuses.entry(answer.status).or_default() += 1;
                counts.bytes += answer.bytes as u64;
                counts.degraded += u64::from(answer.degraded);
                counts.record(kind, done - from);
            }
            Some(Err(error)) => *counts.broken.entry(error.kind().to_string()).or_default() += 1,
            None => {
                counts.timeouts += 1;
                counts.record(kind, done - from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_http_urls_are_taken() {
        assert_eq!(target("http://127.0.0.1:7070/").unwrap().0, "127.0.0.1:7070");
        assert_eq!(target("http://127.0.0.1").unwrap().1.port(), 80);
        for bad in ["https://x:1", "127.0.0.1:1", "http://", "http://x:1/path"] {
            assert!(target(bad).is_err(), "{bad}");
        }
    }

    /// A server that answers at once, but stalls for `stall` when `stalls_at` requests were
    /// answered.
    fn stalling_server(stalls_at: u32, stall: Duration) -> (SocketAddr, tokio::runtime::Runtime) {
        let runtime = runtime().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let mut answered = 0;
            while stream.readable().await.is_ok() {
                match stream.try_read(&mut request) {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(_) => continue,
                }
                if answered == stalls_at {
                    tokio::time::sleep(stall).await;
                }
                answered += 1;
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await.unwrap();
            }
        });
        (address, runtime)
    }

    fn measure(gap: Option<Duration>, timeout: Duration) -> Counts {
        let (address, _server) = stalling_server(20, Duration::from_millis(400));
        let args = <Args as clap::Parser>::parse_from([
            "bench",
            "--path",
            "/hello",
            "--url",
            "http://127.0.0.1:1",
        ])
        .bench;
        let client =
            Client::new(&ClientArgs { url: args.url.clone(), token: None, timeout: 1 }).unwrap();
        let load =
            Arc::new(runtime().unwrap().block_on(Load::prepare(&args, "h", &client)).unwrap());
        let start = Instant::now();
        let end = start + Duration::from_millis(800);
        worker(address, 1, 1, &load, Plan { start, measure_from: start, end, timeout, gap })
            .unwrap()
    }

    #[derive(clap::Parser)]
    struct Args {
        #[command(flatten)]
        bench: BenchArgs,
    }

    #[test]
    fn the_open_loop_counts_the_waiting_that_a_stall_causes() {
        let counts = measure(Some(Duration::from_millis(5)), Duration::from_secs(5));
        let latencies = &counts.latencies[0].1;
        assert_eq!((latencies.len(), counts.unsent), (160, 0));
        // Of 160 requests, one every 5 ms, the stall delays the 80 that were due during it, by 200
        // ms on average.
        let late = latencies.count_between(50_000_000, u64::MAX);
        assert!((60..=110).contains(&late), "{late} of 160 were late");
        assert!(latencies.max() >= 390_000_000);
    }

    #[test]
    fn the_closed_loop_sees_the_stall_once() {
        let counts = measure(None, Duration::from_secs(5));
        let latencies = &counts.latencies[0].1;
        assert_eq!(latencies.count_between(390_000_000, u64::MAX), 1);
        assert!(latencies.len() > 100, "{}", latencies.len());
    }

    #[test]
    fn a_timeout_is_counted_and_the_rest_was_never_sent() {
        let counts = measure(Some(Duration::from_millis(5)), Duration::from_millis(100));
        // The stalled connection is abandoned; the server takes no second one.
        assert!(counts.timeouts >= 1 && counts.unsent > 0, "{} {}", counts.timeouts, counts.unsent);
    }
}
