//! Names of written keys, as Redis tells them, and when they come.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cmd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

/// The id of the connection that tracks everything; none while there is no such.
pub(crate) async fn tracking_id(cache: &MultiplexedConnection) -> Option<u64> {
    let list: String = cmd("CLIENT").arg("LIST").query_async(&mut cache.clone()).await.unwrap();
    let is_broadcast = |line: &&str| {
        line.split(' ').any(|field| field.starts_with("flags=") && field.contains('B'))
    };
    let line = list.lines().find(is_broadcast)?;
    line.strip_prefix("id=")?.split(' ').next()?.parse().ok()
}

/// A port in front of the server's, behind which its answers come in the smallest parts that hold a
/// whole reply: what follows a reply comes later, as it may on any network.
pub(crate) async fn trickle(server: u16) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (mut from_client, mut to_client) = client.into_split();
            let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
            let (mut from_server, mut to_server) = server.into_split();
            to_client.as_ref().set_nodelay(true).unwrap();
            tokio::spawn(async move { copy(&mut from_client, &mut to_server).await });
            tokio::spawn(async move {
                let mut part = [0; "+PONG\r\n".len()];
                while let Ok(length @ 1..) = from_server.read(&mut part).await {
                    to_client.write_all(&part[..length]).await?;
                    sleep(Duration::from_millis(2)).await;
                }
                Ok::<(), std::io::Error>(())
            });
        }
    });
    port
}
