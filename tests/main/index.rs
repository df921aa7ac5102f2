//! `[sweep] index = true`: the names of live keys of patterns are kept, and a pattern costs what it
//! matches.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, cmd, pipe};
use tokio::time::{Instant, sleep};

use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually, text, tracking_id, trickle};

const WHOLE: &str = "walsweep_index_whole{target=\"redis\"}";
const KEYS: &str = "walsweep_index_keys{target=\"redis\"}";
const PASSES: &str = "walsweep_index_passes_total";
const SWEEPS: &str = "walsweep_sweeps_total";

/// A sidecar with a whole index, with all that a start removes behind it.
async fn start(bed: &Bed, change: impl FnOnce(&mut Settings)) -> Sidecar {
    let mut settings = bed.settings();
    settings.sweep = "index = true".to_owned();
    settings.level = "info".to_owned();
    change(&mut settings);
    let sidecar = Sidecar::set_up(settings).await;
    bed.sql.run("update item set version = 0 where id = 100").await;
    bed.settled().await;
    sidecar
}

async fn is_whole(sidecar: &Sidecar) {
    eventually(PATIENCE, "the index is whole", || async { sidecar.metric_sum(WHOLE).await > 0.5 })
        .await;
}

/// Keys of one command with many, made in the server.
async fn many(cache: &MultiplexedConnection, command: &str, prefix: &str, count: u32) {
    let script = format!("for i = 1, ARGV[2] do {command} end");
    let mut eval = cmd("EVAL");
    eval.arg(script).arg(0).arg(prefix).arg(count);
    eval.exec_async(&mut cache.clone()).await.unwrap();
}

async fn left(bed: &Bed, pattern: &str) -> Vec<String> {
    cmd("KEYS").arg(pattern).query_async(&mut bed.cache.clone()).await.unwrap()
}

async fn touch(bed: &Bed, id: u32) {
    bed.sql.run(&format!("update item set version = version + 1 where id = {id}")).await;
}

#[tokio::test]
async fn a_pattern_takes_what_it_matches_and_no_scan() {
    let bed = Bed::new(&[]).await;
    bed.fill(&["list:team 1:before", "list:team 2:before", "other:1"]).await;
    let sidecar = start(&bed, |settings| settings.refill = "200ms".to_owned()).await;
    bed.fill(&["list:team 1:a", "list:team 1:b", "list:team 2:a", "list:team 11:a", "item:1"])
        .await;
    is_whole(&sidecar).await;
    let scans = bed.calls("scan").await;
    touch(&bed, 1).await;
    for key in ["list:team 1:a", "list:team 1:b", "item:1"] {
        bed.gone(key).await;
    }
    bed.fill(&["list:team 1:late"]).await;
    bed.settled().await;
    assert_eq!(left(&bed, "list:team 1:*").await, [""; 0]);
    for key in ["list:team 2:a", "list:team 11:a", "other:1"] {
        assert!(bed.has(key).await, "{key}");
    }
    assert_eq!(bed.calls("scan").await, scans);
    let passes = sidecar.metric(PASSES).await;
    assert!((2.0..6.0).contains(&passes), "{passes}: the removal, and the second one");
}

/// A fill is known although its name comes late: the pass waits for what is on its way.
#[tokio::test]
async fn names_on_their_way_are_waited_for() {
    let bed = Bed::new(&[]).await;
    let port = trickle(bed.redis.port()).await;
    let sidecar =
        start(&bed, |settings| settings.redis_url = format!("redis://127.0.0.1:{port}")).await;
    is_whole(&sidecar).await;
    for round in 0..10 {
        let mut fills = pipe();
        (0..100).for_each(|number| {
            fills.set(format!("list:team 1:{round}:{number}"), "stale").ignore();
        });
        fills.exec_async(&mut bed.cache.clone()).await.unwrap();
        touch(&bed, 1).await;
        bed.settled().await;
        assert_eq!(left(&bed, "list:team 1:*").await, [""; 0], "round {round}");
    }
    assert!(sidecar.metric(PASSES).await >= 10.0);
}

