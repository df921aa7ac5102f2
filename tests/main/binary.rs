//! Keys are bytes: whatever stands in a name, the key goes where a rule takes it, stays where none
//! does, and is told in one line of plain letters.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::refusals::admin;
use crate::support::{Bed, ITEM_RULES, PATIENCE, Settings, Sidecar, eventually, text};

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
