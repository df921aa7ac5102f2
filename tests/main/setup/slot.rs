//! Whose the slot is: one bears no mark, so that only what the comment on walsweep's publication
//! claims is dropped, and no `run` begins with one that is probably another program's.

use crate::support::{Bed, PATIENCE, Settings, Sidecar, Sql, eventually, text};

use super::{COMMENT, STANDS, printed_sql, psql, rule};

const PUBLICATIONS: &str = "select count(*) from pg_publication where pubname = 'walsweep'";

/// Makes a slot that holds a change that another program has not read yet; gives where it stands.
async fn others_slot(bed: &Bed) -> String {
    bed.sql.run("select pg_create_logical_replication_slot('walsweep', 'pgoutput')").await;
    bed.sql.run("update item set version = 7 where id = 1").await;
    bed.sql.one(STANDS).await
}

fn dropping(script: &str) -> Vec<&str> {
    let lines = script.lines().filter(|line| line.contains("pg_drop_replication_slot"));
    lines.filter(|line| !line.starts_with("--")).collect()
}

/// `setup` does not say that all is well where `run` would refuse to start.
fn refused(sidecar: &Sidecar) {
    let output = sidecar.command(&["setup"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    for part in ["would refuse to start", "slot `walsweep` is there", "name another one"] {
        assert!(text(&output).contains(part), "{part}: {}", text(&output));
    }
}

#[tokio::test]
async fn the_slot_of_another_consumer_survives_setup_run_and_teardown() {
    let bed = Bed::new(&[]).await;
    let stands = others_slot(&bed).await;
    let mut sidecar = Sidecar::new(bed.settings());
    let script = String::from_utf8(sidecar.command(&["setup", "--print"]).stdout).unwrap();
    assert_eq!(dropping(&script), [""; 0], "{script}");
    assert!(script.contains("slot `walsweep` is left, for it may be another"), "{script}");
    refused(&sidecar);
    let comment: String = bed.sql.one(COMMENT).await;
    refused(&sidecar);
    assert_eq!(bed.sql.one::<String>(COMMENT).await, comment);
    assert_eq!(bed.sql.one::<String>(STANDS).await, stands, "setup");
    let check = super::checked(&sidecar);
    assert!(check.contains("error[slot_unclaimed]: slot `walsweep` is there"), "{check}");
    assert!(check.contains("let `postgres.slot` name another one"), "{check}");
    assert!(!printed_sql(&check).contains("pg_drop_replication_slot"), "{check}");
    assert!(check.contains("would refuse to start"), "{check}");
    sidecar.start();
    assert_eq!(sidecar.wait_exit().await, 1);
    let log = sidecar.log().concat();
    assert!(log.contains("may be another program's") && !log.contains("streaming"), "{log}");
    assert_eq!(bed.sql.one::<String>(STANDS).await, stands, "run");
    let script = String::from_utf8(sidecar.command(&["teardown", "--print"]).stdout).unwrap();
    assert_eq!(dropping(&script), [""; 0], "{script}");
    psql(&bed, "postgres", &script);
    assert_eq!(bed.sql.one::<String>(STANDS).await, stands, "the printed teardown");
    assert_eq!(bed.sql.one::<i64>(PUBLICATIONS).await, 0);
    refused(&sidecar);
    let output = sidecar.command(&["teardown"]);
    assert!(output.status.success(), "{}", text(&output));
    for part in ["left slot `walsweep`", "only if nobody else reads it", "dropped publication"] {
        assert!(text(&output).contains(part), "{part}: {}", text(&output));
    }
    assert_eq!(bed.sql.one::<String>(STANDS).await, stands, "teardown");
    assert_eq!(bed.sql.one::<i64>(PUBLICATIONS).await, 0);
}

/// Redis knows whether walsweep has read the slot; until it answers nothing is read, or dropped.
#[tokio::test]
async fn a_slot_in_doubt_waits_for_redis_to_answer() {
    let mut bed = Bed::new(&[]).await;
    let stands = others_slot(&bed).await;
    let mut sidecar = Sidecar::new(bed.settings());
    refused(&sidecar);
    bed.redis.kill9().await.unwrap();
    sidecar.start();
    sidecar.wait_log("redis does not answer whether it is not").await;
    assert_eq!(bed.sql.one::<String>(STANDS).await, stands);
    bed.redis.start_again().await.unwrap();
    assert_eq!(sidecar.wait_exit().await, 1);
    let log = sidecar.log().concat();
    assert!(!log.contains("streaming") && !log.contains("dropping it"), "{log}");
    assert_eq!(bed.sql.one::<String>(STANDS).await, stands);
}

/// Whoever knows better says so, once; then all is as if `setup` had made it.
#[tokio::test]
async fn a_slot_that_its_owner_claims_is_read_and_dropped() {
    let bed = Bed::new(&[]).await;
    others_slot(&bed).await;
    let mut sidecar = Sidecar::new(bed.settings());
    refused(&sidecar);
    // Of another walsweep, so that both the slot and the tables are to be recorded.
    let comment: String = bed.sql.one(COMMENT).await;
    let others = comment.replace("\"walsweep\"", "\"other\"").replace("[]", "[\"other\"]");
    let others = others.replace("\"identities\":[\"other\"]", "\"identities\":[]");
    bed.sql.run(&format!("comment on publication walsweep is '{others}'")).await;
    let check = super::checked(&sidecar);
    assert!(
        check.contains("[slot_unclaimed]") && check.contains("[publication_memory]"),
        "{check}"
    );
    psql(&bed, "postgres", &printed_sql(&check));
    let check = sidecar.command(&["check"]);
    assert!(check.status.success(), "{}", text(&check));
    for code in ["slot_unclaimed", "publication_memory"] {
        assert!(!text(&check).contains(code), "{}", text(&check));
    }
    sidecar.start();
    sidecar.wait_ready().await;
    assert_eq!(sidecar.sigterm().await, 0);
    let said = text(&sidecar.command(&["teardown"]));
    assert!(said.contains("dropped slot `walsweep`"), "{said}");
    assert_eq!(bed.sql.one::<String>(STANDS).await, "none");
}

/// The publication is gone, and with it what told whose the slot is. The watermark in Redis still
/// does, so that `setup` claims it.
#[tokio::test]
async fn a_publication_dropped_by_hand_and_set_up_again_claims_the_slot_if_redis_shows_it() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    bed.sql.run("drop publication walsweep; update item set version = 1 where id = 1").await;
    let stands: String = bed.sql.one(STANDS).await;
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(STANDS).await, stands, "setup does not move it");
    let comment: String = bed.sql.one(COMMENT).await;
    assert!(comment.contains("\"slots\":[\"walsweep\"]"), "{comment}");
    let check = sidecar.command(&["check"]);
    assert!(check.status.success(), "{}", text(&check));
    assert!(!text(&check).contains("slot_unclaimed"), "{}", text(&check));
    sidecar.start();
    bed.fill(&["item:2"]).await;
    sidecar.wait_ready().await;
    bed.sql.run("update item set version = 2 where id = 2").await;
    bed.gone("item:2").await;
    assert_eq!(sidecar.sigterm().await, 0);
    let said = text(&sidecar.command(&["teardown"]));
    assert!(said.contains("dropped slot `walsweep`"), "{said}");
    assert_eq!(bed.sql.one::<String>(STANDS).await, "none");
    assert_eq!(bed.watermark().await, None, "it goes with the slot: {said}");
}

