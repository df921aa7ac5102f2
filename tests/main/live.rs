//! The live state, for people: what `/status`, `/events`, `/` and `walsweep status` tell, that it
//! leaks nothing, and that whoever reads it stands in nobody's way.

use std::process::Output;
use std::time::Duration;

use redis::AsyncCommands;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use walsweep_stage::throwaway::{Redis, RedisOptions};

use crate::support::{Bed, ITEM_RULES, PATIENCE, Settings, Sidecar, eventually, text};

/// Listeners that there may be.
const LISTENERS_MAX: usize = 16;

async fn status(sidecar: &Sidecar) -> Value {
    let (code, body) = sidecar.get("/status").await.unwrap();
    assert_eq!(code, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

/// Asks for events, and leaves what comes unread; with a small buffer, if it is to take little.
async fn listen(port: u16, buffer: Option<u32>) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    if let Some(bytes) = buffer {
        socket.set_recv_buffer_size(bytes).unwrap();
    }
    let address = format!("127.0.0.1:{port}").parse().unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    stream
}

/// The text of bytes that may end amid a character.
fn valid(bytes: &[u8]) -> String {
    bytes.utf8_chunks().map(|chunk| chunk.valid()).collect()
}

/// Reads until some text has come.
async fn read_until(stream: &mut TcpStream, part: &str) -> String {
    let mut read = Vec::new();
    let reading = async {
        loop {
            let mut piece = vec![0; 4096];
            let size = stream.read(&mut piece).await.unwrap();
            assert!(size > 0, "it ended before `{part}`");
            read.extend_from_slice(&piece[..size]);
            if valid(&read).contains(part) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect(part);
    String::from_utf8(read).unwrap()
}

fn of<'a>(list: &'a Value, name: &str) -> &'a Value {
    let list = list.as_array().unwrap();
    list.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no `{name}`: {list:?}"))
}

const TWO_RULES: &str = r#"
[[rule]]
name = "item"
table = "public.item"
keys = ["item:{id}", "list:{team}:*"]

[[rule]]
name = "page"
table = "public.page"
keys = ["page:{id}"]
"#;

/// One after the other: well; a target that is away; a rule that does not fit.
#[tokio::test]
async fn the_state_tells_rules_targets_and_what_waits() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run("create table page (id int primary key, a text); insert into page values (1)")
        .await;
    let near = Redis::start(RedisOptions::default()).await.unwrap();
    let target = |name: &str, url: &str| format!("name = {name:?}\nurl = {url:?}");
    let targets = vec![target("main", &bed.redis.url()), target("near", &near.url())];
    let settings = Settings { rules: TWO_RULES.to_owned(), targets, ..bed.settings() };
    let sidecar = Sidecar::set_up(Settings { refill: "1s".to_owned(), ..settings }).await;
    bed.settled().await;
    bed.fill(&["item:1", "list:team 1:a", "list:team 1:b"]).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    bed.gone("item:1").await;
    bed.gone("list:team 1:b").await;
    bed.settled().await;
    let state = status(&sidecar).await;
    assert_eq!(
        (&state["verdict"]["level"], &state["ready"]),
        (&"well".into(), &true.into()),
        "{state}"
    );
    assert_eq!(state["verdict"]["section"], Value::Null);
    let item = of(&state["rules"], "item");
    assert_eq!((&item["matches"], &item["removed"]), (&1.into(), &3.into()), "{item}");
    assert_eq!(item["source"], "public.item");
    assert!(item["last_removed"].is_string() && item["suspended"] == false, "{item}");
    assert_eq!(of(&state["rules"], "page")["last_removed"], Value::Null);
    assert_eq!(state["postgres"]["state"]["wal_status"], "reserved");
    for name in ["main", "near"] {
        let target = of(&state["targets"], name);
        assert_eq!((&target["phase"], &target["up"]), (&"ready".into(), &true.into()), "{target}");
        let pass = &target["nodes"][0]["pass"];
        assert!(pass["keys"].is_u64() && pass["seconds"].as_f64() > Some(0.0), "{target}");
    }
    assert_eq!(state["latency"]["count"], 2, "one transaction, two targets");
    let last = &state["transactions"][0];
    assert_eq!(last["rules"][0]["rule"], "item", "{last}");
    assert!(last["targets"][1]["removed_again"].is_string(), "{last}");
    assert_eq!(last["keys"], Value::Array(Vec::new()), "`http.keys` is off");

    near.pause().unwrap();
    bed.sql.run("update item set version = 2 where id = 1").await;
    let is_away = async || {
        let state = status(&sidecar).await;
        let waits = state["waiting"].as_array().unwrap();
        let of_near = |wait: &&Value| wait["target"] == "near" && wait["stage"] == "redis";
        of(&state["targets"], "near")["phase"] == "out of reach"
            && state["verdict"]["level"] == "wrong"
            && state["verdict"]["section"] == "redis-does-not-answer"
            && waits.iter().find(of_near).is_some_and(|wait| wait["count"] == 1)
    };
    eventually(PATIENCE, "the state names the target that is away", is_away).await;
    assert_eq!(of(&status(&sidecar).await["targets"], "main")["phase"], "ready");
    near.resume().unwrap();
    let is_well = async || status(&sidecar).await["verdict"]["level"] == "well";
    eventually(PATIENCE, "all is well again", is_well).await;

    bed.sql.run("alter table page rename column id to number").await;
    let is_suspended = async || {
        let state = status(&sidecar).await;
        let page = of(&state["rules"], "page");
        page["suspended"] == true
            && page["trouble"].as_str().is_some_and(|text| text.contains("is suspended"))
            && state["verdict"]["section"] == "a-rule-is-suspended"
            && of(&state["rules"], "item")["suspended"] == false
    };
    eventually(PATIENCE, "the state names the rule", is_suspended).await;
}

