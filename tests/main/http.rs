//! The pages for machines, and whoever asks for them: no client can take what the sidecar needs.

use std::fs;
use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually};

/// Fewer than the program may have open at a time, beside what it needs itself, so that the system
/// refuses it none; and as many.
const CLIENTS: [usize; 2] = [160, 256];

/// Open descriptors of a process.
fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Asks for pages until no more bytes are taken, and reads none.
async fn stuck(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let requests = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
    for _ in 0..100 {
        match stream.try_write(requests.as_bytes()) {
            Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(_) => {
                // The server has ended it; another one takes its place.
                stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            }
        }
    }
    stream
}

/// Asks for half a page.
async fn silent(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(b"GET /metr").await.unwrap();
    stream
}

async fn bed(rules: &str) -> (Bed, Sidecar) {
    let bed = Bed::new(&[]).await;
    let settings = bed.settings();
    let rules = format!("{}{rules}", settings.rules);
    let sidecar =
        Sidecar::set_up(Settings { rules, ulimit: "-n 256".to_owned(), ..settings }).await;
    bed.settled().await;
    (bed, sidecar)
}

#[tokio::test]
async fn clients_that_never_read_take_no_descriptors_from_the_servers() {
    let (bed, mut sidecar) = bed("").await;
    let port = sidecar.http_port();
    let mut streams = Vec::new();
    for count in CLIENTS {
        let clients = (0..count).map(|_| tokio::spawn(stuck(port))).collect::<Vec<_>>();
        for client in clients {
            streams.push(client.await.unwrap());
        }
        // A small page is in the system's buffers, and its connection over, whoever reads it; half
        // a request holds its connection until the time is over.
        for _ in 0..count {
            streams.push(silent(port).await);
        }
        let open = descriptors(sidecar.id());
        assert!(open < 128, "{open} descriptors for {count} clients");
        assert!(sidecar.get("/metrics").await.is_some_and(|(status, _)| status == 200));
    }
    // Both servers are lost, and can be had again at once.
    let streaming = "select count(*) from pg_replication_slots where active_pid <> $1";
    let pid: i32 = bed.sql.one("select active_pid from pg_replication_slots").await;
    bed.sql
        .run(
            "select pg_terminate_backend(pid) from pg_stat_activity
              where application_name like 'walsweep%'",
        )
        .await;
    redis::cmd("CLIENT")
        .arg("KILL")
        .arg("TYPE")
        .arg("normal")
        .arg("SKIPME")
        .arg("yes")
        .exec_async(&mut bed.cache.clone())
        .await
        .unwrap();
    eventually(PATIENCE, "another stream", || async {
        bed.sql.one_of::<i64>(streaming, &[&pid]).await == 1
    })
    .await;
    bed.fill(&["item:7"]).await;
    bed.sql.run("update item set version = 1 where id = 7").await;
    bed.gone("item:7").await;
    sidecar.wait_ready().await;
    // What the clients have is given back although they stay.
    eventually(PATIENCE, "their descriptors are free", || async { descriptors(sidecar.id()) < 32 })
        .await;
    drop(streams);
}

#[tokio::test]
async fn a_client_without_a_whole_request_is_let_go() {
    let (_bed, sidecar) = bed("").await;
    for sent in ["", "GET /metr", "GET /metrics HTTP/1.1\r\nHost: a\r\n"] {
        let mut stream = TcpStream::connect(("127.0.0.1", sidecar.http_port())).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_ok(), "open after {PATIENCE:?}: {sent:?}");
    }
    let mut stream = TcpStream::connect(("127.0.0.1", sidecar.http_port())).await.unwrap();
    let header = format!("GET /metrics HTTP/1.1\r\nA: {}\r\n", "x".repeat(100_000));
    stream.write_all(header.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 431");
}

#[tokio::test]
async fn a_slow_reader_gets_a_large_page_whole() {
    let rule = |number| {
        format!("[[rule]]\nname = \"r{number}\"\ntable = \"public.item\"\nkeys = [\"r:{{id}}\"]\n")
    };
    let (bed, sidecar) = bed(&(0..500).map(rule).collect::<String>()).await;
    bed.sql.run("update item set version = 1").await;
    bed.settled().await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let address = format!("127.0.0.1:{}", sidecar.http_port()).parse().unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (mut page, mut piece) = (Vec::new(), [0; 1024]);
    loop {
        tokio::time::sleep(Duration::from_millis(2)).await;
        match stream.read(&mut piece).await.unwrap() {
            0 => break,
            size => page.extend_from_slice(&piece[..size]),
        }
    }
    let page = String::from_utf8(page).unwrap();
    assert!(page.len() > 50_000 && page.ends_with("# EOF\n"), "{} bytes", page.len());
}