/// A copied configuration, with a publication of its own: slot, watermark and event trigger have
/// one name, and are the first one's.
#[tokio::test]
async fn a_second_walsweep_with_a_copied_slot_leaves_the_first_ones() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("create materialized view v as select 1 as a").await;
    let of_view = "[[rule]]\nname = \"v\"\nmaterialized_view = \"public.v\"\nkeys = [\"v\"]\n";
    let rules = rule("item", &["item:{id}"]) + of_view;
    let mut first = Sidecar::set_up(Settings { rules: rules.clone(), ..bed.settings() }).await;
    bed.settled().await;
    assert_eq!(first.sigterm().await, 0);
    let stands: String = bed.sql.one(STANDS).await;
    let publication = Some("second".to_owned());
    let second = Sidecar::new(Settings { publication, rules, ..bed.settings() });
    second.setup();
    assert_eq!(bed.sql.one::<String>(STANDS).await, stands, "setup");
    let watermark = bed.watermark().await;
    assert!(watermark.is_some());
    let said = text(&second.command(&["teardown"]));
    for part in ["left slot `walsweep`", "left event trigger `walsweep_refresh`", "`second`"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(bed.sql.one::<String>(STANDS).await, stands, "teardown");
    assert_eq!(bed.watermark().await, watermark, "it is the first one's: {said}");
    let triggers = "select count(*) from pg_event_trigger";
    assert_eq!(bed.sql.one::<i64>(triggers).await, 1, "{said}");
    let said = text(&first.command(&["teardown"]));
    assert!(said.contains("dropped slot `walsweep`"), "{said}");
    assert_eq!(bed.watermark().await, None);
    assert_eq!(bed.sql.one::<i64>(triggers).await, 0, "{said}");
}

