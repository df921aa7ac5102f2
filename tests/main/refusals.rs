//! A refusal by Redis holds up its own keys, costs Redis little, is said, and is made good.

use std::time::Duration;

use tokio::time::sleep;

use crate::support::{Bed, PATIENCE, Settings, Sidecar, always, eventually};

/// A rule whose keys may be forbidden, beside one whose keys may not.
const TWO_RULES: &str = r#"
[[rule]]
name = "item"
table = "public.item"
keys = ["item:{id}"]

[[rule]]
name = "guarded"
table = "public.guarded"
keys = ["guarded:{id}"]
"#;

const RIGHTS: &str = "-@all +scan +unlink +get +set +incr +eval +ping +info +select +hello +auth \
                      +client";

/// Runs a Redis command as its administrator.
pub(crate) async fn admin(bed: &Bed, words: &str) {
    let mut words = words.split(' ');
    let mut command = redis::cmd(words.next().unwrap());
    command.arg(words.collect::<Vec<_>>());
    let _: redis::Value = command.query_async(&mut bed.cache.clone()).await.unwrap();
}

async fn forbid(bed: &Bed) {
    admin(bed, "ACL SETUSER walsweep resetkeys ~item:* ~walsweep:*").await;
}

async fn allow(bed: &Bed) {
    admin(bed, "ACL SETUSER walsweep ~guarded:*").await;
}

/// A bed with a table `guarded`, and a sidecar that may do everything, with all that a start
/// removes behind it.
async fn start(change: impl FnOnce(&mut Settings)) -> (Bed, Sidecar) {
    let bed = Bed::new(&[]).await;
    bed.sql.run("create table guarded (id int primary key, value int not null default 0)").await;
    admin(&bed, &format!("ACL SETUSER walsweep on nopass ~* {RIGHTS}")).await;
    let mut settings = bed.settings();
    settings.redis_url = settings.redis_url.replace("redis://", "redis://walsweep:any@");
    settings.rules = TWO_RULES.to_owned();
    settings.level = "info".to_owned();
    change(&mut settings);
    let sidecar = Sidecar::set_up(settings).await;
    bed.sql.run("update item set version = version + 1 where id = 100").await;
    bed.settled().await;
    (bed, sidecar)
}

/// Commits one row of `guarded` for each of these ids, each by itself.
async fn commit_each(bed: &Bed, from: u32, to: u32) {
    let rows = format!(
        "do $$ begin for id in {from}..{to} loop
           insert into guarded values (id); commit;
         end loop; end $$"
    );
    bed.sql.run(&rows).await;
}

async fn commit_at_once(bed: &Bed, from: u32, to: u32) {
    let rows = format!("insert into guarded select id from generate_series({from}, {to}) id");
    bed.sql.run(&rows).await;
}

/// Another rule's key goes, and `/readyz` names the rule whose keys do not.
async fn others_go(bed: &Bed, sidecar: &Sidecar, id: u32) {
    let key = format!("item:{id}");
    bed.fill(&[&key]).await;
    bed.sql.run(&format!("update item set version = version + 1 where id = {id}")).await;
    bed.gone(&key).await;
    eventually(PATIENCE, "the rule is named", || async {
        let (status, body) = sidecar.get("/readyz").await.unwrap();
        status == 503 && body.contains("rule `guarded`") && body.contains("~guarded:*")
    })
    .await;
}

/// The right is given again: everything goes and is confirmed.
async fn made_good(bed: &Bed, sidecar: &Sidecar, key: &str) {
    assert!(bed.has(key).await, "it was refused");
    allow(bed).await;
    bed.gone(key).await;
    bed.settled().await;
    eventually(PATIENCE, "it is ready", || async { sidecar.readyz().await == Some(200) }).await;
}

