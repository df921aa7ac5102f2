//! The audit trail: a line for each transaction whose keys are gone, whatever happens to the file.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::refusals::admin;
use crate::support::{Bed, ITEM_RULES, PATIENCE, Settings, Sidecar, eventually, text};

const MORE_RULES: &str = r#"
[[rule]]
name = "page"
table = "public.item"
keys = ["page:{id}"]
fields = { "hash:{id}" = ["name"] }
"#;

/// The file beside the configuration.
fn file(sidecar: &Sidecar) -> PathBuf {
    sidecar.folder().join("audit.jsonl")
}

/// The lines of an event, of those that are whole.
fn lines(sidecar: &Sidecar, event: &str) -> Vec<Value> {
    let text = fs::read_to_string(file(sidecar)).unwrap_or_default();
    let all = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    all.filter(|line| line["event"] == event).collect()
}

async fn wait_line(sidecar: &Sidecar, event: &str, count: usize) -> Vec<Value> {
    let there = || async { lines(sidecar, event).len() >= count };
    eventually(PATIENCE, &format!("{count} lines of `{event}`"), there).await;
    lines(sidecar, event)
}

/// A sidecar at rest that writes a trail, its lines besides `file` as given.
async fn audited(bed: &Bed, more: &str, change: impl FnOnce(&mut Settings)) -> Sidecar {
    let mut settings = Settings {
        rules: format!("{ITEM_RULES}{MORE_RULES}"),
        audit: format!("file = \"audit.jsonl\"\n{more}"),
        level: "info".to_owned(),
        ..bed.settings()
    };
    change(&mut settings);
    let sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    sidecar
}

/// The words of `why`, with its exit status.
fn why(sidecar: &Sidecar, key: &str) -> (i32, String) {
    let output = sidecar.command(&["why", key]);
    (output.status.code().unwrap(), text(&output))
}

