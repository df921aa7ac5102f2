//! Keys are bytes: whatever stands in a name, the key goes where a rule takes it, stays where none
//! does, and is told in one line of plain letters.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use redis::aio::MultiplexedConnection;
use walsweep_stage::throwaway::{Cluster, ClusterOptions, Redis, RedisOptions};

use crate::refusals::admin;
use crate::support::{
    Bed, Endpoint, ITEM_RULES, PATIENCE, Settings, Sidecar, Tricks, eventually, text,
};

/// Ends of names: bytes that no text has, that end a line or a C string, or mean something in a
/// glob, half a letter, and a whole one.
const TAILS: [&[u8]; 9] =
    [b"\xff\xfe", b"\xff", b"\n", b"\0", b"a\0b\r\n", b"*?[\\", b"]-^", b"\xc3", b"caf\xc3\xa9"];

/// How many keys [`keys`] gives, each counted once: five tails are longer than a byte.
const DISTINCT: usize = 256 + 5;

const RULES: &str = r#"
[[rule]]
name = "raw"
message = "raw"
keys = ["raw:*"]
"#;

/// The key of every tail, and of every single byte, behind this.
fn keys(head: &str) -> Vec<Vec<u8>> {
    let bytes: Vec<[u8; 1]> = (0..=255).map(|byte| [byte]).collect();
    let tails = TAILS.into_iter().chain(bytes.iter().map(<[u8; 1]>::as_slice));
    tails.map(|tail| [head.as_bytes(), tail].concat()).collect()
}

async fn fill(bed: &Bed, keys: &[Vec<u8>]) {
    let mut pipeline = redis::pipe();
    for key in keys {
        pipeline.cmd("SET").arg(key).arg("cached").ignore();
    }
    pipeline.exec_async(&mut bed.cache.clone()).await.unwrap();
}

/// Those of the keys that are there.
async fn left(bed: &Bed, keys: &[Vec<u8>]) -> Vec<String> {
    let mut pipeline = redis::pipe();
    for key in keys {
        pipeline.cmd("EXISTS").arg(key);
    }
    let there: Vec<bool> = pipeline.query_async(&mut bed.cache.clone()).await.unwrap();
    let left = keys.iter().zip(there).filter(|(_, there)| *there);
    left.map(|(key, _)| key.escape_ascii().to_string()).collect()
}

async fn gone(bed: &Bed, keys: &[Vec<u8>]) {
    eventually(PATIENCE, "all of them go", || async { left(bed, keys).await.is_empty() }).await;
}

fn settings(bed: &Bed) -> Settings {
    // What stands first is for `[log]`.
    let rules = format!("keys = true\n{ITEM_RULES}{RULES}");
    Settings { rules, ..bed.settings() }
}

#[tokio::test]
async fn a_pattern_takes_keys_with_any_bytes_and_the_log_stays_one_of_lines() {
    let bed = Bed::new(&[]).await;
    let sidecar = Sidecar::set_up(settings(&bed)).await;
    let (mine, others) = (keys("list:team 1:"), keys("list:team 2:"));
    fill(&bed, &[mine.clone(), others.clone()].concat()).await;
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    gone(&bed, &mine).await;
    bed.settled().await;
    assert_eq!(left(&bed, &others).await.len(), others.len(), "of another team");
    let removed = sidecar.metric("walsweep_keys_removed_total{rule=\"item\"}").await;
    assert_eq!(removed.to_string(), DISTINCT.to_string());
    sidecar.wait_log("its keys: `item:1` `list:team 1:*`").await;
}

/// A message is JSON, so it names no key that is not in UTF-8; a pattern of it takes those.
#[tokio::test]
async fn an_exact_key_may_have_bytes_that_end_a_line_or_mean_a_glob() {
    let bed = Bed::new(&[]).await;
    let sidecar = Sidecar::set_up(settings(&bed)).await;
    let send = async |content: &str| {
        let content = content.replace('\'', "''");
        bed.sql.run(&format!("select pg_logical_emit_message(true, 'raw', '{content}')")).await;
    };
    let named = [b"\n".as_slice(), b"\0", b"a\0b\r\n", b"*?[\\", b"]-^", b"caf\xc3\xa9"];
    let named = named.map(|tail| [b"raw:", tail].concat());
    let all = keys("raw:");
    fill(&bed, &all).await;
    let before = left(&bed, &all).await;
    send(
        r#"{"keys": ["raw:\n", "raw:\u0000", "raw:a\u0000b\r\n", "raw:*?[\\", "raw:]-^",
                     "raw:café"]}"#,
    )
    .await;
    gone(&bed, &named).await;
    bed.settled().await;
    let escaped = named.map(|key| key.escape_ascii().to_string());
    let expected: Vec<String> = before.into_iter().filter(|key| !escaped.contains(key)).collect();
    assert_eq!(left(&bed, &all).await, expected, "they are literal");
    let told = sidecar.log().into_iter().find(|line| line.contains("its keys: "));
    let told = told.expect("it is logged, in one line");
    assert!(escaped.iter().all(|key| told.contains(&format!("`{key}`"))), "{told}");
    send(r#"{"patterns": ["raw:[^a-z]*", "raw:?"]}"#).await;
    gone(&bed, &[b"raw:\xff\xfe".to_vec(), b"raw:\xc3".to_vec()]).await;
}