/// I9: not while it waits, and not when it is gone; keys only where the configuration says so.
#[tokio::test]
async fn no_value_of_a_row_is_on_a_page_unless_keys_are_asked_for() {
    let pages = ["/status", "/", "/runbook", "/readyz", "/healthz", "/metrics"];
    for with_keys in [false, true] {
        let bed = Bed::new(&[]).await;
        let (http, refill) = (format!("keys = {with_keys}"), "1s".to_owned());
        let settings = Settings { http, refill, ..bed.settings() };
        let sidecar = Sidecar::set_up(settings).await;
        bed.settled().await;
        bed.fill(&["list:S3CRET:1"]).await;
        bed.sql.run("update item set team = 'S3CRET' where id = 7").await;
        bed.gone("list:S3CRET:1").await;
        bed.redis.pause().unwrap();
        bed.sql.run("update item set team = 'S3CRET2' where id = 8").await;
        let waits = async || !status(&sidecar).await["waiting"].as_array().unwrap().is_empty();
        eventually(PATIENCE, "something waits", waits).await;
        let mut all = String::new();
        for page in pages {
            all.push_str(&sidecar.get(page).await.unwrap().1);
        }
        all.push_str(&read_until(&mut listen(sidecar.http_port(), None).await, "}\n\n").await);
        all.push_str(&text(&sidecar.command(&["status"])));
        all.push_str(&text(&sidecar.command(&["status", "--json"])));
        assert!(all.contains("\"rule\":\"item\""), "the transaction is told");
        assert_eq!(all.contains("S3CRET"), with_keys, "{all}");
        bed.redis.resume().unwrap();
    }
}

/// The page has no names in it: they come as JSON; `screens` looks at it in a browser.
#[tokio::test]
async fn a_table_may_be_named_like_markup() {
    let bed = Bed::new(&[]).await;
    let name = "<script>alert(1)</script>";
    bed.sql.run(&format!("create table \"{name}\" (id int primary key)")).await;
    let rules = ITEM_RULES.replace("public.item", &format!("public.{name}"));
    let rules = rules.replace(", \"list:{team}:*\"", "");
    let sidecar = Sidecar::set_up(Settings { rules, ..bed.settings() }).await;
    assert_eq!(status(&sidecar).await["rules"][0]["source"], format!("public.{name}"));
    let page = sidecar.get("/").await.unwrap().1;
    assert!(!page.contains("alert(1)"), "it has no names in it");
    let head = head(&sidecar, "/").await;
    for part in [
        "content-security-policy: default-src 'none'; script-src 'sha256-",
        "cache-control: no-store",
        "x-content-type-options: nosniff",
        "content-type: text/html; charset=utf-8",
    ] {
        assert!(head.contains(part), "{part}: {head}");
    }
    assert!(!head.contains("unsafe"), "{head}");
    for (path, kind) in [("/status", "application/json"), ("/events", "text/event-stream")] {
        assert!(self::head(&sidecar, path).await.contains(kind), "{path}");
    }
}

async fn head(sidecar: &Sidecar, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", sidecar.http_port())).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = read_until(&mut stream, "\r\n\r\n").await;
    answer.split("\r\n\r\n").next().unwrap().to_owned()
}

