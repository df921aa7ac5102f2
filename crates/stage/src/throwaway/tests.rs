//! Throwaway servers against the real programs.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use redis::{AsyncCommands, RedisError, cmd};

use super::{
    Cluster, ClusterOptions, Postgres, PostgresOptions, Redis, RedisOptions, SLOT_COUNT, Sentinels,
    SentinelsOptions, StopMode,
};

#[tokio::test]
async fn postgres_keeps_its_data_over_every_kind_of_end_and_leaves_nothing() {
    let options = PostgresOptions { fsync: true, ..PostgresOptions::default() };
    let mut server = Postgres::start(options).await.unwrap();
    let port = server.port();
    let client = server.connect().await.unwrap();
    client.batch_execute("create table t (n int); insert into t values (1)").await.unwrap();
    server.restart(StopMode::Fast).await.unwrap();
    server.restart(StopMode::Immediate).await.unwrap();
    server.kill9().await.unwrap();
    assert!(server.connect().await.is_err(), "killed, yet it answers");
    server.start_again().await.unwrap();
    assert_eq!(server.port(), port);
    let client = server.connect().await.unwrap();
    let row = client.query_one("select n, current_setting('wal_level') from t", &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1)), (1, "logical"));
    server.conf("work_mem = '7MB'").await.unwrap();
    let client = server.connect().await.unwrap();
    let row = client.query_one("select current_setting('work_mem')", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "7MB");
    let folder = server.socket_dir().parent().unwrap().to_owned();
    assert!(folder.join("data").exists());
    drop(server);
    assert!(!folder.exists());
}

#[tokio::test]
async fn each_server_has_a_history_of_its_own() {
    let mut identifiers = Vec::new();
    for _ in 0..2 {
        let mut server = Postgres::start(PostgresOptions::default()).await.unwrap();
        server.restart(StopMode::Immediate).await.unwrap();
        let question = "select system_identifier from pg_control_system()";
        let row = server.connect().await.unwrap().query_one(question, &[]).await.unwrap();
        identifiers.push(row.get::<_, i64>(0));
    }
    assert!(identifiers[0] > 0 && identifiers[0] != identifiers[1], "{identifiers:?}");
}

#[tokio::test]
async fn a_password_is_asked_for_by_scram() {
    let password = Some("s3cret".to_owned());
    let options = PostgresOptions { password, ..PostgresOptions::default() };
    let server = Postgres::start(options).await.unwrap();
    server.connect().await.unwrap();
    let without = server.url().replace(":s3cret", ":wrong");
    assert!(tokio_postgres::connect(&without, tokio_postgres::NoTls).await.is_err());
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let conf = vec!["shared_buffers = nonsense".to_owned()];
    let options = PostgresOptions { conf, ..PostgresOptions::default() };
    let message = Postgres::start(options).await.unwrap_err().to_string();
    assert!(message.contains("invalid value for parameter \"shared_buffers\""), "{message}");
}

#[tokio::test]
async fn redis_restarts_with_its_file_and_pauses() {
    let args = ["--appendonly", "yes", "--appendfsync", "always"].map(str::to_owned).to_vec();
    let mut server = Redis::start(RedisOptions { args, ..RedisOptions::default() }).await.unwrap();
    let mut connection = server.connect().await.unwrap();
    let () = connection.set("k", 1).await.unwrap();
    server.kill9().await.unwrap();
    server.start_again().await.unwrap();
    let mut connection = server.connect().await.unwrap();
    assert_eq!(connection.get::<_, i32>("k").await.unwrap(), 1);
    server.pause().unwrap();
    let short = std::time::Duration::from_millis(50);
    let reply = tokio::time::timeout(short, connection.get::<_, i32>("k")).await;
    assert!(reply.is_err(), "paused, yet it answers");
    server.resume().unwrap();
    assert_eq!(connection.get::<_, i32>("k").await.unwrap(), 1);
    let folder = server.dir().to_owned();
    drop(server);
    assert!(!folder.exists());
}

#[tokio::test]
async fn debug_may_be_called_where_that_is_asked_for() {
    let server = Redis::start(RedisOptions::default().debug().unwrap()).await.unwrap();
    let mut connection = server.connect().await.unwrap();
    let () = cmd("DEBUG").arg("SLEEP").arg(0).query_async(&mut connection).await.unwrap();
}

/// The value of a key in the eyes of one node of a cluster.
async fn value_on(cluster: &Cluster, node: usize, key: &str) -> Result<Option<u32>, RedisError> {
    cluster.node(node).unwrap().connect().await.unwrap().get(key).await
}

