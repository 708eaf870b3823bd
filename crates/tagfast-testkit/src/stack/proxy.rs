//! The fault proxy: a TCP forwarder whose links can be cut, slowed, reset or made to lie.
//!
//! Every server of the stack is known by its proxy's port, so a fault of a link is a change of
//! [`Mode`]. Two threads a connection copy bytes and look at the mode before each write. A fault
//! acts on what is under way too: a cut link keeps the bytes it holds and hands them over when it
//! heals, as a network that retransmits does.
//!
//! How it fails: a port that cannot be bound is an error at [`Proxy::start`]; a server that refuses
//! is shown to the client as a reset connection.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::net::sockopt::set_socket_linger;
use serde::{Deserialize, Serialize};

/// How a link behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// As it should.
    #[default]
    Pass,
    /// Every chunk waits this long, in either direction.
    Slow {
        /// Milliseconds.
        ms: u64,
    },
    /// Nothing passes, nothing ends: a network that swallows packets. New connections are not
    /// answered.
    Cut,
    /// Requests arrive, answers do not: a server that accepts and never answers.
    Hang,
    /// Connections are reset, new ones at once.
    Reset,
    /// Connections are reset and nobody listens.
    Refuse,
    /// Answers are replaced by bytes that mean nothing.
    Garbage,
}

/// A link: where it listens and where it leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its name, for faults.
    pub name: String,
    /// The port that everybody knows.
    pub listen: SocketAddr,
    /// The server.
    pub to: SocketAddr,
}

#[derive(Debug)]
struct Target {
    link: Link,
    mode: Mutex<Mode>,
    changed: Condvar,
    /// Told when the port is open again.
    opened: Condvar,
    pairs: Mutex<Vec<Weak<Pair>>>,
    listener: Mutex<Option<Arc<TcpListener>>>,
}

/// A connection through a link. Dropped by both of its pumps, it is closed.
struct Pair {
    client: TcpStream,
    server: TcpStream,
    /// It ends in a reset, not in a goodbye.
    reset: AtomicBool,
}

