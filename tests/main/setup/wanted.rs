//! A slot is claimed by whoever made it, once it is there: until then the comment says no more than
//! that it is wanted, and whoever makes one of that name meanwhile keeps it.

use walsweep::failpoint::{Point, VARIABLE};

use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually, text};

use super::{COMMENT, MAKE, STANDS, flush, login, owned_by_shopkeeper, printed_sql, psql, rule};

fn of(bed: &Bed) -> Sidecar {
    Sidecar::new(Settings { postgres_url: login(bed, "walsweep"), ..bed.settings() })
}

/// Runs what is printed for an owner, as that owner, who makes no slot.
fn printed_by_owner(bed: &Bed, sidecar: &Sidecar) {
    let script = String::from_utf8(sidecar.command(&["setup", "--print"]).stdout).unwrap();
    assert!(script.contains("`walsweep run` creates it when it starts, or by hand"), "{script}");
    psql(bed, "shopkeeper", &script);
}

/// Lets `run` make the slot, and end once Redis knows that it read it.
async fn made_by_run(bed: &Bed, sidecar: &mut Sidecar) {
    sidecar.start();
    sidecar.wait_ready().await;
    bed.settled().await;
    bed.marked().await;
    assert_eq!(sidecar.sigterm().await, 0);
}

/// A teardown would leave the slot, and says why.
fn leaves(sidecar: &Sidecar, why: &str) {
    let said = text(&sidecar.command(&["teardown", "--print"]));
    assert!(said.contains(why), "{said}");
    assert!(!said.contains("perform pg_catalog.pg_drop"), "{said}");
}

/// It may be anybody's: `run`, which was to make it, reads it with a word, and nobody drops it, be
/// it before or after that.
#[tokio::test]
async fn whoever_makes_the_slot_before_run_does_keeps_it() {
    let bed = owned_by_shopkeeper().await;
    let mut sidecar = of(&bed);
    printed_by_owner(&bed, &sidecar);
    assert_eq!(bed.sql.one::<String>(STANDS).await, "none");
    let comment: String = bed.sql.one(COMMENT).await;
    assert!(comment.contains("\"slots\":[]"), "nobody has made one: {comment}");
    bed.sql.run(MAKE).await;
    bed.sql.run("update item set version = 7 where id = 1").await;
    let stands: String = bed.sql.one(STANDS).await;
    let check = sidecar.command(&["check"]);
    assert!(check.status.success(), "{}", text(&check));
    let told = "slot `walsweep` is there, and may be another program's: `walsweep setup` did not \
                make it for publication `walsweep`, and nobody has claimed it since";
    assert!(text(&check).contains(&format!("warning[slot_unclaimed]: {told}")), "{}", text(&check));
    let left = "left slot `walsweep`: publication `walsweep` records that `walsweep run` was to \
                make it, and not who did";
    leaves(&sidecar, left);
    assert_eq!(bed.sql.one::<String>(STANDS).await, stands);
    sidecar.start();
    sidecar.wait_ready().await;
    let log = sidecar.log().join("\n");
    assert!(log.contains(told), "{log}");
    bed.settled().await;
    bed.marked().await;
    assert_eq!(sidecar.sigterm().await, 0);
    let left = "when walsweep began with the slot, nothing showed";
    leaves(&sidecar, left);
    // Another process does not forget it.
    sidecar.start();
    sidecar.wait_ready().await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    leaves(&sidecar, left);
    let said = text(&sidecar.command(&["setup", "--as", &login(&bed, "shopkeeper")]));
    assert!(said.contains(told), "it says so, and claims nothing: {said}");
    let comment: String = bed.sql.one(COMMENT).await;
    assert!(comment.contains("\"slots\":[]"), "{comment}");
    // Whoever knows better says so.
    psql(&bed, "shopkeeper", &printed_sql(&said));
    let said = text(&sidecar.command(&["teardown", "--as", &login(&bed, "shopkeeper")]));
    assert!(said.contains("dropped slot `walsweep`"), "{said}");
}