/// A fill between the fence and the removal, or right behind the removal, is not forgotten: the
/// next commit finds it.
#[tokio::test]
async fn what_is_filled_while_it_is_removed_is_known_to_the_next_pass() {
    let bed = Bed::new(&[]).await;
    let sidecar = start(&bed, |_| ()).await;
    is_whole(&sidecar).await;
    let mut writer = bed.redis.connect().await.unwrap();
    let (began, mut fills, scans) = (Instant::now(), 0_u32, bed.calls("scan").await);
    let passes = sidecar.metric(PASSES).await;
    while began.elapsed() < Duration::from_secs(4) {
        let filling = async {
            for number in 0..40_u32 {
                let mut fill = Pipeline::new();
                fill.set(format!("list:team 1:{number}"), "stale").ignore();
                fill.exec_async(&mut writer).await.unwrap();
                fills += 1;
            }
        };
        tokio::join!(filling, touch(&bed, 1));
    }
    bed.settled().await;
    touch(&bed, 1).await;
    bed.settled().await;
    assert_eq!(left(&bed, "list:team 1:*").await, [""; 0], "of {fills}");
    let passes = sidecar.metric(PASSES).await - passes;
    println!("{fills} fills, {passes} passes by the index");
    assert!(passes > 20.0 && bed.calls("scan").await == scans, "{passes} passes");
}

/// Redis tells of a flush without names, whatever database it was of; `SWAPDB` it tells nothing of.
#[tokio::test]
async fn after_a_flush_and_a_swap_no_key_is_missed() {
    let bed = Bed::new(&[]).await;
    let sidecar = start(&bed, |_| ()).await;
    is_whole(&sidecar).await;
    bed.fill(&["list:team 1:a"]).await;
    let mut other = bed.redis.connect().await.unwrap();
    let mut flush = pipe();
    flush.cmd("SELECT").arg(9).cmd("FLUSHDB");
    let () = flush.query_async(&mut other).await.unwrap();
    touch(&bed, 1).await;
    bed.gone("list:team 1:a").await;
    is_whole(&sidecar).await;
    let mut swap = pipe();
    swap.cmd("SET").arg("list:team 1:swapped").arg("stale").cmd("SWAPDB").arg(0).arg(9);
    let () = swap.query_async(&mut other).await.unwrap();
    touch(&bed, 1).await;
    bed.gone("list:team 1:swapped").await;
    sidecar.wait_log("watermark").await;
    is_whole(&sidecar).await;
    bed.fill(&["list:team 1:b"]).await;
    touch(&bed, 1).await;
    bed.gone("list:team 1:b").await;
}

/// Data that the index never saw comes with a watermark that is a little older. What was removed
/// since is removed again, and nothing else: the rest is to be known anew.
#[tokio::test]
async fn what_a_swap_brings_back_is_known() {
    let bed = Bed::new(&[]).await;
    let mut other = bed.redis.connect().await.unwrap();
    let mut before = pipe();
    before.cmd("SELECT").arg(9).cmd("SET").arg("list:team 3:old").arg("stale");
    let () = before.query_async(&mut other).await.unwrap();
    let sidecar = start(&bed, |_| ()).await;
    is_whole(&sidecar).await;
    let mut copy = cmd("COPY");
    copy.arg("walsweep:walsweep").arg("walsweep:walsweep").arg("DB").arg(9);
    copy.exec_async(&mut bed.cache.clone()).await.unwrap();
    touch(&bed, 1).await;
    bed.settled().await;
    let resyncs = sidecar.metric_sum("walsweep_resyncs_total").await;
    cmd("SWAPDB").arg(0).arg(9).exec_async(&mut bed.cache.clone()).await.unwrap();
    let found = async || sidecar.metric("walsweep_repeated_keys_total").await > 0.5;
    eventually(PATIENCE, "the swap is found", found).await;
    touch(&bed, 2).await;
    bed.settled().await;
    assert!(bed.has("list:team 3:old").await, "nothing was committed about it");
    touch(&bed, 3).await;
    bed.gone("list:team 3:old").await;
    assert_eq!(sidecar.metric_sum("walsweep_resyncs_total").await, resyncs, "all is swept");
}

/// An index knows the keys of a rule that came with a reload, and still those of the others.
#[tokio::test]
async fn after_a_reload_the_keys_of_all_rules_are_known() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = start(&bed, |_| ()).await;
    is_whole(&sidecar).await;
    bed.fill(&["list:team 1:before"]).await;
    let more = "\n[[rule]]\nname = \"more\"\ntable = \"public.item\"\n\
                keys = [\"wide:{team}:*\"]\n";
    sidecar.change(|settings| settings.rules.push_str(more));
    let output = sidecar.command(&["reload"]);
    assert!(output.status.success(), "{output:?}");
    sidecar.wait_ready().await;
    is_whole(&sidecar).await;
    bed.fill(&["wide:team 1:a", "list:team 1:after"]).await;
    assert!(bed.has("list:team 1:before").await, "nothing is new about it");
    let scans = bed.calls("scan").await;
    touch(&bed, 1).await;
    for key in ["wide:team 1:a", "list:team 1:before", "list:team 1:after"] {
        bed.gone(key).await;
    }
    assert_eq!(bed.calls("scan").await, scans);
}