fn code(reply: Result<Option<u32>, RedisError>) -> String {
    reply.unwrap_err().code().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_slot_moves_between_the_nodes_of_a_cluster_that_grows_and_shrinks() {
    let options = ClusterOptions { replicas: 0, ..ClusterOptions::default() };
    let mut cluster = Cluster::start(options).await.unwrap();
    for (slot, owner) in [(0, 0), (5_460, 0), (5_461, 1), (10_922, 2), (SLOT_COUNT - 1, 2)] {
        assert_eq!(cluster.owner(slot).await.unwrap(), Some(owner), "slot {slot}");
    }
    let slot = cluster.slot_of(b"k").await.unwrap();
    let from = cluster.owner(slot).await.unwrap().unwrap();
    let mut connection = cluster.node(from).unwrap().connect().await.unwrap();
    let () = connection.set("k", 7).await.unwrap();
    let new = cluster.add(None).await.unwrap();
    assert_eq!((new, cluster.urls().len()), (3, 4));
    cluster.begin_move(slot, new).await.unwrap();
    assert_eq!(value_on(&cluster, from, "k").await.unwrap(), Some(7));
    assert_eq!(code(value_on(&cluster, from, "{k}:absent").await), "ASK");
    cluster.finish_move(slot, new).await.unwrap();
    assert_eq!(cluster.owner(slot).await.unwrap(), Some(new));
    assert_eq!(value_on(&cluster, new, "k").await.unwrap(), Some(7));
    assert_eq!(code(value_on(&cluster, from, "k").await), "MOVED");
    assert!(cluster.remove(new).await.is_err(), "it has a slot");
    cluster.begin_move(slot, from).await.unwrap();
    cluster.finish_move(slot, from).await.unwrap();
    cluster.remove(new).await.unwrap();
    cluster.settled().await.unwrap();
    assert_eq!(value_on(&cluster, from, "k").await.unwrap(), Some(7));
    assert!(cluster.node(new).is_err());
}

#[tokio::test]
async fn a_replica_takes_over_from_a_primary_of_a_cluster_that_is_killed() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    let slot = cluster.slot_of(b"k").await.unwrap();
    let primary = cluster.owner(slot).await.unwrap().unwrap();
    let mut connection = cluster.node(primary).unwrap().connect().await.unwrap();
    let () = connection.set("k", 7).await.unwrap();
    let count: u32 = cmd("WAIT").arg(1).arg(10_000).query_async(&mut connection).await.unwrap();
    assert_eq!(count, 1, "each primary has a replica");
    cluster.node_mut(primary).unwrap().kill9().await.unwrap();
    cluster.promoted(primary + 3).await.unwrap();
    assert_eq!(cluster.owner(slot).await.unwrap(), Some(primary + 3));
    assert_eq!(value_on(&cluster, primary + 3, "k").await.unwrap(), Some(7));
    cluster.node_mut(primary).unwrap().start_again().await.unwrap();
    cluster.settled().await.unwrap();
    assert_eq!(code(value_on(&cluster, primary, "k").await), "MOVED", "it follows the other now");
}

#[tokio::test]
async fn sentinels_promote_a_replica_and_one_that_was_away_learns_of_it() {
    let mut sentinels = Sentinels::start(SentinelsOptions::default()).await.unwrap();
    assert_eq!(sentinels.service(), "cache");
    let [old, new] = [0, 1].map(|at| sentinels.servers()[at].port());
    assert_eq!(sentinels.primary().await.unwrap(), Some(old));
    sentinels.servers()[0].kill9().await.unwrap();
    sentinels.sentinels()[0].kill9().await.unwrap();
    assert_eq!(sentinels.primary_other_than(old).await.unwrap(), new, "two of three agree");
    let mut promoted = sentinels.servers()[1].connect().await.unwrap();
    let () = promoted.set("k", 1).await.unwrap();
    sentinels.sentinels()[0].start_again().await.unwrap();
    assert_eq!(sentinels.primary_other_than(old).await.unwrap(), new, "three of three agree");
}

/// Run by [`a_server_dies_with_its_owner`] in a process of its own, which is then killed.
#[tokio::test]
async fn owner_that_is_killed() {
    let Ok(note) = std::env::var("WALSWEEP_TEST_OWNER") else { return };
    let _postgres = Postgres::start(PostgresOptions::default()).await.unwrap();
    let server = Redis::start(RedisOptions::default()).await.unwrap();
    let draft = format!("{note}.draft");
    std::fs::write(&draft, server.port().to_string()).unwrap();
    std::fs::rename(draft, note).unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_server_dies_with_its_owner() {
    let folder = tempfile::tempdir().unwrap();
    let note = folder.path().join("note");
    // Where it makes its folders; the server's user passes through.
    let made = folder.path().join("made");
    std::fs::create_dir(&made).unwrap();
    for open in [folder.path(), &made] {
        std::fs::set_permissions(open, std::fs::Permissions::from_mode(0o711)).unwrap();
    }
    let is_empty = || std::fs::read_dir(&made).unwrap().next().is_none();
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "throwaway::tests::owner_that_is_killed"])
        .env("WALSWEEP_TEST_OWNER", &note)
        .env("TMPDIR", &made)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pause = std::time::Duration::from_millis(5);
    while !note.exists() {
        assert!(owner.try_wait().unwrap().is_none());
        tokio::time::sleep(pause).await;
    }
    let text = std::fs::read_to_string(&note).unwrap();
    let port: u16 = text.parse().unwrap();
    let block = |port: u16| port / super::BLOCK_LENGTH;
    let own = super::free_port().unwrap();
    assert_ne!(block(port), block(own), "ports of two processes");
    let address = format!("127.0.0.1:{port}");
    tokio::net::TcpStream::connect(&address).await.unwrap();
    assert!(!is_empty());
    owner.kill().unwrap();
    owner.wait().unwrap();
    let gone = async {
        while !is_empty() || tokio::net::TcpStream::connect(&address).await.is_ok() {
            tokio::time::sleep(pause).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), gone).await.unwrap();
}