#[tokio::test]
async fn so_many_may_listen_and_the_others_are_told() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    let mut streams = Vec::new();
    for _ in 0..LISTENERS_MAX {
        let mut stream = listen(sidecar.http_port(), None).await;
        let event = read_until(&mut stream, "}\n\n").await;
        assert!(event.starts_with("HTTP/1.1 200 OK") && event.contains("\ndata: {"), "{event}");
        streams.push(stream);
    }
    let (code, body) = sidecar.get("/events").await.unwrap();
    assert!(code == 503 && body.starts_with("enough others listen"), "{code} {body}");
    assert_eq!(sidecar.get("/status").await.unwrap().0, 200);
    // Who stays gets one event after another, longer than an answer may take otherwise.
    let (mut first, began) = (streams.remove(0), tokio::time::Instant::now());
    while began.elapsed() < Duration::from_secs(12) {
        read_until(&mut first, "}\n\n").await;
    }
    let may_listen = async || {
        let mut stream = listen(sidecar.http_port(), None).await;
        read_until(&mut stream, "\r\n").await.starts_with("HTTP/1.1 200")
    };
    drop(streams);
    eventually(PATIENCE, "another one may listen", may_listen).await;
}

/// I10: whoever listens and reads nothing is let go, and meanwhile keys go as ever. Each key has to
/// be gone before the next change is made, whatever the listeners do.
#[tokio::test]
async fn listeners_that_read_nothing_delay_no_removal() {
    let rule = |number| {
        format!("[[rule]]\nname = \"r{number}\"\ntable = \"public.item\"\nkeys = [\"r:{{id}}\"]\n")
    };
    let bed = Bed::new(&[]).await;
    let rules = format!("{ITEM_RULES}{}", (0..500).map(rule).collect::<String>());
    let sidecar = Sidecar::set_up(Settings { rules, ..bed.settings() }).await;
    bed.settled().await;
    let mut streams = Vec::new();
    for _ in 0..LISTENERS_MAX {
        streams.push(listen(sidecar.http_port(), Some(4096)).await);
    }
    let is_full = async || sidecar.get("/events").await.is_some_and(|(code, _)| code == 503);
    eventually(PATIENCE, "all places are taken", is_full).await;
    for round in 0..100 {
        let key = format!("item:{}", round % 10 + 1);
        bed.fill(&[&key]).await;
        bed.sql
            .run(&format!("update item set version = {round} + 1 where id = {}", round % 10 + 1))
            .await;
        bed.gone(&key).await;
    }
    // Ten seconds after they took the last event.
    let is_free = async || {
        let mut stream = listen(sidecar.http_port(), None).await;
        read_until(&mut stream, "\r\n").await.starts_with("HTTP/1.1 200")
    };
    eventually(PATIENCE * 2, "their places are free", is_free).await;
    drop(streams);
}

fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test]
async fn the_command_tells_the_state_as_text_as_json_and_again_and_again() {
    let bed = Bed::new(&[]).await;
    let sidecar = bed.sidecar().await;
    bed.fill(&["item:3"]).await;
    bed.sql.run("update item set version = 1 where id = 3").await;
    bed.gone("item:3").await;
    let _: () = bed.cache.clone().set("item:3", "again").await.unwrap();
    let told = succeeds(&sidecar.command(&["status"]));
    assert!(told.starts_with("ready\n\nverdict    WELL: "), "{told}");
    for part in
        ["\nwaits ", "\npostgres   connected; slot walsweep", "\nredis      redis: ready", "item:"]
    {
        assert_eq!(told.contains(part), part != "item:", "{part}: {told}");
    }
    assert!(told.lines().all(|line| line.chars().count() <= 80), "{told}");
    let json: Value =
        serde_json::from_str(&succeeds(&sidecar.command(&["status", "--json"]))).unwrap();
    assert_eq!(of(&json["rules"], "item")["removed"], 1);
    for (args, part) in [
        (&["status", "--watch"][..], "\nflow       commits "),
        (&["status", "--watch", "--json"], "\n{\"version\""),
    ] {
        let mut child = sidecar.spawn(args);
        let mut stdout = child.stdout.take().unwrap();
        let reading = tokio::task::spawn_blocking(move || {
            use std::io::Read;
            let (mut read, mut piece) = (String::new(), [0; 4096]);
            while !read.contains(part) {
                let size = stdout.read(&mut piece).unwrap();
                assert!(size > 0, "it ended: {read}");
                read.push_str(&valid(&piece[..size]));
            }
            read
        });
        let read = tokio::time::timeout(PATIENCE, reading).await.unwrap().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!read.contains('\u{1b}'), "no terminal, no colours: {read}");
    }
}