/// One that `run` made without `setup` is no other program's: its watermark tells.
#[tokio::test]
async fn a_new_slot_name_that_nobody_set_up_is_told_and_does_not_stop_a_restart() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    assert_eq!(sidecar.sigterm().await, 0);
    let publication = Some("walsweep".to_owned());
    sidecar.change(|new| {
        (new.name, new.publication) = ("renamed".to_owned(), publication);
    });
    for is_again in [false, true] {
        sidecar.start();
        sidecar.wait_ready().await;
        bed.settled().await;
        assert_eq!(sidecar.sigterm().await, 0);
        let check = sidecar.command(&["check"]);
        assert!(check.status.success(), "{is_again}: {}", text(&check));
        let told = "warning[slot_unclaimed]: slot `renamed` is not recorded as walsweep's on \
                    publication `walsweep`: only its watermark in redis shows that it is";
        assert!(text(&check).contains(told), "{is_again}: {}", text(&check));
    }
    // What has not been read by any walsweep with this Redis is another matter.
    bed.sql.run("select pg_create_logical_replication_slot('theirs', 'pgoutput')").await;
    sidecar.change(|new| new.name = "theirs".to_owned());
    let stands: String = bed.sql.one(STANDS).await;
    sidecar.start();
    assert_eq!(sidecar.wait_exit().await, 1);
    assert_eq!(bed.sql.one::<String>(STANDS).await, stands);
}

/// With a publication of somebody else nothing can claim a slot.
#[tokio::test]
async fn beside_a_publication_of_somebody_else_the_slot_is_left_and_told() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("create publication walsweep for table item").await;
    let mut sidecar = Sidecar::new(bed.settings());
    sidecar.setup();
    sidecar.start();
    sidecar.wait_ready().await;
    bed.settled().await;
    bed.marked().await;
    let check = super::checked(&sidecar);
    assert!(check.contains("info[slot_unclaimed]"), "{check}");
    // While a walsweep streams from it, nothing is torn down under it.
    let said = text(&sidecar.command(&["teardown"]));
    assert!(said.contains("streams from it"), "{said}");
    assert_eq!(sidecar.sigterm().await, 0);
    let said = text(&sidecar.command(&["teardown"]));
    assert!(said.contains("left slot `walsweep`: no comment on a publication"), "{said}");
}

/// No finding that is about a slot sends anybody to drop it first.
#[tokio::test]
async fn an_unfit_slot_is_told_with_another_name_first() {
    let bed = Bed::new(&[]).await;
    let sidecar = Sidecar::new(Settings { rules: rule("item", &["item:{id}"]), ..bed.settings() });
    bed.sql.run("select pg_create_logical_replication_slot('walsweep', 'test_decoding')").await;
    let check = super::checked(&sidecar);
    let (_, after) = check.split_once("error[slot_plugin]").expect("it is told");
    let hint = after.lines().nth(1).unwrap().trim();
    assert!(hint.starts_with("hint: let `postgres.slot` name another one"), "{hint}");
    assert!(hint.ends_with("if nobody needs it"), "{hint}");
}