/// A Redis that is emptied does not stop a walsweep that was set up to the letter.
#[tokio::test]
async fn a_slot_that_run_made_is_claimed_by_the_next_setup_and_read_without_redis() {
    let bed = owned_by_shopkeeper().await;
    let mut sidecar = of(&bed);
    printed_by_owner(&bed, &sidecar);
    made_by_run(&bed, &mut sidecar).await;
    flush(&bed).await;
    sidecar.start();
    sidecar.wait_ready().await;
    assert_eq!(sidecar.sigterm().await, 0);
    // What nobody can know any more is not claimed, until it is made anew.
    bed.sql.run("select pg_drop_replication_slot('walsweep')").await;
    sidecar.start();
    sidecar.wait_ready().await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    let check = sidecar.command(&["check"]);
    assert!(check.status.success(), "{}", text(&check));
    let told = "info[slot_unclaimed]: slot `walsweep`, which `walsweep setup` left to `walsweep \
                run`, was made and read by it";
    assert!(text(&check).contains(told), "{}", text(&check));
    let output = sidecar.command(&["setup", "--as", &login(&bed, "shopkeeper")]);
    assert!(output.status.success(), "{}", text(&output));
    let comment: String = bed.sql.one(COMMENT).await;
    assert!(comment.contains("\"slots\":[\"walsweep\"]"), "{comment}");
    assert!(!comment.contains("wanted"), "{comment}");
    assert!(!super::checked(&sidecar).contains("slot_unclaimed"));
    flush(&bed).await;
    let said = text(&sidecar.command(&["teardown", "--as", &login(&bed, "shopkeeper")]));
    assert!(said.contains("dropped slot `walsweep`"), "{said}");
}

/// The claim of the slot is written over what the same script has written for the new rule.
#[tokio::test]
async fn what_is_printed_for_a_new_rule_claims_the_slot_that_run_made_too() {
    let bed = owned_by_shopkeeper().await;
    let cart = "create table cart (id int primary key, name text not null);
                alter table cart owner to shopkeeper";
    bed.sql.run(cart).await;
    let mut sidecar = of(&bed);
    printed_by_owner(&bed, &sidecar);
    made_by_run(&bed, &mut sidecar).await;
    sidecar.change(|new| new.rules.push_str(&rule("cart", &["cart:{name}"])));
    let script = String::from_utf8(sidecar.command(&["setup", "--print"]).stdout).unwrap();
    psql(&bed, "shopkeeper", &script);
    let comment: String = bed.sql.one(COMMENT).await;
    assert!(comment.contains("\"slots\":[\"walsweep\"]") && comment.contains("cart"), "{comment}");
    let check = super::checked(&sidecar);
    assert!(!check.contains("slot_unclaimed") && !check.contains("publication_memory"), "{check}");
}

/// An owner who may not replicate lets walsweep's own role make it.
#[tokio::test]
async fn a_setup_as_an_owner_makes_the_slot_as_walsweeps_role_and_claims_it() {
    let bed = owned_by_shopkeeper().await;
    let sidecar = of(&bed);
    let output = sidecar.command(&["setup", "--as", &login(&bed, "shopkeeper")]);
    let said = text(&output);
    assert!(output.status.success() && said.contains("-- created slot `walsweep`"), "{said}");
    let comment: String = bed.sql.one(COMMENT).await;
    assert!(comment.contains("\"slots\":[\"walsweep\"]"), "{comment}");
    let said = text(&sidecar.command(&["setup", "--as", &login(&bed, "shopkeeper")]));
    assert!(said.contains("nothing to do"), "{said}");
    let said = text(&sidecar.command(&["teardown", "--as", &login(&bed, "shopkeeper")]));
    assert!(said.contains("dropped slot `walsweep`"), "{said}");
    assert_eq!(bed.sql.one::<String>(STANDS).await, "none");
}

/// A claim that is printed to be run after the slot was made is not written without one.
#[tokio::test]
async fn the_sql_that_claims_a_slot_refuses_to_claim_one_that_is_not_there() {
    let bed = owned_by_shopkeeper().await;
    let sidecar = of(&bed);
    let output = sidecar.command(&["setup", "--as", &login(&bed, "shopkeeper")]);
    assert!(output.status.success(), "{}", text(&output));
    let said = text(&sidecar.command(&["teardown", "--as", &login(&bed, "shopkeeper")]));
    assert!(said.contains("dropped publication"), "{said}");
    printed_by_owner(&bed, &sidecar);
    let check = super::checked(&sidecar);
    let (_, told) = check.split_once("info[slot_missing]").unwrap_or_else(|| panic!("{check}"));
    let sql = printed_sql(told.split("\ninfo[").next().unwrap());
    let claim = sql.lines().find(|line| line.contains("comment on publication")).unwrap();
    let refused = bed.sql.client().batch_execute(claim).await.unwrap_err();
    let said = refused.as_db_error().map(|error| error.message().to_owned()).unwrap_or_default();
    assert!(said.contains("this session has not made the slot"), "{said}");
    psql(&bed, "postgres", &sql);
    let comment: String = bed.sql.one(COMMENT).await;
    assert!(comment.contains("\"slots\":[\"walsweep\"]"), "{comment}");
}