/// A pattern that came of a value that is not known is of no template: the index has none of its
/// keys.
#[tokio::test]
async fn a_pattern_that_the_index_does_not_know_goes_by_scan() {
    let bed = Bed::new(&[]).await;
    let sidecar = start(&bed, |_| ()).await;
    is_whole(&sidecar).await;
    bed.fill(&["item:1", "list:team 1:a"]).await;
    bed.sql.run("truncate item").await;
    bed.gone("item:1").await;
    bed.gone("list:team 1:a").await;
}

#[tokio::test]
async fn a_lost_connection_costs_the_index_and_no_key() {
    let bed = Bed::new(&[]).await;
    let sidecar = start(&bed, |_| ()).await;
    is_whole(&sidecar).await;
    bed.fill(&["list:team 1:a"]).await;
    let id = tracking_id(&bed.cache).await.expect("writes are observed");
    let mut both = pipe();
    both.atomic().cmd("CLIENT").arg("KILL").arg("ID").arg(id).set("list:team 1:b", "stale");
    let () = both.query_async(&mut bed.cache.clone()).await.unwrap();
    touch(&bed, 1).await;
    for key in ["list:team 1:a", "list:team 1:b"] {
        bed.gone(key).await;
    }
    is_whole(&sidecar).await;
    bed.fill(&["list:team 1:c"]).await;
    let scans = bed.calls("scan").await;
    touch(&bed, 1).await;
    bed.gone("list:team 1:c").await;
    assert_eq!(bed.calls("scan").await, scans);
}

/// More names than there is memory for: patterns go by SCAN, and memory is given back.
#[tokio::test]
async fn too_many_names_are_no_index_and_no_stale_key() {
    let bed = Bed::new(&[]).await;
    let more = "index = true\nindex_memory = \"1MB\"";
    let sidecar = start(&bed, |settings| settings.sweep = more.to_owned()).await;
    is_whole(&sidecar).await;
    let fill = "redis.call('set', ARGV[1] .. redis.sha1hex(i), i)";
    many(&bed.cache, fill, "list:team 2:", 60_000).await;
    sidecar.wait_log("the names of keys take too much memory").await;
    bed.fill(&["list:team 1:a"]).await;
    let sweeps = sidecar.metric_sum(SWEEPS).await;
    touch(&bed, 1).await;
    bed.gone("list:team 1:a").await;
    bed.settled().await;
    assert!(sidecar.metric_sum(SWEEPS).await > sweeps, "by SCAN");
    assert!(sidecar.metric_sum(WHOLE).await + sidecar.metric_sum(KEYS).await < 0.5);
}

/// On call: commits waited half a minute for a pass that could make nothing whole any more.
#[tokio::test]
async fn a_pass_for_an_index_ends_when_the_names_take_too_much() {
    let bed = Bed::new(&[]).await;
    let more = "index = true\nindex_memory = \"1MB\"\nmax_load = 0.05";
    let mut sidecar = start(&bed, |settings| settings.sweep = more.to_owned()).await;
    is_whole(&sidecar).await;
    bed.marked().await;
    assert_eq!(sidecar.sigterm().await, 0);
    many(&bed.cache, "redis.call('set', ARGV[1] .. i, i)", "other:", 300_000).await;
    let fill = "redis.call('set', ARGV[1] .. redis.sha1hex(i), i)";
    many(&bed.cache, fill, "list:team 2:", 150_000).await;
    sidecar.start();
    sidecar.wait_ready().await;
    sidecar.wait_log("the names of keys take too much memory").await;
    eventually(PATIENCE, "no pass is under way", || async {
        let (_, body) = sidecar.get("/status").await.unwrap();
        let status: serde_json::Value = serde_json::from_str(&body).unwrap();
        status["passes"].as_array().is_some_and(Vec::is_empty)
    })
    .await;
    let scanned = sidecar.metric("walsweep_sweep_scanned_keys_total").await;
    // Redis leaves out the others, and does not count them.
    assert!(scanned < 100_000.0, "{scanned} keys of 150 000");
}

