//! A TCP proxy between walsweep and a server, with every fault that a network has.
//!
//! It runs on a thread of its own, so that a test that waits for a command of the program does not
//! hold it up. Whatever is switched holds when the call returns: no byte that arrives later gets
//! through as before.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as sync_mpsc;
use std::thread;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use walsweep_stage::throwaway::free_port;

use super::PATIENCE;

/// How long a connection that was cut may take to be closed by both ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// The treatment of bytes and of new connections. One at a time; a new one ends the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Everything gets through.
    Nothing,
    /// Connections are taken and kept, bytes stay where they are until the fault ends.
    BlackHole(Way),
    /// Every piece waits this long, in both directions.
    Delay(Duration),
    /// So many bytes a second, in each direction.
    Rate(u64),
    /// A connection is closed once so many bytes have passed, from both ends together: from now on,
    /// or from its beginning.
    CutAfter(u64),
    /// Like [`Fault::CutAfter`], but then a connection falls silent instead of closing.
    SilentAfter(u64),
    /// Nobody listens. Connections that are open go on.
    Refuse,
}

/// Which bytes are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Bytes that the client sends.
    ToServer,
    /// Bytes that the server sends.
    ToClient,
    /// All.
    Both,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// In order, at both ends.
    Fin,
    /// At once, at both ends.
    Rst,
}

#[derive(Debug)]
enum Command {
    Set(Fault),
    Retarget(SocketAddr),
    EndAll(End),
}

/// The state that every connection looks at before it passes anything on.
#[derive(Clone, Copy, Debug)]
struct Link {
    fault: Fault,
    /// How many faults there were: tells two equal ones apart.
    serial: u64,
    /// How often all connections were ended, and how the last time.
    ended: (u64, End),
}

/// Connections, as they are counted.
#[derive(Debug, Default)]
struct Counts {
    accepted: AtomicU64,
    open: AtomicU64,
}

/// A proxy on a port of its own. Its connections end with it.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    commands: mpsc::Sender<(Command, sync_mpsc::Sender<()>)>,
    counts: Arc<Counts>,
}

