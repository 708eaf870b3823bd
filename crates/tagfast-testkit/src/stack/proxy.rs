//! The fault proxy: a TCP forwarder whose links can be cut, slowed down, reset or garbled.
//!
//! Clients reach every server of the stack through a port of the proxy, so that a fault of a link
//! is a change of its [`Mode`]. Two threads per connection copy bytes and check the mode before
//! each write. A fault affects bytes in flight too: a cut link holds them and delivers them once it
//! heals, like a network that retransmits.
//!
//! How it fails: a port that cannot be bound is an error of [`Proxy::start`]; when the server
//! refuses a connection, the client sees a reset.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use parking_lot::{Condvar, Mutex};
use rustix::net::sockopt::set_socket_linger;
use serde::{Deserialize, Serialize};

/// How a link behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Everything passes.
    #[default]
    Pass,
    /// Every chunk is delayed, in both directions.
    Slow {
        /// Delay in milliseconds.
        ms: u64,
    },
    /// Nothing passes and no connection ends, as in a network that drops packets. New connections
    /// get no answer.
    Cut,
    /// Requests arrive, answers do not: a server that accepts and never answers.
    Hang,
    /// Connections are reset, new ones immediately.
    Reset,
    /// Connections are reset and the port is closed.
    Refuse,
    /// Answers are replaced by random bytes.
    Garbage,
}

/// A link: the port on which the proxy listens, and the server behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Name of the link, for faults.
    pub name: String,
    /// Address on which the proxy listens.
    pub listen: SocketAddr,
    /// Address of the server.
    pub to: SocketAddr,
}

#[derive(Debug)]
struct Target {
    link: Link,
    mode: Mutex<Mode>,
    changed: Condvar,
    /// Notified when the port is open again.
    opened: Condvar,
    connections: Mutex<Vec<Weak<ProxiedConnection>>>,
    listener: Mutex<Option<Arc<TcpListener>>>,
}

/// A connection through a link. It is closed once both of its threads have dropped it.
struct ProxiedConnection {
    client: TcpStream,
    server: TcpStream,
    /// Whether it must end with a reset instead of a regular close.
    reset: AtomicBool,
}

impl ProxiedConnection {
    /// Ends both threads; the close that follows is a reset. Shutting down the writing side would
    /// close regularly first.
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

impl Target {
    /// Waits until a chunk may be written; returns the mode in which to write it.
    fn admit(&self, direction: Direction) -> Mode {
        let mut mode = self.mode.lock();
        loop {
            let blocked =
                *mode == Mode::Cut || (*mode == Mode::Hang && direction == Direction::ToClient);
            if !blocked {
                return *mode;
            }
            self.changed.wait(&mut mode);
        }
    }

    fn set(&self, new: Mode) {
        *self.mode.lock() = new;
        self.changed.notify_all();
        if matches!(new, Mode::Reset | Mode::Refuse) {
            self.connections
                .lock()
                .drain(..)
                .filter_map(|weak| weak.upgrade())
                .for_each(|connection| connection.reset());
        }
        if new == Mode::Refuse {
            if let Some(listener) = self.listener.lock().take() {
                // Wakes the thread that waits in `accept`, which then closes the socket.
                let _ = rustix::net::shutdown(&*listener, rustix::net::Shutdown::Both);
            }
            return;
        }
        // The mode is in effect when this returns: the port is open again.
        let mut listener = self.listener.lock();
        while listener.is_none() {
            self.opened.wait(&mut listener);
        }
    }

    fn track(&self, connection: &Arc<ProxiedConnection>) {
        let mut connections = self.connections.lock();
        connections.retain(|weak| weak.strong_count() > 0);
        connections.push(Arc::downgrade(connection));
    }
}

/// Ends a connection that was just accepted, with a reset.
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

/// A command on a control connection.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ProxyCommand {
    Set { link: String, mode: Mode },
    Add { link: Link },
}

impl Proxy {
    /// Starts all links and a control port.
    ///
    /// # Errors
    /// A port cannot be bound.
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

    /// Address for [`ProxyControl`].
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
        connections: Mutex::default(),
        listener: Mutex::new(Some(Arc::new(listener))),
    });
    targets.lock().insert(target.link.name.clone(), Arc::clone(&target));
    std::thread::Builder::new()
        .name(format!("proxy-{}", target.link.name))
        .spawn(move || accept(&target))?;
    Ok(())
}

fn serve_control(targets: &Mutex<BTreeMap<String, Arc<Target>>>, stream: TcpStream) {
    let Ok(mut answers) = stream.try_clone() else { return };
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let done = match serde_json::from_str::<ProxyCommand>(&line) {
            Ok(ProxyCommand::Set { link, mode }) => match targets.lock().get(&link) {
                Some(target) => {
                    target.set(mode);
                    Ok(())
                }
                None => Err(anyhow!("no link is named {link}")),
            },
            Ok(ProxyCommand::Add { link }) => add(targets, link),
            Err(error) => Err(anyhow!("not a command: {error}")),
        };
        let answer = done.map_or_else(|error| format!("{error:#}"), |()| "ok".to_owned());
        if writeln!(answers, "{}", answer.replace('\n', " ")).is_err() {
            return;
        }
    }
}