/// Redis does not say whether a key was written or went; names of dead keys go all the same.
#[tokio::test]
async fn names_of_keys_that_expired_are_dropped_and_live_ones_stay() {
    let bed = Bed::new(&[]).await;
    let sidecar = start(&bed, |_| ()).await;
    is_whole(&sidecar).await;
    many(&bed.cache, "redis.call('set', ARGV[1] .. i, i)", "list:team 1:", 2_000).await;
    let fill = "redis.call('set', ARGV[1] .. i, i, 'px', 300)";
    many(&bed.cache, fill, "list:team 2:", 30_000).await;
    // They may be sorted in and looked at in one go.
    eventually(PATIENCE, "the names are looked at", || async {
        bed.calls("exists").await > 31_000
    })
    .await;
    eventually(PATIENCE, "the dead ones go", || async { sidecar.metric_sum(KEYS).await < 2_500.0 })
        .await;
    let scans = bed.calls("scan").await;
    touch(&bed, 1).await;
    bed.settled().await;
    assert_eq!(left(&bed, "list:team 1:*").await, [""; 0]);
    assert_eq!(bed.calls("scan").await, scans, "the index still knows them");
}

/// Keys that the user may not remove hold up themselves alone, and go when they may.
#[tokio::test]
async fn keys_that_are_refused_are_tried_again() {
    let bed = Bed::new(&[]).await;
    let user = async |rights: &str| {
        let mut user = cmd("ACL");
        user.arg("SETUSER").arg("app").arg("resetkeys");
        for right in rights.split(' ') {
            user.arg(right);
        }
        user.exec_async(&mut bed.cache.clone()).await.unwrap();
    };
    user("on >x +@all ~*").await;
    let sidecar = start(&bed, |settings| {
        settings.redis_url = settings.redis_url.replace("redis://", "redis://app:x@");
    })
    .await;
    is_whole(&sidecar).await;
    user("~walsweep:* ~item:* ~list:*2:*").await;
    bed.fill(&["list:team 1:a", "list:team 2:a"]).await;
    let scans = bed.calls("scan").await;
    touch(&bed, 1).await;
    touch(&bed, 2).await;
    bed.gone("list:team 2:a").await;
    assert!(bed.has("list:team 1:a").await);
    // Its name stays, however often it is tried: a commit finds it as one that was never tried.
    touch(&bed, 1).await;
    sleep(Duration::from_millis(300)).await;
    user("~*").await;
    bed.gone("list:team 1:a").await;
    assert_eq!(bed.calls("scan").await, scans);
    // Removed, its name is not kept for ever.
    eventually(PATIENCE, "nothing is in the index", || async {
        sidecar.metric_sum(KEYS).await < 0.5
    })
    .await;
}

/// Without the right to be told, and without one to see that it is still the server that tells.
#[tokio::test]
async fn a_server_that_tells_nothing_is_scanned() {
    for right in ["-client", "-info"] {
        let bed = Bed::new(&[]).await;
        let mut user = cmd("ACL");
        user.arg("SETUSER").arg("app").arg("on").arg(">x").arg("~*").arg("+@all").arg(right);
        user.exec_async(&mut bed.cache.clone()).await.unwrap();
        let sidecar = start(&bed, |settings| {
            settings.redis_url = settings.redis_url.replace("redis://", "redis://app:x@");
        })
        .await;
        sidecar.wait_log("there is no index").await;
        bed.fill(&["list:team 1:a"]).await;
        touch(&bed, 1).await;
        bed.gone("list:team 1:a").await;
        assert!(sidecar.metric_sum(WHOLE).await < 0.5, "{right}");
    }
}