#[tokio::test]
async fn large_transactions_that_redis_refuses_hold_up_no_other_rule() {
    let (bed, sidecar) = start(|_| ()).await;
    bed.fill(&["guarded:1", "guarded:150000", "guarded:7000000", "other"]).await;
    forbid(&bed).await;
    commit_at_once(&bed, 1, 95_000).await;
    let committed = bed.position().await;
    commit_at_once(&bed, 100_001, 195_000).await;
    let received = "walsweep_changes_total{operation=\"insert\"}";
    eventually(PATIENCE * 6, "both are received", || async {
        sidecar.metric(received).await >= 190_000.0
    })
    .await;
    others_go(&bed, &sidecar, 1).await;
    always(Duration::from_secs(1), "nothing is confirmed", || async {
        bed.confirmed().await < committed
    })
    .await;
    others_go(&bed, &sidecar, 2).await;
    made_good(&bed, &sidecar, "guarded:150000").await;
    assert!(!bed.has("guarded:1").await && bed.has("other").await);
    let widened = sidecar.metric("walsweep_widened_total{rule=\"guarded\",reason=\"limit\"}").await;
    assert!(widened >= 1.0, "the set is bounded: {widened}");
}

#[tokio::test]
async fn many_small_transactions_that_redis_refuses_hold_up_no_other_rule() {
    let (bed, sidecar) = start(|settings| settings.refill = "200ms".to_owned()).await;
    bed.fill(&["guarded:1", "guarded:11000"]).await;
    forbid(&bed).await;
    commit_each(&bed, 1, 11_000).await;
    others_go(&bed, &sidecar, 1).await;
    eventually(PATIENCE * 6, "each is received and tried once", || async {
        let received = sidecar.metric("walsweep_changes_total{operation=\"insert\"}").await;
        let in_flight = sidecar.metric("walsweep_in_flight_transactions").await;
        received >= 11_000.0 && in_flight < 0.5
    })
    .await;
    let errors = "walsweep_redis_errors_total{target=\"redis\",kind=\"noperm\"}";
    let tried = sidecar.metric(errors).await;
    sleep(Duration::from_secs(2)).await;
    let tried = sidecar.metric(errors).await - tried;
    assert!(tried < 100.0, "each is tried by itself, again and again: {tried}");
    made_good(&bed, &sidecar, "guarded:11000").await;
    assert!(!bed.has("guarded:1").await);
}

/// A pattern that is refused costs no pass before the right is there.
#[tokio::test]
async fn patterns_that_redis_refuses_keep_it_idle_and_hold_up_no_other() {
    let (bed, sidecar) = start(|settings| {
        settings.rules = TWO_RULES.replace("guarded:{id}", "guarded:{id}:*");
    })
    .await;
    let keys: Vec<String> = (1..=100).map(|id| format!("guarded:{id}:a")).collect();
    bed.fill(&keys.iter().map(String::as_str).collect::<Vec<_>>()).await;
    forbid(&bed).await;
    commit_each(&bed, 1, 100).await;
    others_go(&bed, &sidecar, 1).await;
    sleep(Duration::from_secs(2)).await;
    let scans = bed.calls("scan").await;
    sleep(Duration::from_secs(3)).await;
    let scans = bed.calls("scan").await - scans;
    assert!(scans < 10, "{scans} calls of SCAN for keys that may not be removed");
    others_go(&bed, &sidecar, 2).await;
    made_good(&bed, &sidecar, "guarded:99:a").await;
    assert!(!bed.has("guarded:1:a").await);
}

/// More keys than are remembered one by one: the pattern stands for them, and one is tried first.
#[tokio::test]
async fn a_pattern_with_many_refused_keys_is_not_looked_for_again_and_again() {
    let (bed, sidecar) = start(|settings| {
        settings.rules = TWO_RULES.replace("guarded:{id}", "guarded:*:{id}");
    })
    .await;
    let mut pipeline = redis::Pipeline::new();
    for number in 0..12_000 {
        pipeline.set(format!("guarded:{number}:1"), 1).ignore();
    }
    pipeline.exec_async(&mut bed.cache.clone()).await.unwrap();
    forbid(&bed).await;
    commit_each(&bed, 1, 1).await;
    others_go(&bed, &sidecar, 1).await;
    let scans = bed.calls("scan").await;
    sleep(Duration::from_secs(3)).await;
    let scans = bed.calls("scan").await - scans;
    assert!(scans < 10, "{scans} calls of SCAN for keys that may not be removed");
    made_good(&bed, &sidecar, "guarded:77:1").await;
    bed.gone("guarded:11999:1").await;
}