#[tokio::test]
async fn what_was_written_again_is_removed_again_whatever_its_name() {
    let bed = Bed::new(&[]).await;
    let mut settings = settings(&bed);
    (settings.refill, settings.observe) = ("1s".to_owned(), true);
    let sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    let (passes, refills) =
        ("walsweep_sweeps_total{reason=\"refill\"}", "walsweep_refills_removed_total");
    let passes_before = sidecar.metric(passes).await;
    let mine = keys("list:team 1:");
    fill(&bed, &mine).await;
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    gone(&bed, &mine).await;
    fill(&bed, &mine).await;
    bed.settled().await;
    assert_eq!(left(&bed, &mine).await, [""; 0]);
    assert!((sidecar.metric(passes).await - passes_before).abs() < 0.5, "by name, not by a pass");
    assert!(sidecar.metric_sum(refills).await > 250.0);
}

#[tokio::test]
async fn keys_that_redis_refuses_to_remove_are_held_apart_whatever_their_names() {
    let bed = Bed::new(&[]).await;
    admin(&bed, "ACL SETUSER walsweep on nopass ~* +@all").await;
    let mut settings = settings(&bed);
    settings.redis_url = settings.redis_url.replace("redis://", "redis://walsweep:any@");
    let sidecar = Sidecar::set_up(settings).await;
    let mine = keys("list:team 1:");
    fill(&bed, &mine).await;
    bed.fill(&["item:1"]).await;
    admin(&bed, "ACL SETUSER walsweep resetkeys ~item:* ~raw:* ~walsweep:*").await;
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    bed.gone("item:1").await;
    eventually(PATIENCE, "the rule is named", || async {
        let (status, body) = sidecar.get("/readyz").await.unwrap();
        status == 503 && body.contains("rule `item`")
    })
    .await;
    assert!(!left(&bed, &mine).await.is_empty(), "none may be removed");
    admin(&bed, "ACL SETUSER walsweep ~list:*").await;
    gone(&bed, &mine).await;
    bed.settled().await;
    eventually(PATIENCE, "it is ready", || async { sidecar.readyz().await == Some(200) }).await;
}

#[tokio::test]
async fn a_sweep_by_hand_takes_any_bytes_and_says_which() {
    let bed = Bed::new(&[]).await;
    let sidecar = Sidecar::new(settings(&bed));
    let mine = keys("list:team 1:");
    fill(&bed, &mine).await;
    let sweep = |args: &[&[u8]]| {
        let args: Vec<&OsStr> = args.iter().map(|arg| OsStr::from_bytes(arg)).collect();
        let output = sidecar.command(&[&[OsStr::new("sweep")], args.as_slice()].concat());
        (output.status.success(), text(&output))
    };
    let counted = format!("{DISTINCT} keys matched, nothing removed\n");
    assert_eq!(sweep(&[b"list:*:*", b"--dry-run"]), (true, counted));
    let one = (true, "2 keys matched, 2 removed\n".to_owned());
    assert_eq!(sweep(&[b"list:team 1:\xff*"]), one);
    let said = "`list:team 1:\\xc3`: 1 key matched, 1 removed\n\
                `list:team 1:\n`: 1 key matched, 1 removed\n2 keys matched, 2 removed\n";
    let two = (true, said.to_owned());
    assert_eq!(sweep(&[b"list:team 1:\xc3", b"list:team 1:\n"]), two);
    let (_, refusal) = sweep(&[b"\xfe*"]);
    assert!(refusal.contains("no rule covers all of `\\xfe*`"), "{refusal}");
    let rest = (true, format!("{0} keys matched, {0} removed\n", DISTINCT - 4));
    assert_eq!(sweep(&[b"list:team 1:*"]), rest);
    assert_eq!(left(&bed, &mine).await, [""; 0]);
}

/// Keys of one list, each once.
fn distinct() -> Vec<Vec<u8>> {
    let mut keys = keys("list:team 1:");
    keys.sort();
    keys.dedup();
    keys
}