/// Publication and slot by hand, handed over by its comment: `run` reads the slot, with a word. A
/// `setup` beside that is no reason to refuse it, be Redis emptied or not.
#[tokio::test]
async fn a_setup_for_a_slot_that_was_made_by_hand_leaves_run_as_it_was() {
    let bed = owned_by_shopkeeper().await;
    bed.sql.run("create publication walsweep for table item").await;
    bed.sql.run("alter publication walsweep owner to shopkeeper").await;
    bed.sql.run(crate::data::ADOPT).await;
    bed.sql.run(MAKE).await;
    let mut sidecar = of(&bed);
    sidecar.start();
    sidecar.wait_ready().await;
    assert_eq!(sidecar.sigterm().await, 0);
    flush(&bed).await;
    let output = sidecar.command(&["setup", "--as", &login(&bed, "shopkeeper")]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    for part in ["slot `walsweep` is there", "record that as `shopkeeper`", "comment on publica"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    for _ in 0..2 {
        let check = sidecar.command(&["check"]);
        assert!(check.status.success(), "{}", text(&check));
        sidecar.start();
        sidecar.wait_ready().await;
        assert_eq!(sidecar.sigterm().await, 0);
        flush(&bed).await;
    }
    let said = text(&sidecar.command(&["setup", "--as", &login(&bed, "shopkeeper")]));
    psql(&bed, "shopkeeper", &printed_sql(&said));
    assert!(!super::checked(&sidecar).contains("slot_unclaimed"));
    let said = text(&sidecar.command(&["setup", "--as", &login(&bed, "shopkeeper")]));
    assert!(said.contains("nothing to do") && !said.contains("slot `walsweep`"), "{said}");
}

/// `max_retained_wal` holds while Redis is away, for a slot that the owner's script could not make:
/// the comment wanted it, and the configuration names it. Nobody's `teardown` goes by that.
#[tokio::test]
async fn a_wanted_slot_that_keeps_too_much_is_given_up_while_redis_is_away() {
    let mut bed = owned_by_shopkeeper().await;
    bed.sql.run("create table ballast (text text)").await;
    let mut sidecar = of(&bed);
    sidecar.change(|new| new.postgres = "max_retained_wal = \"64MB\"".to_owned());
    printed_by_owner(&bed, &sidecar);
    made_by_run(&bed, &mut sidecar).await;
    bed.redis.pause().unwrap();
    leaves(&sidecar, "and not who did, but of its confirmed_flush_lsn");
    let check = super::checked(&sidecar);
    let told = "redis does not answer; once it shows that `run` made the slot and read it, the \
                next `walsweep setup` of `shopkeeper`, who owns the publication, claims it";
    assert!(check.contains(told), "{check}");
    sidecar.start();
    sidecar.wait_log(" streaming ").await;
    let rows = "select repeat(md5(n::text), 60) from generate_series(1, 10000) n";
    for _ in 0..5 {
        bed.sql.run(&format!("insert into ballast {rows}")).await;
    }
    sidecar.wait_log("dropping it and creating it anew").await;
    bed.redis.resume().unwrap();
    bed.cache = bed.redis.connect().await.unwrap();
    sidecar.wait_ready().await;
}

/// Run without a stop at the first error, the statement that claims comes after one that failed.
#[tokio::test]
async fn the_sql_that_makes_and_claims_a_slot_claims_nobody_elses() {
    let bed = owned_by_shopkeeper().await;
    let sidecar = of(&bed);
    printed_by_owner(&bed, &sidecar);
    let check = super::checked(&sidecar);
    let (_, told) = check.split_once("info[slot_missing]").unwrap_or_else(|| panic!("{check}"));
    let sql = printed_sql(told.split("\ninfo[").next().unwrap());
    bed.sql.run(MAKE).await;
    psql(&bed, "postgres", &format!("\\set ON_ERROR_STOP off\n{sql}"));
    let comment: String = bed.sql.one(COMMENT).await;
    assert!(comment.contains("\"slots\":[]"), "{comment}");
    leaves(&sidecar, "records that `walsweep run` was to make it, and not who did");
}

/// The watermark comes with the end of the first sweep; a process that dies before it leaves a slot
/// that is walsweep's all the same, be it one that the comment wanted or one that it does not know.
#[tokio::test]
async fn a_slot_whose_first_sweep_was_cut_short_stays_walsweeps() {
    for is_wanted in [true, false] {
        let bed = owned_by_shopkeeper().await;
        let mut sidecar = of(&bed);
        // Its pattern matches the note, too, which no sweep takes.
        sidecar.change(|new| {
            new.rules.push_str(
                "[[rule]]\nname = \"made\"\ntable = \"public.item\"\nkeys = [\"{team}:made\"]\n",
            );
        });
        printed_by_owner(&bed, &sidecar);
        if !is_wanted {
            sidecar.change(|new| {
                let publication = Some("walsweep".to_owned());
                (new.name, new.publication) = ("renamed".to_owned(), publication);
            });
        }
        let crash = format!("{}:1", Point::WatermarkDue.as_str());
        sidecar.change(|new| new.env = vec![(VARIABLE.to_owned(), crash)]);
        sidecar.start();
        assert_eq!(sidecar.wait_exit().await, -6, "it died before the watermark");
        sidecar.change(|new| new.env.clear());
        let check = sidecar.command(&["check"]);
        assert!(check.status.success(), "{}", text(&check));
        sidecar.start();
        sidecar.wait_ready().await;
        let claimed = if is_wanted { "walsweep" } else { "renamed" };
        let marked = || async { bed.has(&format!("walsweep:{claimed}")).await };
        eventually(PATIENCE, "the watermark is written", marked).await;
        assert_eq!(sidecar.sigterm().await, 0);
        let log = sidecar.log().join("\n");
        assert!(!log.contains("may be another program's"), "{log}");
        let owner = login(&bed, "shopkeeper");
        let said = text(&sidecar.command(&["setup", "--as", &owner]));
        let comment: String = bed.sql.one(COMMENT).await;
        assert!(comment.contains(&format!("\"slots\":[\"{claimed}\"]")), "{said}\n{comment}");
        let said = text(&sidecar.command(&["teardown", "--as", &owner]));
        assert!(said.contains(&format!("dropped slot `{claimed}`")), "{said}");
    }
}

/// The note says where that stood which walsweep made.
#[tokio::test]
async fn a_slot_that_was_made_anew_after_a_first_sweep_was_cut_short_is_nobodys() {
    let bed = owned_by_shopkeeper().await;
    let mut sidecar = of(&bed);
    printed_by_owner(&bed, &sidecar);
    let crash = format!("{}:1", Point::WatermarkDue.as_str());
    sidecar.change(|new| new.env = vec![(VARIABLE.to_owned(), crash)]);
    sidecar.start();
    assert_eq!(sidecar.wait_exit().await, -6, "it died before the watermark");
    sidecar.change(|new| new.env.clear());
    let free =
        || async { bed.sql.one::<bool>("select not active from pg_replication_slots").await };
    eventually(PATIENCE, "nobody streams from it", free).await;
    bed.sql.run("select pg_drop_replication_slot('walsweep'); update item set version = 9").await;
    bed.sql.run(MAKE).await;
    leaves(&sidecar, "records that `walsweep run` was to make it, and not who did");
}

/// It made none, so there is nothing to stop.
#[tokio::test]
async fn a_teardown_leaves_a_wanted_slot_that_another_program_reads() {
    let bed = owned_by_shopkeeper().await;
    let sidecar = of(&bed);
    printed_by_owner(&bed, &sidecar);
    bed.sql.run(MAKE).await;
    let mut other = bed.postgres.command("pg_recvlogical");
    other.args(["-d", "postgres", "--slot", "walsweep", "--start", "-f", "/dev/null"]);
    other.args(["-o", "proto_version=1", "-o", "publication_names=walsweep"]);
    let mut other = other.spawn().unwrap();
    let reads = "select active from pg_replication_slots";
    let is_read = || async { bed.sql.one::<bool>(reads).await };
    eventually(PATIENCE, "it is read", is_read).await;
    let output = sidecar.command(&["teardown", "--as", &bed.postgres.url()]);
    let said = text(&output);
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(output.status.success() && said.contains("left slot `walsweep`"), "{said}");
    assert!(!said.contains("stop walsweep") && said.contains("dropped publication"), "{said}");
}