/// However many keys are refused, those beside them go.
#[tokio::test]
async fn keys_that_may_be_removed_go_beside_many_that_may_not() {
    let (bed, sidecar) = start(|settings| {
        settings.rules = TWO_RULES.replace("guarded:{id}", "guarded:*:{id}");
    })
    .await;
    let mut pipeline = redis::Pipeline::new();
    for number in 0..12_000 {
        pipeline.set(format!("guarded:{number}:1"), 1).ignore();
        pipeline.set(format!("guarded:free{number}:1"), 1).ignore();
    }
    pipeline.exec_async(&mut bed.cache.clone()).await.unwrap();
    forbid(&bed).await;
    admin(&bed, "ACL SETUSER walsweep ~guarded:free*").await;
    commit_each(&bed, 1, 1).await;
    others_go(&bed, &sidecar, 1).await;
    let left = async |prefix: &str| -> usize {
        let mut exists = redis::cmd("EXISTS");
        for number in 0..12_000 {
            exists.arg(format!("guarded:{prefix}{number}:1"));
        }
        exists.query_async(&mut bed.cache.clone()).await.unwrap()
    };
    eventually(PATIENCE, "what may be removed goes", || async { left("free").await == 0 }).await;
    assert_eq!(left("").await, 12_000);
    made_good(&bed, &sidecar, "guarded:11999:1").await;
}

/// I2: what is refused is not confirmed, so that the next start gets it again.
#[tokio::test]
async fn a_crash_while_keys_are_refused_loses_none_of_them() {
    let (bed, mut sidecar) = start(|settings| settings.refill = "200ms".to_owned()).await;
    bed.fill(&["guarded:1", "guarded:2", "guarded:3"]).await;
    forbid(&bed).await;
    commit_each(&bed, 1, 1).await;
    others_go(&bed, &sidecar, 1).await;
    commit_at_once(&bed, 2, 3).await;
    others_go(&bed, &sidecar, 2).await;
    sidecar.kill9();
    sidecar.start();
    others_go(&bed, &sidecar, 3).await;
    made_good(&bed, &sidecar, "guarded:1").await;
    assert!(!bed.has("guarded:2").await && !bed.has("guarded:3").await);
}

/// A server that refuses whatever the keys are is asked again, and not thousands of times.
#[tokio::test]
async fn a_server_that_takes_no_writes_is_named_and_left_in_peace() {
    let (bed, sidecar) = start(|_| ()).await;
    bed.fill(&["item:1", "guarded:1"]).await;
    admin(&bed, "CONFIG SET min-replicas-to-write 1").await;
    left_in_peace(&bed, &sidecar, "NOREPLICAS").await;
    admin(&bed, "CONFIG SET min-replicas-to-write 0").await;
    takes_writes_again(&bed, &sidecar).await;
}

/// The folder that it saves to is gone, as a full disk is.
#[tokio::test]
async fn a_server_that_cannot_save_is_named_and_left_in_peace() {
    let (bed, sidecar) = start(|settings| settings.refill = "200ms".to_owned()).await;
    bed.fill(&["item:1", "guarded:1"]).await;
    std::fs::remove_dir_all(bed.redis.dir()).unwrap();
    let mut save = redis::cmd("CONFIG");
    save.arg(&["SET", "save", "3600 1"]);
    save.exec_async(&mut bed.cache.clone()).await.unwrap();
    admin(&bed, "BGSAVE").await;
    eventually(PATIENCE, "it refuses writes", || async {
        let set = redis::cmd("SET").arg("probe").arg(1).to_owned();
        set.exec_async(&mut bed.cache.clone()).await.is_err()
    })
    .await;
    left_in_peace(&bed, &sidecar, "MISCONF").await;
    admin(&bed, "CONFIG SET stop-writes-on-bgsave-error no").await;
    takes_writes_again(&bed, &sidecar).await;
}

