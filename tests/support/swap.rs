//! A proxy in front of Redis that lets its clients keep their connections while the server behind
//! them changes, as one that speaks the protocol, or a managed endpoint, may do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use walsweep_stage::throwaway::free_port;

use super::{PATIENCE, eventually};

/// How long a server must be silent to have answered everything.
const QUIET: Duration = Duration::from_millis(100);

/// The order to every connection for the next thing that its client sends.
#[derive(Clone, Copy, Debug)]
struct Order {
    target: SocketAddr,
    /// How often the target changed.
    serial: u64,
    /// The SCAN call that is held, counted from the start of the proxy.
    held: Option<u64>,
}

/// A proxy on a port of its own. Its thread ends with the test.
#[derive(Debug)]
pub(crate) struct Swap {
    port: u16,
    order: watch::Sender<Order>,
    scans: Arc<AtomicU64>,
}

impl Swap {
    /// A proxy in front of `target`.
    pub(crate) fn start(target: SocketAddr) -> Swap {
        let port = free_port().unwrap();
        let order = watch::Sender::new(Order { target, serial: 0, held: None });
        let scans = Arc::<AtomicU64>::default();
        let (orders, counter) = (order.subscribe(), Arc::clone(&scans));
        // Listens before this returns.
        let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                let mut ends = orders.clone();
                loop {
                    tokio::select! {
                        client = listener.accept() => {
                            let (client, _) = client.unwrap();
                            let (orders, counter) = (orders.clone(), Arc::clone(&counter));
                            drop(tokio::spawn(relay(client, orders, counter)));
                        }
                        ended = ends.changed() => if ended.is_err() { return },
                    }
                }
            });
        });
        Swap { port, order, scans }
    }

    /// The port of 127.0.0.1 that it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A server's URL with this proxy's port instead of the server's.
    pub(crate) fn url(&self, server: &str, server_port: u16) -> String {
        server.replace(&format!(":{server_port}"), &format!(":{}", self.port))
    }

    /// From now on every command, on whatever connection, goes to this server.
    pub(crate) fn to(&self, target: SocketAddr) {
        self.order.send_modify(|order| {
            (order.target, order.serial) = (target, order.serial + 1);
        });
    }

    /// The SCAN call that comes after so many others waits for [`Swap::release`].
    pub(crate) fn hold_scan(&self, after: u64) {
        let call = self.scans.load(Ordering::SeqCst) + after + 1;
        self.order.send_modify(|order| order.held = Some(call));
    }

    /// Waits until the call that is to be held is here.
    pub(crate) async fn holds(&self) {
        eventually(PATIENCE, "the SCAN call comes", || async {
            let held = self.order.borrow().held;
            held.is_some_and(|call| self.scans.load(Ordering::SeqCst) >= call)
        })
        .await;
    }

    /// The call that is held goes on.
    pub(crate) fn release(&self) {
        self.order.send_modify(|order| order.held = None);
    }
}

/// One connection. A new server is connected to when the client sends something and the old one has
/// answered what came before.
async fn relay(mut client: TcpStream, mut orders: watch::Receiver<Order>, scans: Arc<AtomicU64>) {
    let Order { target, mut serial, .. } = *orders.borrow();
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    let (mut request, mut reply) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            count = client.read(&mut request) => {
                let Ok(count @ 1..) = count else { return };
                let sent = &request[..count];
                if sent.windows(8).any(|bytes| bytes == b"\r\nSCAN\r\n") {
                    let call = scans.fetch_add(1, Ordering::SeqCst) + 1;
                    let goes_on = orders.wait_for(|order| order.held != Some(call)).await.is_ok();
                    if !goes_on {
                        return;
                    }
                }
                let order = *orders.borrow();
                if order.serial != serial {
                    while let Ok(Ok(count @ 1..)) = timeout(QUIET, server.read(&mut reply)).await {
                        if client.write_all(&reply[..count]).await.is_err() {
                            return;
                        }
                    }
                    let Ok(other) = TcpStream::connect(order.target).await else { return };
                    (server, serial) = (other, order.serial);
                }
                if server.write_all(sent).await.is_err() {
                    return;
                }
            }
            count = server.read(&mut reply) => {
                let Ok(count @ 1..) = count else { return };
                if client.write_all(&reply[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}