/// A right that is given late is found without a restart, and until then `status` says what lacks.
#[tokio::test]
async fn an_index_comes_when_the_right_is_given() {
    let bed = Bed::new(&[]).await;
    let right = async |right: &str| {
        let mut user = cmd("ACL");
        user.arg("SETUSER").arg("app").arg("on").arg(">x").arg("~*").arg("+@all").arg(right);
        user.exec_async(&mut bed.cache.clone()).await.unwrap();
    };
    right("-client|tracking").await;
    let sidecar = start(&bed, |settings| {
        settings.redis_url = settings.redis_url.replace("redis://", "redis://app:x@");
    })
    .await;
    sidecar.wait_log("there is no index").await;
    let shown = || {
        let shown = text(&sidecar.command(&["status"]));
        shown.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    for part in ["index not whole", "writes are not observed: ", "give `+client|tracking`"] {
        assert!(shown().contains(part), "{part}: {}", shown());
    }
    bed.fill(&["list:team 1:a"]).await;
    touch(&bed, 1).await;
    bed.gone("list:team 1:a").await;
    assert!(sidecar.metric_sum(WHOLE).await < 0.5);
    right("+client|tracking").await;
    eventually(PATIENCE * 4, "the index is whole", || async {
        sidecar.metric_sum(WHOLE).await > 0.5
    })
    .await;
    assert!(!shown().contains("not observed") && shown().contains("index whole"), "{}", shown());
    let scans = bed.calls("scan").await;
    bed.fill(&["list:team 1:b"]).await;
    touch(&bed, 1).await;
    bed.gone("list:team 1:b").await;
    assert_eq!(bed.calls("scan").await, scans);
    assert_eq!(sidecar.log().iter().filter(|line| line.contains("there is no index")).count(), 1);
}

/// A target's prefix is no part of what its rules say; each target has an index of its own.
#[tokio::test]
async fn targets_with_prefixes_have_an_index_each() {
    let bed = Bed::new(&[]).await;
    let target = |name: &str, prefix: &str| {
        format!("name = \"{name}\"\nurl = {:?}\nprefix = \"{prefix}\"", bed.redis.url())
    };
    let targets = vec![target("one", "one:"), target("two", "two:")];
    let sidecar = start(&bed, |settings| settings.targets = targets).await;
    eventually(PATIENCE, "both are whole", || async {
        sidecar.metric_sum("walsweep_index_whole").await > 1.5
    })
    .await;
    bed.fill(&["one:list:team 1:a", "two:list:team 1:a", "list:team 1:a"]).await;
    let scans = bed.calls("scan").await;
    touch(&bed, 1).await;
    bed.gone("one:list:team 1:a").await;
    bed.gone("two:list:team 1:a").await;
    assert!(bed.has("list:team 1:a").await);
    assert_eq!(bed.calls("scan").await, scans);
}

/// Rules without a pattern of their own have nothing for an index; and one that cannot be made
/// keeps nobody busy.
#[tokio::test]
async fn an_index_of_nothing_and_one_that_is_refused_cost_nothing() {
    let bed = Bed::new(&[]).await;
    let rule = "[[rule]]\nname = \"item\"\ntable = \"public.item\"\nkeys = [\"item:{id}\"]\n";
    let mut sidecar = start(&bed, |settings| settings.rules = rule.to_owned()).await;
    bed.fill(&["item:1"]).await;
    touch(&bed, 1).await;
    bed.gone("item:1").await;
    assert!(sidecar.metric_sum(WHOLE).await < 0.5);
    assert_eq!(tracking_id(&bed.cache).await, None, "no write is to be told");
    assert_eq!(sidecar.sigterm().await, 0);

    let user = async |right: &str| {
        let mut user = cmd("ACL");
        user.arg("SETUSER").arg("app").arg("on").arg(">x").arg("~*").arg("+@all").arg(right);
        user.exec_async(&mut bed.cache.clone()).await.unwrap();
    };
    user("+scan").await;
    let sidecar = start(&bed, |settings| {
        settings.name = "second".to_owned();
        settings.redis_url = settings.redis_url.replace("redis://", "redis://app:x@");
    })
    .await;
    is_whole(&sidecar).await;
    user("-scan").await;
    let flush = || async { pipe().cmd("FLUSHDB").exec_async(&mut bed.cache.clone()).await };
    flush().await.unwrap();
    let rejected = async || {
        let info: String =
            cmd("INFO").arg("commandstats").query_async(&mut bed.cache.clone()).await.unwrap();
        let line = info.lines().find(|line| line.starts_with("cmdstat_scan:")).unwrap().to_owned();
        let count = line.split("rejected_calls=").nth(1).unwrap().split(',').next().unwrap();
        count.parse::<u64>().unwrap()
    };
    let before = rejected().await;
    sleep(Duration::from_secs(3)).await;
    let tried = rejected().await - before;
    assert!(tried < 30, "{tried} refused calls in three seconds");
    bed.fill(&["item:1"]).await;
    touch(&bed, 1).await;
    bed.gone("item:1").await;
    user("+scan").await;
    is_whole(&sidecar).await;
}