/// Servers that have the keys together, and how to find the one that has a key.
struct Several {
    connections: Vec<MultiplexedConnection>,
    /// The place of the server of each key of [`keys`].
    places: Vec<usize>,
}

impl Several {
    async fn new(servers: Vec<&Redis>, places: Vec<usize>) -> Several {
        let mut connections = Vec::new();
        for server in &servers {
            connections.push(server.connect().await.unwrap());
        }
        assert!((0..servers.len()).all(|at| places.contains(&at)), "each has some");
        Several { connections, places }
    }

    async fn fill(&self, keys: &[Vec<u8>]) {
        for (key, place) in keys.iter().zip(&self.places) {
            let mut set = redis::cmd("SET");
            set.arg(key).arg("cached");
            set.exec_async(&mut self.connections[*place].clone()).await.unwrap();
        }
    }

    async fn left(&self, keys: &[Vec<u8>]) -> usize {
        let mut left = 0;
        for (key, place) in keys.iter().zip(&self.places) {
            let mut exists = redis::cmd("EXISTS");
            let exists = exists.arg(key);
            let there: usize =
                exists.query_async(&mut self.connections[*place].clone()).await.unwrap();
            left += there;
        }
        left
    }

    async fn admin(&self, command: &str) {
        for connection in &self.connections {
            let mut words = command.split(' ');
            let mut command = redis::cmd(words.next().unwrap());
            command.arg(words.collect::<Vec<_>>());
            command.exec_async(&mut connection.clone()).await.unwrap();
        }
    }

    /// A pattern takes keys of any bytes from all of them, at the first and the second removal.
    async fn lets_any_bytes_go(&self, bed: &Bed, mine: &[Vec<u8>]) {
        for _ in 0..2 {
            self.fill(mine).await;
            bed.sql.run("update item set version = version + 1 where id = 1").await;
            eventually(PATIENCE, "all of them go", async || self.left(mine).await == 0).await;
        }
        bed.settled().await;
    }
}

/// Slots are counted over bytes, and so is what `MOVED` and a missing right are about.
#[tokio::test]
async fn keys_of_any_bytes_go_from_a_cluster_and_wait_for_a_right_there() {
    let bed = Bed::new(&[]).await;
    let options = ClusterOptions { primaries: 3, replicas: 0, node: RedisOptions::default() };
    let cluster = Cluster::start(options).await.unwrap();
    let mine = distinct();
    let mut places = Vec::new();
    for key in &mine {
        let slot = cluster.slot_of(key).await.unwrap();
        places.push(cluster.owner(slot).await.unwrap().unwrap());
    }
    let several = Several::new((0..3).map(|at| cluster.node(at).unwrap()).collect(), places).await;
    several.admin("ACL SETUSER walsweep on nopass ~* +@all").await;
    let url = cluster.urls()[0].replace("redis://", "redis://walsweep:any@");
    let target = format!("mode = \"cluster\"\nurl = {url:?}");
    let sidecar = Sidecar::set_up(Settings { targets: vec![target], ..settings(&bed) }).await;
    several.lets_any_bytes_go(&bed, &mine).await;
    several.fill(&mine).await;
    several.admin("ACL SETUSER walsweep resetkeys ~item:* ~raw:* ~walsweep:*").await;
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    eventually(PATIENCE, "the rule is named", async || {
        let (status, body) = sidecar.get("/readyz").await.unwrap();
        status == 503 && body.contains("rule `item`")
    })
    .await;
    assert_eq!(several.left(&mine).await, DISTINCT, "none may be removed");
    several.admin("ACL SETUSER walsweep ~list:*").await;
    eventually(PATIENCE, "all of them go", async || several.left(&mine).await == 0).await;
    bed.settled().await;
}

#[tokio::test]
async fn keys_of_any_bytes_go_from_behind_an_endpoint() {
    let bed = Bed::new(&[]).await;
    let mut servers = Vec::new();
    for _ in 0..2 {
        servers.push(Redis::start(RedisOptions::default()).await.unwrap());
    }
    let ports = servers.iter().map(Redis::port).collect();
    let endpoint = Endpoint::start(ports, Tricks::SERVERLESS);
    let mine = distinct();
    let places = mine.iter().map(|key| endpoint.place(key)).collect();
    let several = Several::new(servers.iter().collect(), places).await;
    let refill = "300ms".to_owned();
    let settings = Settings { redis_url: endpoint.url(), refill, ..settings(&bed) };
    let _sidecar = Sidecar::set_up(settings).await;
    several.lets_any_bytes_go(&bed, &mine).await;
}