impl Proxy {
    /// A proxy in front of `target`, without a fault.
    pub(crate) fn start(target: SocketAddr) -> Proxy {
        let port = free_port().unwrap();
        let (commands, received) = mpsc::channel(16);
        let counts = Arc::<Counts>::default();
        let shared = Arc::clone(&counts);
        let (listens, listening) = sync_mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            tokio::task::LocalSet::new().block_on(&runtime.unwrap(), async move {
                let listener = bind(port).await;
                listens.send(()).unwrap();
                serve(listener, received, target, shared).await;
            });
        });
        listening.recv().unwrap();
        Proxy { port, commands, counts }
    }

    /// Starts a proxy in front of a port of 127.0.0.1, without a fault.
    pub(crate) fn to_port(port: u16) -> Proxy {
        Proxy::start(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// The port of 127.0.0.1 that it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A server's URL with this proxy's port instead of the server's.
    pub(crate) fn url(&self, server: &str, server_port: u16) -> String {
        let ours = server.replace(&format!(":{server_port}"), &format!(":{}", self.port));
        assert_ne!(ours, server, "the URL names the server's port");
        ours
    }

    /// Lets this happen from now on, to the connections that are open as to new ones.
    pub(crate) fn set(&self, fault: Fault) {
        self.order(Command::Set(fault));
    }

    /// Closes every connection that is open, at both ends, in order.
    pub(crate) fn cut(&self) {
        self.order(Command::EndAll(End::Fin));
    }

    /// Resets every connection that is open, at both ends.
    pub(crate) fn reset(&self) {
        self.order(Command::EndAll(End::Rst));
    }

    /// Leads new connections to another server. Those that are open stay until they are ended.
    pub(crate) fn retarget(&self, target: SocketAddr) {
        self.order(Command::Retarget(target));
    }

    /// How many connections it has taken.
    pub(crate) fn accepted(&self) -> u64 {
        self.counts.accepted.load(Ordering::SeqCst)
    }

    /// How many of them are open.
    pub(crate) fn open(&self) -> u64 {
        self.counts.open.load(Ordering::SeqCst)
    }

    fn order(&self, command: Command) {
        let (done, is_done) = sync_mpsc::channel();
        self.commands.try_send((command, done)).expect("the proxy runs");
        is_done.recv_timeout(PATIENCE).expect("the proxy runs");
    }
}

/// Listens. A process that another thread is starting may still have the socket from before.
async fn bind(port: u16) -> TcpListener {
    let deadline = Instant::now() + PATIENCE / 2;
    loop {
        match TcpListener::bind(("127.0.0.1", port)).await {
            Ok(listener) => return listener,
            Err(error) => assert!(Instant::now() < deadline, "listen on {port}: {error}"),
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// Takes connections and orders until nobody can give any more.
async fn serve(
    listener: TcpListener,
    mut commands: mpsc::Receiver<(Command, sync_mpsc::Sender<()>)>,
    mut target: SocketAddr,
    counts: Arc<Counts>,
) {
    let port = listener.local_addr().unwrap().port();
    let mut listener = Some(listener);
    let link = watch::Sender::new(Link { fault: Fault::Nothing, serial: 0, ended: (0, End::Fin) });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            command = commands.recv() => {
                let Some((command, done)) = command else { return };
                match command {
                    Command::Set(Fault::Refuse) => listener = None,
                    Command::Set(_) if listener.is_none() => listener = Some(bind(port).await),
                    _ => {}
                }
                match command {
                    Command::Set(fault) => link.send_modify(|link| {
                        (link.fault, link.serial) = (fault, link.serial + 1);
                    }),
                    Command::EndAll(end) => link.send_modify(|link| {
                        link.ended = (link.ended.0 + 1, end);
                    }),
                    Command::Retarget(address) => target = address,
                }
                done.send(()).expect("who asked waits");
            }
            Some((client, _)) = accept(listener.as_ref()) => {
                counts.accepted.fetch_add(1, Ordering::SeqCst);
                counts.open.fetch_add(1, Ordering::SeqCst);
                let relayed = relay(client, target, link.subscribe());
                let counts = Arc::clone(&counts);
                connections.spawn_local(async move {
                    relayed.await;
                    counts.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
            Some(ended) = connections.join_next() => ended.unwrap(),
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> Option<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await.ok(),
        None => std::future::pending().await,
    }
}

/// One connection, from its beginning to its end.
async fn relay(mut client: TcpStream, target: SocketAddr, link: watch::Receiver<Link>) {
    let ended = link.borrow().ended.0;
    let mut ends = link.clone();
    let mut open = link.clone();
    let server = tokio::select! {
        // A black hole swallows the first packet, too.
        server = async {
            open.wait_for(|link| !holds(link.fault, Way::ToServer)).await.ok()?;
            TcpStream::connect(target).await.ok()
        } => server,
        _ = ends.wait_for(|link| link.ended.0 != ended) => None,
    };
    let Some(mut server) = server else { return reset(&client) };
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    let tally = Tally { serial: Cell::new(0), passed: Cell::new(0) };
    let end = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let there = pump(from_client, to_server, (Way::ToServer, link.clone()), &tally);
        let back = pump(from_server, to_client, (Way::ToClient, link.clone()), &tally);
        tokio::select! {
            biased;
            link = ends.wait_for(|link| link.ended.0 != ended) => {
                link.map_or(End::Rst, |link| link.ended.1)
            }
            both = async { tokio::try_join!(there, back) } => both.err().unwrap_or(End::Fin),
        }
    };
    match end {
        End::Rst => {
            reset(&client);
            reset(&server);
        }
        End::Fin => {
            // Closing with bytes unread would reset.
            drop(timeout(FAREWELL, async { tokio::join!(say_bye(client), say_bye(server)) }).await);
        }
    }
}

/// Lets the end of this stream be a reset.
fn reset(stream: &TcpStream) {
    // It may have been reset by its other end.
    drop(SockRef::from(stream).set_linger(Some(Duration::ZERO)));
}

/// Closes this end and waits for the other.
async fn say_bye(mut stream: TcpStream) {
    let mut waste = [0; 4096];
    drop(stream.shutdown().await);
    while stream.read(&mut waste).await.is_ok_and(|count| count > 0) {}
}

/// Bytes that passed since a fault began, in both directions.
struct Tally {
    serial: Cell<u64>,
    passed: Cell<u64>,
}

impl Tally {
    fn passed(&self, serial: u64) -> u64 {
        if self.serial.replace(serial) != serial {
            self.passed.set(0);
        }
        self.passed.get()
    }
}

fn holds(fault: Fault, way: Way) -> bool {
    matches!(fault, Fault::BlackHole(held) if held == Way::Both || held == way)
}

/// One direction: passes bytes on until their source ends, which it passes on, too.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    (way, mut link): (Way, watch::Receiver<Link>),
    tally: &Tally,
) -> Result<(), End> {
    let mut buffer = vec![0; 65_536];
    loop {
        open(&mut link, way).await?;
        let count = tokio::select! {
            _ = link.changed() => continue,
            count = from.read(&mut buffer) => count.map_err(|_reset| End::Rst)?,
        };
        if count == 0 {
            open(&mut link, way).await?;
            to.shutdown().await.map_err(|_gone| End::Rst)?;
            return Ok(());
        }
        let mut rest = &buffer[..count];
        // Not within the condition: what was borrowed would be held for as long as the sleep.
        let fault = link.borrow_and_update().fault;
        if let Fault::Delay(delay) = fault {
            sleep(delay).await;
        }
        while !rest.is_empty() {
            open(&mut link, way).await?;
            let Link { fault, serial, .. } = *link.borrow();
            let (length, pause) = match fault {
                Fault::Rate(rate) => {
                    let length = (rate / 50).clamp(1, rest.len() as u64);
                    (length, Duration::from_secs(length) / u32::try_from(rate).unwrap())
                }
                Fault::CutAfter(limit) => {
                    let left = limit.saturating_sub(tally.passed(serial));
                    if left == 0 {
                        return Err(End::Fin);
                    }
                    (left.min(rest.len() as u64), Duration::ZERO)
                }
                Fault::SilentAfter(limit) => {
                    let left = limit.saturating_sub(tally.passed(serial));
                    if left == 0 {
                        link.changed().await.map_err(|_closed| End::Rst)?;
                        continue;
                    }
                    (left.min(rest.len() as u64), Duration::ZERO)
                }
                _ => (rest.len() as u64, Duration::ZERO),
            };
            let (piece, later) = rest.split_at(usize::try_from(length).unwrap());
            to.write_all(piece).await.map_err(|_gone| End::Rst)?;
            tally.passed.set(tally.passed.get() + length);
            rest = later;
            // A sleep of nothing lasts a millisecond.
            if !pause.is_zero() {
                sleep(pause).await;
            }
        }
    }
}

/// Waits until this direction lets bytes through.
async fn open(link: &mut watch::Receiver<Link>, way: Way) -> Result<(), End> {
    let open = link.wait_for(|link| !holds(link.fault, way)).await;
    open.map(|_| ()).map_err(|_closed| End::Rst)
}
