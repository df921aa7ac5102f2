//! The proxy does to connections what it says.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use crate::support::{Fault, PATIENCE, Proxy, Way, eventually};

/// Long enough for a byte to get through.
const WHILE: Duration = Duration::from_millis(100);

/// A server that answers every byte with that byte plus `add`.
async fn server(add: u8) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                while let Ok(byte) = stream.read_u8().await {
                    if stream.write_u8(byte + add).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

async fn connect(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap()
}

/// Sends 1; what comes back.
async fn ask(stream: &mut TcpStream) -> u8 {
    stream.write_u8(1).await.unwrap();
    timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap()
}

/// Sends 1 and hears nothing.
async fn assert_silent(stream: &mut TcpStream) {
    stream.write_u8(1).await.unwrap();
    assert!(timeout(WHILE, stream.read_u8()).await.is_err(), "something got through");
}

#[tokio::test]
async fn a_cut_is_an_end_and_a_reset_is_a_reset() {
    let proxy = Proxy::start(server(0).await);
    let mut stream = connect(&proxy).await;
    assert_eq!(ask(&mut stream).await, 1);
    proxy.cut();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "the end of the stream");
    let mut stream = connect(&proxy).await;
    assert_eq!(ask(&mut stream).await, 1, "only what was open was cut");
    proxy.reset();
    assert_eq!(stream.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(proxy.accepted(), 2);
    drop(stream);
    eventually(PATIENCE, "both are closed", || async { proxy.open() == 0 }).await;
}

#[tokio::test]
async fn a_black_hole_keeps_what_it_swallowed() {
    let proxy = Proxy::start(server(0).await);
    let mut stream = connect(&proxy).await;
    for way in [Way::Both, Way::ToServer, Way::ToClient] {
        assert_eq!(ask(&mut stream).await, 1);
        proxy.set(Fault::BlackHole(way));
        assert_silent(&mut stream).await;
        let mut another = connect(&proxy).await;
        assert_silent(&mut another).await;
        proxy.set(Fault::Nothing);
        assert_eq!(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap(), 1, "{way:?}");
        assert_eq!(timeout(PATIENCE, another.read_u8()).await.unwrap().unwrap(), 1, "{way:?}");
    }
    proxy.set(Fault::BlackHole(Way::Both));
    proxy.reset();
    let error = stream.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "a black hole can end, too");
}

#[tokio::test]
async fn delay_and_rate_slow_down() {
    let proxy = Proxy::start(server(0).await);
    let mut stream = connect(&proxy).await;
    proxy.set(Fault::Delay(WHILE));
    let start = Instant::now();
    assert_eq!(ask(&mut stream).await, 1);
    assert!(start.elapsed() >= 2 * WHILE, "there and back: {:?}", start.elapsed());
    proxy.set(Fault::Rate(1000));
    let start = Instant::now();
    stream.write_all(&[1; 200]).await.unwrap();
    let mut reply = [0; 200];
    timeout(PATIENCE, stream.read_exact(&mut reply)).await.unwrap().unwrap();
    assert_eq!(reply, [1; 200]);
    assert!(start.elapsed() >= Duration::from_millis(150), "200 bytes: {:?}", start.elapsed());
}

#[tokio::test]
async fn a_cut_comes_after_so_many_bytes() {
    let proxy = Proxy::start(server(0).await);
    let mut stream = connect(&proxy).await;
    assert_eq!(ask(&mut stream).await, 1);
    proxy.set(Fault::CutAfter(4));
    let mut another = connect(&proxy).await;
    for stream in [&mut stream, &mut another] {
        assert_eq!(ask(stream).await, 1);
        assert_eq!(ask(stream).await, 1);
        stream.write_u8(1).await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "four bytes have passed");
    }
    proxy.set(Fault::SilentAfter(2));
    let mut stream = connect(&proxy).await;
    assert_eq!(ask(&mut stream).await, 1);
    assert_silent(&mut stream).await;
    proxy.set(Fault::Nothing);
    assert_eq!(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap(), 1);
}

#[tokio::test]
async fn it_refuses_and_leads_elsewhere() {
    let proxy = Proxy::start(server(0).await);
    let mut stream = connect(&proxy).await;
    assert_eq!(ask(&mut stream).await, 1);
    proxy.set(Fault::Refuse);
    // A process that another test starts has this one's sockets until it runs its program.
    let refuses = || async {
        let refused = TcpStream::connect(("127.0.0.1", proxy.port())).await;
        refused.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    };
    eventually(PATIENCE, "nobody listens", refuses).await;
    assert_eq!(ask(&mut stream).await, 1, "what is open goes on");
    proxy.set(Fault::Nothing);
    proxy.retarget(server(1).await);
    assert_eq!(ask(&mut stream).await, 1, "what is open stays");
    assert_eq!(ask(&mut connect(&proxy).await).await, 2);
}