/// Commits, and sees the reason named, few tries, and the keys stay.
async fn left_in_peace(bed: &Bed, sidecar: &Sidecar, reason: &str) {
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    commit_each(bed, 1, 1).await;
    eventually(PATIENCE, "it is named", || async {
        let (status, body) = sidecar.get("/readyz").await.unwrap();
        status == 503 && body.contains(reason)
    })
    .await;
    let errors = "walsweep_redis_errors_total";
    let tried = sidecar.metric_sum(errors).await;
    sleep(Duration::from_secs(3)).await;
    let tried = sidecar.metric_sum(errors).await - tried;
    assert!(tried < 60.0, "{tried} tries");
    assert!(bed.has("item:1").await);
}

async fn takes_writes_again(bed: &Bed, sidecar: &Sidecar) {
    bed.gone("item:1").await;
    bed.gone("guarded:1").await;
    eventually(PATIENCE, "it is ready", || async { sidecar.readyz().await == Some(200) }).await;
    bed.settled().await;
}

/// I7: somebody else's value under the name of the watermark is told with its cure, holds up no
/// removal, and is not destroyed; nothing is confirmed meanwhile.
#[tokio::test]
async fn a_watermark_key_of_another_type_is_named_and_holds_up_no_removal() {
    let (bed, mut sidecar) = start(|_| ()).await;
    admin(&bed, "UNLINK walsweep:walsweep").await;
    admin(&bed, "RPUSH walsweep:walsweep theirs").await;
    let committed = bed.position().await;
    for id in [1, 2] {
        let key = format!("item:{id}");
        bed.fill(&[&key]).await;
        bed.sql.run(&format!("update item set version = version + 1 where id = {id}")).await;
        bed.gone(&key).await;
        eventually(PATIENCE, "it is named", || async {
            let (_, body) = sidecar.get("/readyz").await.unwrap();
            body.contains("WRONGTYPE") && body.contains("rename or remove it")
        })
        .await;
        let errors = "walsweep_redis_errors_total{target=\"redis\",kind=\"wrongtype\"}";
        let tried = sidecar.metric(errors).await;
        sleep(Duration::from_secs(2)).await;
        let tried = sidecar.metric(errors).await - tried;
        assert!(tried <= 4.0, "{tried} tries in two seconds");
        // The next start finds it so.
        sidecar.kill9();
        sidecar.start();
        sidecar.wait_ready().await;
    }
    assert!(bed.confirmed().await <= committed, "nothing later is confirmed");
    let theirs: Vec<String> = redis::cmd("LRANGE")
        .arg(&["walsweep:walsweep", "0", "-1"])
        .query_async(&mut bed.cache.clone())
        .await
        .unwrap();
    assert_eq!(theirs, ["theirs"]);
    admin(&bed, "UNLINK walsweep:walsweep").await;
    bed.settled().await;
    assert!(!sidecar.get("/readyz").await.unwrap().1.contains("WRONGTYPE"));
}

/// A server that ends silent connections keeps ours: none is made again, and no key waits for it.
#[tokio::test]
async fn a_server_that_ends_silent_connections_keeps_ours() {
    let mut bed = Bed::new(&[]).await;
    admin(&bed, "CONFIG SET timeout 1").await;
    let mut settings = bed.settings();
    settings.level = "info".to_owned();
    let sidecar = Sidecar::set_up(settings).await;
    bed.settled().await;
    sleep(Duration::from_secs(7)).await;
    bed.cache = bed.redis.connect().await.unwrap();
    bed.fill(&["list:team 1:a", "item:1"]).await;
    bed.sql.run("update item set version = version + 1 where id = 1").await;
    bed.gone("list:team 1:a").await;
    bed.gone("item:1").await;
    assert_eq!(sidecar.metric("walsweep_reconnects_total{peer=\"redis\"}").await, 0.0);
    sidecar.assert_quiet(&["sweeping everything"]);
}