impl Pair {
    /// Lets both pumps end; the close that follows is a reset. A shutdown of the writing side would
    /// say goodbye first.
    fn reset(&self) {
        self.reset.store(true, Ordering::SeqCst);
        for stream in [&self.client, &self.server] {
            let _ = set_socket_linger(stream, Some(Duration::ZERO));
            let _ = stream.shutdown(Shutdown::Read);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Target {
    /// Waits until a chunk may be written; how it is to be treated.
    fn admit(&self, direction: Direction) -> Mode {
        let mut mode = lock(&self.mode);
        loop {
            let waits =
                *mode == Mode::Cut || (*mode == Mode::Hang && direction == Direction::ToClient);
            if !waits {
                return *mode;
            }
            mode = self.changed.wait(mode).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn set(&self, new: Mode) {
        *lock(&self.mode) = new;
        self.changed.notify_all();
        if matches!(new, Mode::Reset | Mode::Refuse) {
            lock(&self.pairs)
                .drain(..)
                .filter_map(|weak| weak.upgrade())
                .for_each(|pair| pair.reset());
        }
        if new == Mode::Refuse {
            if let Some(listener) = lock(&self.listener).take() {
                // Wakes the thread that waits in accept; it closes the socket.
                let _ = rustix::net::shutdown(&*listener, rustix::net::Shutdown::Both);
            }
            return;
        }
        // In force when this returns: a port that was refused is open again.
        let mut listener = lock(&self.listener);
        while listener.is_none() {
            listener = self.opened.wait(listener).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn remember(&self, pair: &Arc<Pair>) {
        let mut pairs = lock(&self.pairs);
        pairs.retain(|weak| weak.strong_count() > 0);
        pairs.push(Arc::downgrade(pair));
    }
}

/// Ends a connection that was just accepted with a reset instead of a goodbye.
fn refuse(stream: TcpStream) {
    let _ = set_socket_linger(&stream, Some(Duration::ZERO));
    drop(stream);
}

/// A running proxy; its threads end with the process.
#[derive(Debug)]
pub struct Proxy {
    targets: Arc<Mutex<BTreeMap<String, Arc<Target>>>>,
    control: SocketAddr,
}

/// What a control connection may ask.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Order {
    Set { link: String, mode: Mode },
    Add { link: Link },
}

impl Proxy {
    /// Starts all links and a control port.
    pub fn start(control: SocketAddr, links: Vec<Link>) -> Result<Self> {
        let listener = TcpListener::bind(control)
            .with_context(|| format!("the proxy cannot listen on {control}"))?;
        let proxy = Self { targets: Arc::default(), control: listener.local_addr()? };
        for link in links {
            add(&proxy.targets, link)?;
        }
        let targets = Arc::clone(&proxy.targets);
        std::thread::Builder::new().name("proxy-control".to_owned()).spawn(move || {
            for stream in listener.incoming().flatten() {
                let targets = Arc::clone(&targets);
                std::thread::spawn(move || serve_control(&targets, stream));
            }
        })?;
        Ok(proxy)
    }

    /// Where [`ProxyControl`] finds it.
    pub fn control(&self) -> SocketAddr {
        self.control
    }
}

fn add(targets: &Mutex<BTreeMap<String, Arc<Target>>>, link: Link) -> Result<()> {
    let listener = TcpListener::bind(link.listen)
        .with_context(|| format!("the proxy of {} cannot listen on {}", link.name, link.listen))?;
    let target = Arc::new(Target {
        link,
        mode: Mutex::default(),
        changed: Condvar::new(),
        opened: Condvar::new(),
        pairs: Mutex::default(),
        listener: Mutex::new(Some(Arc::new(listener))),
    });
    lock(targets).insert(target.link.name.clone(), Arc::clone(&target));
    std::thread::Builder::new()
        .name(format!("proxy-{}", target.link.name))
        .spawn(move || accept(&target))?;
    Ok(())
}

fn serve_control(targets: &Mutex<BTreeMap<String, Arc<Target>>>, stream: TcpStream) {
    let Ok(mut answers) = stream.try_clone() else { return };
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let done = match serde_json::from_str::<Order>(&line) {
            Ok(Order::Set { link, mode }) => match lock(targets).get(&link) {
                Some(target) => {
                    target.set(mode);
                    Ok(())
                }
                None => Err(anyhow!("no link is named {link}")),
            },
            Ok(Order::Add { link }) => add(targets, link),
            Err(error) => Err(anyhow!("not an order: {error}")),
        };
        let answer = done.map_or_else(|error| format!("{error:#}"), |()| "ok".to_owned());
        if writeln!(answers, "{}", answer.replace('\n', " ")).is_err() {
            return;
        }
    }
}

/// Takes connections for as long as the process lives; closes the port while it refuses.
fn accept(target: &Arc<Target>) {
    loop {
        let listener = lock(&target.listener).clone();
        let Some(listener) = listener else {
            let mut mode = lock(&target.mode);
            while *mode == Mode::Refuse {
                mode = target.changed.wait(mode).unwrap_or_else(PoisonError::into_inner);
            }
            drop(mode);
            match TcpListener::bind(target.link.listen) {
                Ok(listener) => {
                    *lock(&target.listener) = Some(Arc::new(listener));
                    target.opened.notify_all();
                }
                Err(_) => delay(10),
            }
            continue;
        };
        let accepted = listener.accept();
        drop(listener);
        let Ok((client, _)) = accepted else {
            // Out of file descriptors, or closed: not a reason to spin.
            delay(1);
            continue;
        };
        if lock(&target.mode).eq(&Mode::Reset) {
            refuse(client);
            continue;
        }
        let target = Arc::clone(target);
        std::thread::spawn(move || {
            // A cut link does not even say that the server is there.
            while target.admit(Direction::ToServer) == Mode::Cut {}
            connect(&target, client);
        });
    }
}

fn connect(target: &Arc<Target>, client: TcpStream) {
    let Ok(server) = TcpStream::connect_timeout(&target.link.to, Duration::from_secs(5)) else {
        refuse(client);
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let pair = Arc::new(Pair { client, server, reset: AtomicBool::new(false) });
    target.remember(&pair);
    let back = (Arc::clone(target), Arc::clone(&pair));
    std::thread::spawn(move || pump(&back.0, &back.1, Direction::ToClient));
    pump(target, &pair, Direction::ToServer);
}

/// Copies one direction until either side ends.
fn pump(target: &Target, pair: &Pair, direction: Direction) {
    let mut buffer = vec![0; 64 * 1024];
    let (mut from, mut to) = match direction {
        Direction::ToServer => (&pair.client, &pair.server),
        Direction::ToClient => (&pair.server, &pair.client),
    };
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => {
                pair.reset();
                return;
            }
        };
        match target.admit(direction) {
            Mode::Slow { ms } => delay(ms),
            Mode::Garbage if direction == Direction::ToClient => garble(&mut buffer[..read]),
            Mode::Pass | Mode::Garbage | Mode::Cut | Mode::Hang | Mode::Reset | Mode::Refuse => {}
        }
        if pair.reset.load(Ordering::SeqCst) {
            return;
        }
        if to.write_all(&buffer[..read]).is_err() {
            pair.reset();
            return;
        }
    }
    target.admit(direction);
    if !pair.reset.load(Ordering::SeqCst) {
        let _ = to.shutdown(Shutdown::Write);
    }
}

#[expect(clippy::disallowed_methods, reason = "a slow link is slow in real time")]
fn delay(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

fn garble(bytes: &mut [u8]) {
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    for byte in bytes {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (seed >> 33) as u8;
    }
}

/// Gives orders to a proxy, also to one in another process.
#[derive(Debug, Clone, Copy)]
pub struct ProxyControl(pub SocketAddr);

impl ProxyControl {
    /// Changes how a link behaves; in force when it returns.
    pub fn set(&self, link: &str, mode: Mode) -> Result<()> {
        self.order(&Order::Set { link: link.to_owned(), mode })
    }

    /// Adds a link.
    pub fn add(&self, link: Link) -> Result<()> {
        self.order(&Order::Add { link })
    }

    fn order(&self, order: &Order) -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&self.0, Duration::from_secs(5))
            .with_context(|| format!("the fault proxy does not answer on {}", self.0))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        writeln!(stream, "{}", serde_json::to_string(order)?)?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        match answer.trim() {
            "ok" => Ok(()),
            problem => bail!("the fault proxy refused: {problem}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets, a link to it, and who commands the link.
    fn echo() -> (SocketAddr, ProxyControl) {
        let server = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let to = server.local_addr().expect("an address");
        std::thread::spawn(move || {
            for stream in server.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut reading = &stream;
                    let mut buffer = [0; 1024];
                    while let Ok(n @ 1..) = reading.read(&mut buffer) {
                        if (&stream).write_all(&buffer[..n]).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        let listen = super::super::host::free_ports("127.0.0.1".parse().expect("an address"), 1)
            .expect("a port")[0];
        let proxy = Proxy::start(
            "127.0.0.1:0".parse().expect("an address"),
            vec![Link { name: "echo".to_owned(), listen, to }],
        )
        .expect("the proxy starts");
        (listen, ProxyControl(proxy.control()))
    }

    fn client(address: SocketAddr, wait: u64) -> TcpStream {
        let stream = TcpStream::connect(address).expect("connects");
        stream.set_read_timeout(Some(Duration::from_millis(wait))).expect("a timeout");
        stream
    }

    fn ask(stream: &TcpStream) -> std::io::Result<Vec<u8>> {
        let (mut writing, mut reading) = (stream, stream);
        writing.write_all(b"ping")?;
        let mut answer = [0; 4];
        reading.read_exact(&mut answer)?;
        Ok(answer.to_vec())
    }

    #[test]
    fn it_passes_bytes_both_ways() {
        let (address, _) = echo();
        assert_eq!(ask(&client(address, 5000)).expect("an answer"), b"ping");
    }

    #[test]
    fn a_cut_link_says_nothing_and_delivers_after_it_heals() {
        for mode in [Mode::Cut, Mode::Hang] {
            let (address, control) = echo();
            let stream = client(address, 200);
            ask(&stream).expect("an answer");
            control.set("echo", mode).expect("cut");
            let error = ask(&stream).expect_err("no answer comes");
            assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
            let late = client(address, 200);
            assert!(ask(&late).is_err(), "{mode:?}: a new connection gets no answer either");
            control.set("echo", Mode::Pass).expect("healed");
            stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            let mut answer = [0; 4];
            (&stream).read_exact(&mut answer).expect("what was held comes");
            assert_eq!(&answer, b"ping");
        }
    }

    #[test]
    fn a_reset_ends_old_and_new_connections() {
        let (address, control) = echo();
        let stream = client(address, 5000);
        ask(&stream).expect("an answer");
        control.set("echo", Mode::Reset).expect("reset");
        // Not an end of the stream: somebody who reads sees the reset itself.
        let error = (&stream).read(&mut [0; 4]).expect_err("no goodbye");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(TcpStream::connect(address).and_then(|s| ask(&s)).is_err());
        control.set("echo", Mode::Pass).expect("healed");
        assert!(ask(&client(address, 5000)).is_ok());
    }

    #[test]
    fn a_refusing_link_has_no_listener_until_it_heals() {
        let (address, control) = echo();
        control.set("echo", Mode::Refuse).expect("refuse");
        crate::wait_for_condition("the port is closed", Duration::from_secs(5), || {
            match TcpStream::connect(address) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        control.set("echo", Mode::Pass).expect("healed");
        assert_eq!(ask(&client(address, 5000)).expect("it answers at once"), b"ping");
    }

    #[test]
    fn slow_is_slow_and_garbage_is_garbage() {
        let (address, control) = echo();
        control.set("echo", Mode::Slow { ms: 100 }).expect("slow");
        let started = std::time::Instant::now();
        ask(&client(address, 5000)).expect("an answer");
        assert!(started.elapsed() >= Duration::from_millis(200), "each direction waits");
        control.set("echo", Mode::Garbage).expect("garbage");
        assert_ne!(ask(&client(address, 5000)).expect("bytes"), b"ping");
        assert!(control.set("nobody", Mode::Cut).is_err());
    }
}