/// Accepts connections until the process ends; closes the port in mode [`Mode::Refuse`].
fn accept(target: &Arc<Target>) {
    loop {
        let listener = target.listener.lock().clone();
        let Some(listener) = listener else {
            let mut mode = target.mode.lock();
            while *mode == Mode::Refuse {
                target.changed.wait(&mut mode);
            }
            drop(mode);
            match TcpListener::bind(target.link.listen) {
                Ok(listener) => {
                    *target.listener.lock() = Some(Arc::new(listener));
                    target.opened.notify_all();
                }
                Err(_) => delay(10),
            }
            continue;
        };
        let accepted = listener.accept();
        drop(listener);
        let Ok((client, _)) = accepted else {
            // Out of file descriptors, or closed: avoid a busy loop.
            delay(1);
            continue;
        };
        if target.mode.lock().eq(&Mode::Reset) {
            refuse(client);
            continue;
        }
        let target = Arc::clone(target);
        std::thread::spawn(move || {
            // A cut link does not even reveal whether the server is up.
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
    let connection = Arc::new(ProxiedConnection { client, server, reset: AtomicBool::new(false) });
    target.track(&connection);
    let back = (Arc::clone(target), Arc::clone(&connection));
    std::thread::spawn(move || pump(&back.0, &back.1, Direction::ToClient));
    pump(target, &connection, Direction::ToServer);
}

/// Copies one direction until either side closes.
fn pump(target: &Target, connection: &ProxiedConnection, direction: Direction) {
    let mut buffer = vec![0; 64 * 1024];
    let (mut from, mut to) = match direction {
        Direction::ToServer => (&connection.client, &connection.server),
        Direction::ToClient => (&connection.server, &connection.client),
    };
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => {
                connection.reset();
                return;
            }
        };
        match target.admit(direction) {
            Mode::Slow { ms } => delay(ms),
            Mode::Garbage if direction == Direction::ToClient => garble(&mut buffer[..read]),
            Mode::Pass | Mode::Garbage | Mode::Cut | Mode::Hang | Mode::Reset | Mode::Refuse => {}
        }
        if connection.reset.load(Ordering::SeqCst) {
            return;
        }
        if to.write_all(&buffer[..read]).is_err() {
            connection.reset();
            return;
        }
    }
    target.admit(direction);
    if !connection.reset.load(Ordering::SeqCst) {
        let _ = to.shutdown(Shutdown::Write);
    }
}

#[expect(clippy::disallowed_methods, reason = "a slow link is slow in real time")]
fn delay(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

fn garble(bytes: &mut [u8]) {
    fastrand::Rng::with_seed(7).fill(bytes);
}

/// Sends commands to a proxy, in this process or another one.
#[derive(Debug, Clone, Copy)]
pub struct ProxyControl(pub SocketAddr);

impl ProxyControl {
    /// Changes the mode of a link; in effect when it returns.
    pub fn set(&self, link: &str, mode: Mode) -> Result<()> {
        self.send(&ProxyCommand::Set { link: link.to_owned(), mode })
    }

    /// Adds a link.
    pub fn add(&self, link: Link) -> Result<()> {
        self.send(&ProxyCommand::Add { link })
    }

    fn send(&self, command: &ProxyCommand) -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&self.0, Duration::from_secs(5))
            .with_context(|| format!("the fault proxy does not answer on {}", self.0))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        writeln!(stream, "{}", serde_json::to_string(command)?)?;
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

    /// An echo server and a link to it; returns the link's address and its control.
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
        let listen = super::super::ports::free_ports("127.0.0.1".parse().expect("an address"), 1)
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

    fn ping(stream: &TcpStream) -> std::io::Result<Vec<u8>> {
        let (mut writing, mut reading) = (stream, stream);
        writing.write_all(b"ping")?;
        let mut answer = [0; 4];
        reading.read_exact(&mut answer)?;
        Ok(answer.to_vec())
    }

    #[test]
    fn it_passes_bytes_both_ways() {
        let (address, _) = echo();
        assert_eq!(ping(&client(address, 5000)).expect("an answer"), b"ping");
    }

    #[test]
    fn a_cut_link_is_silent_and_delivers_after_it_heals() {
        for mode in [Mode::Cut, Mode::Hang] {
            let (address, control) = echo();
            let stream = client(address, 200);
            ping(&stream).expect("an answer");
            control.set("echo", mode).expect("cut");
            let error = ping(&stream).expect_err("no answer comes");
            assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
            let late = client(address, 200);
            assert!(ping(&late).is_err(), "{mode:?}: a new connection gets no answer either");
            control.set("echo", Mode::Pass).expect("healed");
            stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            let mut answer = [0; 4];
            (&stream).read_exact(&mut answer).expect("the held bytes arrive");
            assert_eq!(&answer, b"ping");
        }
    }

    #[test]
    fn a_reset_ends_old_and_new_connections() {
        let (address, control) = echo();
        let stream = client(address, 5000);
        ping(&stream).expect("an answer");
        control.set("echo", Mode::Reset).expect("reset");
        // A reader sees the reset itself, not an end of the stream.
        let error = (&stream).read(&mut [0; 4]).expect_err("no regular close");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(TcpStream::connect(address).and_then(|s| ping(&s)).is_err());
        control.set("echo", Mode::Pass).expect("healed");
        assert!(ping(&client(address, 5000)).is_ok());
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
        assert_eq!(ping(&client(address, 5000)).expect("it answers immediately"), b"ping");
    }

    #[test]
    fn slow_is_slow_and_garbage_is_garbage() {
        let (address, control) = echo();
        control.set("echo", Mode::Slow { ms: 100 }).expect("slow");
        let started = std::time::Instant::now();
        ping(&client(address, 5000)).expect("an answer");
        assert!(started.elapsed() >= Duration::from_millis(200), "each direction waits");
        control.set("echo", Mode::Garbage).expect("garbage");
        assert_ne!(ping(&client(address, 5000)).expect("bytes"), b"ping");
        assert!(control.set("unknown", Mode::Cut).is_err());
    }
}