#[tokio::test]
async fn a_transaction_is_one_line_with_all_its_rules_and_times() {
    let bed = Bed::new(&[]).await;
    let refill = |settings: &mut Settings| "300ms".clone_into(&mut settings.refill);
    let mut sidecar = audited(&bed, "", refill).await;
    bed.fill(&["item:1", "list:team 1:a", "list:team 1:b"]).await;
    bed.sql.run("begin; update item set version = 987654321 where id = 1").await;
    let xid = bed.sql.one::<String>("select pg_current_xact_id()::text").await;
    bed.sql.run("commit").await;
    let [line] = wait_line(&sidecar, "removed", 1).await.try_into().unwrap();
    assert_eq!((line["xid"].to_string(), &line["target"]), (xid, &json!("redis")), "{line:#}");
    let expected = json!([
        {"rule": "item", "keys": 1, "patterns": 1, "exact": ["item:1"],
            "matching": ["list:team 1:*"]},
        {"rule": "page", "keys": 2, "patterns": 0, "exact": ["page:1"],
            "fields": [["hash:1", "name"]]},
    ]);
    assert_eq!(line["rules"], expected, "{line:#}");
    let took = ["removed", "absent", "shared_by"].map(|name| line[name].as_u64().unwrap());
    assert_eq!((took[0], took[2]), (3, 1), "{line:#}");
    let times = ["received", "visible", "time"].map(|name| line[name].as_str().unwrap());
    assert!(times.is_sorted(), "{times:?}");
    let [again] = wait_line(&sidecar, "removed_again", 1).await.try_into().unwrap();
    assert_eq!(again["lsns"], json!([line["lsn"]]), "{again:#}");
    let swept = wait_line(&sidecar, "swept", 1).await;
    assert_eq!(swept[0]["reason"], "watermark_missing");
    assert_eq!(swept[0]["rules"][0]["matching"], json!(["item:*", "list:*:*"]));
    let written = fs::read_to_string(file(&sidecar)).unwrap();
    assert!(!written.contains("987654321"), "{written}");
    let mode = fs::metadata(file(&sidecar)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777 & !0o640, 0, "{mode:o}");
    // A person sweeps, and after that nobody runs who could be asked.
    let output = sidecar.command(&["sweep", "page:7*"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(lines(&sidecar, "swept_by_hand")[0]["patterns"], json!(["page:7*"]));
    assert_eq!(sidecar.sigterm().await, 0);
    for (key, part) in [
        ("item:1", "rule `item`; removed again "),
        ("list:team 1:zzz", "rule `item`, pattern `list:team 1:*`; removed again "),
        ("hash:1", "rule `page`, fields `name` of this hash"),
        ("page:77", "by hand: `walsweep sweep` with pattern `page:7*`."),
        ("item:99", "by a sweep of what may be stale"),
    ] {
        let (status, said) = why(&sidecar, key);
        assert!(status == 0 && said.contains(part), "{key}: {said}");
    }
    assert_eq!(why(&sidecar, "other:1").0, 1);
}

/// The process wrote all that it remembers: each removal is told once.
#[tokio::test]
async fn memory_and_trail_together_tell_each_removal_once() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = audited(&bed, "", |_| ()).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    wait_line(&sidecar, "removed", 1).await;
    let (_, said) = why(&sidecar, "item:1");
    assert_eq!(said.matches("was removed ").count(), 2, "for it, and by the first sweep: {said}");
    assert_eq!(said.matches("transaction ").count(), 1, "{said}");
    sidecar.kill9();
    // A crash in the middle of a line.
    let mut opened = OpenOptions::new().append(true).open(file(&sidecar)).unwrap();
    opened.write_all(b"{\"time\":\"2026-11-30T").unwrap();
    sidecar.start();
    sidecar.wait_ready().await;
    bed.sql.run("update item set version = 2 where id = 1").await;
    wait_line(&sidecar, "removed", 2).await;
    let (status, said) = why(&sidecar, "item:1");
    assert!(status == 0 && said.matches("transaction ").count() >= 2, "{said}");
    let output = sidecar.command(&["why", "item:1", "--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["audit"]["unreadable_lines"], 1, "{told:#}");
}

#[tokio::test]
async fn a_file_that_is_full_or_moved_is_followed_by_another() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = audited(&bed, "max_bytes = \"1MiB\"\nkeep = 2", |_| ()).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    wait_line(&sidecar, "removed", 1).await;
    let moved = sidecar.folder().join("moved");
    fs::rename(file(&sidecar), &moved).unwrap();
    bed.sql.run("update item set version = 1 where id = 2").await;
    wait_line(&sidecar, "removed", 1).await;
    assert!(fs::read_to_string(&moved).unwrap().contains("item:1"));
    let numbered = |number: u32| sidecar.folder().join(format!("audit.jsonl.{number}"));
    let mut id = 1_000;
    while !numbered(2).exists() {
        id += 1_000;
        let rows = format!("generate_series({id}, {id} + 999) id");
        bed.sql.run(&format!("insert into item select id, 'many' from {rows}")).await;
        // Faster than it writes lines would be lost.
        let last = format!("\"page:{}\"", id + 999);
        let written = || async {
            let text = fs::read_to_string(file(&sidecar)).unwrap_or_default();
            text.ends_with('\n') && text.contains(&last)
        };
        eventually(PATIENCE, "its line is written", written).await;
        assert!(id < 100_000, "no second file");
    }
    for path in [file(&sidecar), numbered(1), numbered(2)] {
        assert!(fs::metadata(&path).unwrap().len() <= 1 << 20, "{}", path.display());
    }
    assert!(!numbered(3).exists());
    assert!(sidecar.metric("walsweep_audit_lost_total").await < 1.0);
    assert_eq!(sidecar.sigterm().await, 0);
    // The latest of what is remembered stands in any of them.
    for key in [format!("item:{}", id + 1), format!("page:{}", id + 998)] {
        let (status, said) = why(&sidecar, &key);
        assert!(status == 0 && said.contains("transaction "), "{key}: {said}");
    }
}

/// I10: a disk without room loses lines, and nothing else.
#[tokio::test]
async fn a_full_disk_costs_lines_and_no_removal() {
    let bed = Bed::new(&[]).await;
    let sidecar = audited(&bed, "", |settings| {
        "file = \"/dev/full\"".clone_into(&mut settings.audit);
    })
    .await;
    for id in 1..=20 {
        bed.fill(&[&format!("item:{id}")]).await;
        bed.sql.run(&format!("update item set version = 1 where id = {id}")).await;
        bed.gone(&format!("item:{id}")).await;
    }
    bed.settled().await;
    let lost = || async { sidecar.metric("walsweep_audit_lost_total").await >= 20.0 };
    eventually(PATIENCE, "all lines are lost", lost).await;
    let (status, body) = sidecar.get("/readyz").await.unwrap();
    assert!(status == 200 && body.contains("`/dev/full`: No space left"), "{status} {body}");
    let said = sidecar.log().into_iter().filter(|line| line.contains("the audit trail cannot be"));
    assert_eq!(said.count(), 1, "it is said once");
    // The process itself remembers.
    assert_eq!(why(&sidecar, "item:3").0, 0);
}

/// I10: the thread that writes is stuck, for nobody reads the pipe. Nothing waits for it.
#[tokio::test]
async fn a_pipe_that_nobody_reads_holds_nothing_up() {
    let bed = Bed::new(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut sidecar =
        audited(&bed, "", |settings| settings.audit = format!("file = {pipe:?}")).await;
    for id in 1..=20 {
        let rows = format!("generate_series({id}000, {id}999) id");
        bed.sql.run(&format!("insert into item select id, 'many' from {rows}")).await;
    }
    let lost = || async { sidecar.metric("walsweep_audit_lost_total").await >= 1.0 };
    eventually(PATIENCE, "lines are lost", lost).await;
    sidecar.wait_log("lines of the audit trail are lost: ").await;
    bed.fill(&["item:1"]).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    bed.gone("item:1").await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
}

/// A file that may not be written: said, and no reason to stop.
#[tokio::test]
async fn a_folder_that_is_not_there_is_said_and_used_once_it_is() {
    let bed = Bed::new(&[]).await;
    let sidecar = audited(&bed, "", |settings| {
        "file = \"later/audit.jsonl\"".clone_into(&mut settings.audit);
    })
    .await;
    sidecar.wait_log("the audit trail cannot be written to ").await;
    let folder = sidecar.folder().join("later");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    bed.sql.run("update item set version = 1 where id = 1").await;
    sidecar.wait_log("resolved after ").await;
    let written = || async {
        fs::read_to_string(folder.join("audit.jsonl")).is_ok_and(|text| text.contains("item:1"))
    };
    eventually(PATIENCE, "it is written", written).await;
}

/// Redis refuses to remove a key: no line and no screen says that it is gone before it is.
#[tokio::test]
async fn a_refused_key_is_owed_until_a_line_says_that_it_went() {
    let bed = Bed::new(&[]).await;
    admin(&bed, "ACL SETUSER limited on nopass ~* &* +@all").await;
    let limited = bed.redis.url().replace("redis://", "redis://limited:any@");
    let mut sidecar = audited(&bed, "", |settings| {
        settings.redis_url = limited;
        "300ms".clone_into(&mut settings.refill);
    })
    .await;
    admin(&bed, "ACL SETUSER limited resetkeys ~list:* ~page:* ~hash:* ~walsweep*").await;
    bed.fill(&["item:1"]).await;
    bed.sql.run("update item set version = 1 where id = 1").await;
    let [refused] = wait_line(&sidecar, "refused", 1).await.try_into().unwrap();
    assert_eq!(refused["rules"][0]["exact"], json!(["item:1"]), "{refused:#}");
    let of_it = |lines: Vec<Value>| lines.iter().any(|line| line["lsn"] == refused["lsn"]);
    let latest = || async {
        let (_, body) = sidecar.get("/status").await.unwrap();
        let status: Value = serde_json::from_str(&body).unwrap();
        status["transactions"][0]["targets"][0].clone()
    };
    // What Redis took of it is removed again meanwhile.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(bed.has("item:1").await && !of_it(lines(&sidecar, "removed")));
    let told = latest().await;
    assert!(told["removed"].is_null() && told["refused"].is_string(), "{told:#}");
    assert!(told["removed_again"].is_null(), "{told:#}");
    let shown = || text(&sidecar.command(&["status"]));
    assert!(shown().contains("; refused, owed for "), "{}", shown());
    admin(&bed, "ACL SETUSER limited ~*").await;
    let [taken] = wait_line(&sidecar, "refused_gone", 1).await.try_into().unwrap();
    assert_eq!(taken["lsns"], json!([refused["lsn"]]), "{taken:#}");
    assert!(!bed.has("item:1").await);
    let told = latest().await;
    assert!(told["removed"].as_str() > told["refused"].as_str(), "{told:#}");
    assert!(shown().contains(", refused at first"), "{}", shown());
    let again = || async { latest().await["removed_again"].is_string() };
    eventually(PATIENCE, "it goes again", again).await;
    assert_eq!(sidecar.sigterm().await, 0);
    let (status, said) = why(&sidecar, "item:1");
    assert!(status == 0 && said.contains("at first, this one or others: they are gone"), "{said}");
}