/// Only its watermark will show that a slot is walsweep's which `run` makes beside others that are
/// recorded. Without Redis it would be refused at the next start, and keep WAL.
#[tokio::test]
async fn run_makes_no_slot_that_only_redis_would_show_before_redis_answers() {
    let mut bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    assert_eq!(sidecar.sigterm().await, 0);
    sidecar.change(|new| {
        (new.name, new.publication) = ("second".to_owned(), Some("walsweep".to_owned()));
    });
    let slots = "select string_agg(slot_name, ' ' order by slot_name) from pg_replication_slots";
    // It answers, and takes no note.
    let mut cache = bed.cache.clone();
    let set = async |cache: &mut _, bytes: u32| {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("maxmemory").arg(bytes).exec_async(cache).await.unwrap();
    };
    set(&mut cache, 1).await;
    sidecar.start();
    sidecar.wait_log("slot `second` is not made yet").await;
    assert_eq!(bed.sql.one::<String>(slots).await, "walsweep");
    sidecar.kill9();
    set(&mut cache, 0).await;
    bed.redis.kill9().await.unwrap();
    sidecar.start();
    sidecar.wait_log("slot `second` is not made yet").await;
    assert_eq!(bed.sql.one::<String>(slots).await, "walsweep");
    bed.redis.start_again().await.unwrap();
    sidecar.wait_ready().await;
    assert_eq!(bed.sql.one::<String>(slots).await, "second walsweep");
}

/// A stop in the first sweep of a slot that was made anew leaves the watermark of the one before:
/// the note shows whose the new one is.
#[tokio::test]
async fn a_slot_made_anew_is_shown_by_its_note_beside_an_older_watermark() {
    let bed = Bed::new(&[]).await;
    let mut first = bed.sidecar().await;
    assert_eq!(first.sigterm().await, 0);
    let mut second = Sidecar::new(Settings {
        name: "second".to_owned(),
        publication: Some("walsweep".to_owned()),
        ..bed.settings()
    });
    second.start();
    second.wait_ready().await;
    bed.sql.run("update item set version = 7 where id = 1").await;
    assert_eq!(second.sigterm().await, 0);
    bed.sql.run("select pg_drop_replication_slot('second')").await;
    bed.sql.run("update item set version = 8 where id = 1").await;
    let crash = ("WALSWEEP_TEST_CRASH".to_owned(), "resync_owed".to_owned());
    second.change(|new| new.env.push(crash));
    second.start();
    let made = "select count(*) = 1 from pg_replication_slots where slot_name = 'second'";
    eventually(PATIENCE, "it is made anew", || bed.sql.one::<bool>(made)).await;
    second.wait_exit().await;
    second.change(|new| new.env.clear());
    second.start();
    second.wait_ready().await;
}

/// Two processes for one slot at a first start: the second finds a slot that nothing claims yet,
/// and that the first is making.
#[tokio::test]
async fn a_second_process_stands_by_while_the_first_makes_the_slot() {
    let bed = Bed::new(&[]).await;
    let mut recorded = bed.sidecar().await;
    assert_eq!(recorded.sigterm().await, 0);
    let holder = Sql::connect(&bed.postgres).await;
    holder.run("begin; update item set version = 1 where id = 99").await;
    let settings = Settings {
        name: "second".to_owned(),
        publication: Some("walsweep".to_owned()),
        ..bed.settings()
    };
    let (mut one, mut two) = (Sidecar::new(settings.clone()), Sidecar::new(settings));
    one.start();
    let is_read = "select count(*) = 1 from pg_replication_slots where slot_name = 'second' \
                   and active_pid is not null";
    eventually(PATIENCE, "it is being made", || bed.sql.one::<bool>(is_read)).await;
    two.start();
    two.wait_log("standing by").await;
    let check = super::checked(&two);
    assert!(check.contains("`walsweep run` stands by as long as it is read"), "{check}");
    holder.run("commit").await;
    one.wait_ready().await;
    assert!(!two.has_ended());
    one.kill9();
    two.wait_ready().await;
}
