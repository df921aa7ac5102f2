//! Evidence that a slot is walsweep's, and what is none: a claim in the comment is a name, and so
//! is a watermark; whoever makes a slot of that name meanwhile keeps it.

use redis::AsyncCommands;
use walsweep::lsn::Lsn;
use walsweep_stage::throwaway::StopMode;

use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually, text};

use super::{
    COMMENT, PUBLISHED, STANDS, flush, login, owned_by_shopkeeper, printed_sql, psql, renamed, rule,
};

const TABLES: &str = "create table shop (id int primary key, name text not null);
                      create table cart (id int primary key, name text not null)";

fn of(bed: &Bed, name: &str, tables: &[&str]) -> Settings {
    let rules = tables.iter().map(|table| rule(table, &["k:{name}"])).collect();
    let publication = Some("walsweep".to_owned());
    Settings { name: name.to_owned(), publication, rules, ..bed.settings() }
}

/// Another program makes a slot under the name anew.
async fn remade(bed: &Bed, name: &str) -> String {
    bed.sql.run(&format!("select pg_drop_replication_slot('{name}')")).await;
    bed.sql.run("update item set version = 7 where id = 1").await;
    bed.sql.run(&format!("select pg_create_logical_replication_slot('{name}', 'pgoutput')")).await;
    bed.sql.one(STANDS).await
}

/// Its watermark is that of the slot from before, or of another history.
#[tokio::test]
async fn an_old_watermark_does_not_make_a_new_slot_of_that_name_walsweeps() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    assert_eq!(sidecar.sigterm().await, 0);
    renamed(&bed, &mut sidecar).await;
    assert_eq!(sidecar.sigterm().await, 0);
    let check = sidecar.command(&["check"]);
    assert!(check.status.success(), "as it was: {}", text(&check));
    // One from beyond the end of the log is of a history that a restored server has not.
    let (key, mut cache) = ("walsweep:renamed", bed.cache.clone());
    let value: String = cache.get(key).await.unwrap();
    let (before, after) = value.split_once("\"lsn\":\"").expect("it names an LSN");
    let (_, after) = after.split_once('"').unwrap();
    let ahead = format!("{before}\"lsn\":\"FF/0\"{after}");
    let _: () = cache.set(key, ahead).await.unwrap();
    let check = super::checked(&sidecar);
    assert!(check.contains("error[slot_unclaimed]"), "{check}");
    let _: () = cache.set(key, &value).await.unwrap();
    let stands = remade(&bed, "renamed").await;
    let check = super::checked(&sidecar);
    assert!(check.contains("error[slot_unclaimed]"), "{check}");
    sidecar.start();
    assert_eq!(sidecar.wait_exit().await, 1);
    assert_eq!(bed.sql.one::<String>(STANDS).await, stands);
}

/// The comment claims the name. Redis shows that walsweep read another slot of it.
#[tokio::test]
async fn teardown_leaves_a_claimed_slot_that_was_made_anew_and_tells_where_it_dropped_one() {
    let bed = Bed::new(&[]).await;
    for is_known in [true, false] {
        let mut sidecar = bed.sidecar().await;
        bed.settled().await;
        bed.marked().await;
        assert_eq!(sidecar.sigterm().await, 0);
        let stands = remade(&bed, "walsweep").await;
        let confirmed = bed.confirmed().await;
        if !is_known {
            flush(&bed).await;
        }
        let printed = text(&sidecar.command(&["teardown", "--print"]));
        let drops = |line: &str| line.contains("perform pg_catalog.pg_drop");
        let is_dropped = printed.lines().any(|line| drops(line) && !line.starts_with("--"));
        assert_eq!(is_dropped, !is_known, "{printed}");
        let said = text(&sidecar.command(&["teardown"]));
        if is_known {
            let left = format!(
                "left slot `walsweep`: publication `walsweep` records it, but of its \
                 confirmed_flush_lsn {confirmed} the watermark in redis is behind it"
            );
            assert!(said.contains(&left) && said.contains("drop it: select"), "{said}");
            assert_eq!(bed.sql.one::<String>(STANDS).await, stands);
            bed.sql.run("select pg_drop_replication_slot('walsweep')").await;
            flush(&bed).await;
        } else {
            let dropped =
                format!("dropped slot `walsweep`, whose confirmed_flush_lsn was {confirmed}");
            assert!(said.contains(&dropped), "{said}");
        }
    }
}

/// `run` made the slot, and its login may not write the comment. While all is well it is said what
/// an emptied Redis would lead to, and who mends it.
#[tokio::test]
async fn a_slot_that_only_redis_knows_is_told_with_who_records_it_before_it_is_refused() {
    let bed = owned_by_shopkeeper().await;
    let login = |role: &str| login(&bed, role);
    let settings = Settings { postgres_url: login("walsweep"), ..bed.settings() };
    let mut sidecar = Sidecar::new(settings);
    let output = sidecar.command(&["setup", "--as", &login("shopkeeper")]);
    assert!(output.status.success(), "{}", text(&output));
    renamed(&bed, &mut sidecar).await;
    assert_eq!(sidecar.sigterm().await, 0);
    let told = "slot `renamed` is not recorded as walsweep's on publication `walsweep`: only its \
                watermark in redis shows that it is; if redis is emptied, the next start refuses \
                it";
    let who = "record that as `shopkeeper`, who owns the publication, or as a superuser";
    let check = sidecar.command(&["check"]);
    assert!(check.status.success(), "{}", text(&check));
    let check = super::checked(&sidecar);
    assert!(check.contains(&format!("warning[slot_unclaimed]: {told}")), "{check}");
    assert!(check.contains(who), "{check}");
    let lines = sidecar.log().len();
    sidecar.start();
    sidecar.wait_ready().await;
    // Another session, of which it is not said again.
    bed.sql.run("select pg_terminate_backend(active_pid) from pg_replication_slots").await;
    sidecar.wait_log("the session with postgres ended").await;
    sidecar.wait_ready().await;
    let log = sidecar.log();
    let warns: Vec<&String> = log[lines..].iter().filter(|line| line.contains(told)).collect();
    assert_eq!(warns.len(), 1, "{log:#?}");
    assert!(warns[0].contains("WARN") && warns[0].contains(who), "{}", warns[0]);
    assert!(warns[0].contains("comment on publication"), "with the SQL: {}", warns[0]);
    assert_eq!(sidecar.sigterm().await, 0);
    flush(&bed).await;
    sidecar.start();
    assert_eq!(sidecar.wait_exit().await, 1);
    let refused = || async { sidecar.log()[log.len()..].join("\n").contains(who) };
    eventually(PATIENCE, "the refusal names who may record it", refused).await;
    sidecar.wait_log("`walsweep check --json` shows it again, with the SQL").await;
    let (_, cure) = check.split_once("warning[slot_unclaimed]").unwrap();
    let cure = cure.split("\nwarning[").next().and_then(|cure| cure.split("\ninfo[").next());
    psql(&bed, "shopkeeper", &printed_sql(cure.unwrap()));
    sidecar.start();
    sidecar.wait_ready().await;
    assert!(!super::checked(&sidecar).contains("slot_unclaimed"));
}

/// A name that was tried once keeps its tables published until somebody forgets it: by its SQL, by
/// `teardown` with the name, be there no such slot or one of another database.
#[tokio::test]
async fn a_slot_name_that_was_tried_once_is_named_and_forgotten() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql.run("create database other").await;
    let own = Sidecar::new(of(&bed, "walsweep", &["shop"]));
    own.setup();
    for by in ["sql", "missing", "other database"] {
        let tried = Sidecar::new(of(&bed, "tried", &["shop", "cart"]));
        tried.setup();
        assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "cart shop");
        assert!(!super::checked(&own).contains("slot_gone"), "it is there");
        bed.sql.run("select pg_drop_replication_slot('tried')").await;
        let check = super::checked(&own);
        let (_, told) = check.split_once("info[slot_gone]: ").unwrap_or_else(|| panic!("{check}"));
        for part in [
            "publication `walsweep` records slot `tried`, which is not on this server in this \
             database; `public.cart` stays published for it",
            "`walsweep teardown` with `postgres.slot = \"tried\"` forgets it, or as `postgres`",
        ] {
            assert!(told.contains(part), "{part}: {check}");
        }
        let said = text(&own.command(&["setup"]));
        assert!(said.contains("-- publication `walsweep` records slot `tried`"), "{said}");
        assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "cart shop", "told, not done");
        if by == "sql" {
            psql(&bed, "postgres", &printed_sql(told.split("\ninfo[").next().unwrap()));
        } else {
            if by == "other database" {
                let url = bed.postgres.url();
                make_slot(&bed, &format!("{}/other", url.strip_suffix("/postgres").unwrap()));
            }
            let output = tried.command(&["teardown"]);
            let said = text(&output);
            assert!(output.status.success(), "{by}: {said}");
            let part = match by {
                "missing" => "there is no slot `tried`",
                _ => "left slot `tried`: it is of database `other`",
            };
            assert!(said.contains(part), "{by}: {said}");
            assert!(said.contains("took `public.cart` out of publication `walsweep`"), "{said}");
        }
        assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "shop", "{by}");
        let comment: String = bed.sql.one(COMMENT).await;
        assert!(comment.contains("\"walsweep\"") && !comment.contains("tried"), "{by}: {comment}");
    }
    let slots = "select string_agg(slot_name, ' ' order by slot_name) from pg_replication_slots";
    assert_eq!(bed.sql.one::<String>(slots).await, "tried walsweep", "the other database's stays");
}

/// A slot of this name in another database.
fn make_slot(bed: &Bed, url: &str) {
    let mut psql = bed.postgres.command("psql");
    let make = "select pg_create_logical_replication_slot('tried', 'pgoutput')";
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", make]);
    let output = psql.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

/// A role that may create publications made one in advance that bears walsweep's comment.
#[tokio::test]
async fn a_publication_of_a_stranger_that_bears_the_comment_is_named_with_its_owner() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create role mallory login; create role shopkeeper login;
             create role walsweep login replication;
             grant create on database postgres to mallory, shopkeeper;
             alter table item owner to shopkeeper",
        )
        .await;
    let settings = Settings {
        postgres_url: bed.postgres.url().replace("//postgres@", "//walsweep@"),
        ..bed.settings()
    };
    let sidecar = Sidecar::new(settings);
    let squatted = format!("create publication walsweep; {}", crate::data::ADOPT);
    psql(&bed, "mallory", &squatted);
    let told = "publication `walsweep` is of `mallory`, who owns none of the rules' tables and is \
                no superuser";
    let check = super::checked(&sidecar);
    assert!(check.contains(&format!("warning[publication_owner]: {told}")), "{check}");
    let said = text(&sidecar.command(&["setup", "--as", &bed.postgres.url()]));
    assert!(said.contains(&format!("-- {told}")), "{said}");
    for owner in ["shopkeeper", "walsweep", "postgres"] {
        bed.sql.run("grant create on database postgres to walsweep").await;
        bed.sql.run(&format!("alter publication walsweep owner to {owner}")).await;
        let check = super::checked(&sidecar);
        assert!(!check.contains("publication_owner"), "{owner}: {check}");
    }
}

/// The role of the configuration replicates, not whoever owns the tables.
#[tokio::test]
async fn what_is_printed_for_an_owner_gives_that_owner_no_right_to_replicate() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create role shopkeeper login; alter table item owner to shopkeeper;
             grant create on database postgres to shopkeeper",
        )
        .await;
    let login = |role: &str| login(&bed, role);
    let sidecar = Sidecar::new(Settings { postgres_url: login("walsweep"), ..bed.settings() });
    let output = sidecar.command(&["setup", "--print", "--as", &login("shopkeeper")]);
    assert!(output.status.success(), "{}", text(&output));
    let script = String::from_utf8(output.stdout).unwrap();
    assert!(script.contains("alter role \"walsweep\" replication"), "{script}");
    assert!(script.contains("-- By `shopkeeper`, who owns table `public.item`:"), "{script}");
    psql(&bed, "postgres", &script);
    let replicates = "select rolreplication from pg_roles where rolname = 'shopkeeper'";
    assert!(!bed.sql.one::<bool>(replicates).await, "{script}");
}

/// Whoever runs what `check` prints for the hand-over, and for the slot, and starts: the slot that
/// the SQL made is recorded.
#[tokio::test]
async fn the_sql_that_hands_a_publication_over_records_the_slot_that_is_made_beside_it() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("create publication walsweep for table item").await;
    let mut sidecar = Sidecar::new(bed.settings());
    let check = super::checked(&sidecar);
    assert!(check.contains("publication_foreign") && check.contains("slot_missing"), "{check}");
    psql(&bed, "postgres", &printed_sql(&check));
    assert!(bed.sql.one::<String>(STANDS).await.starts_with("walsweep "));
    let check = sidecar.command(&["check"]);
    assert!(check.status.success(), "{}", text(&check));
    assert!(!text(&check).contains("slot_unclaimed"), "{}", text(&check));
    sidecar.start();
    sidecar.wait_ready().await;
    assert_eq!(sidecar.sigterm().await, 0);
    let said = text(&sidecar.command(&["teardown"]));
    assert!(said.contains("dropped slot `walsweep`"), "{said}");
}

/// A walsweep that goes on under another slot name leaves its old slot, which keeps WAL.
#[tokio::test]
async fn a_recorded_slot_that_nobody_reads_is_told_with_what_it_keeps_and_what_drops_it() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    assert!(!super::checked(&sidecar).contains("slot_unread"), "it is its own");
    renamed(&bed, &mut sidecar).await;
    let told = "publication `walsweep` records slot `walsweep`, which nobody reads now: it keeps ";
    let check = super::checked(&sidecar);
    assert!(check.contains(&format!("info[slot_unread]: {told}")), "{check}");
    for _ in 0..6 {
        bed.sql.run("create table x (); drop table x; select pg_switch_wal()").await;
    }
    let check = super::checked(&sidecar);
    let warning = format!("warning[slot_unread]: {told}");
    let (_, after) = check.split_once(&warning).unwrap_or_else(|| panic!("{check}"));
    let kept: u32 = after.split(' ').next().unwrap().parse().unwrap();
    assert!(kept > 64, "six segments of 16 MB: {kept}");
    let hint = "first let `walsweep setup` record slot `renamed`, so that the publication stays \
                for it; then `walsweep teardown` with `postgres.slot = \"walsweep\"` drops the \
                slot";
    assert!(after.contains(hint), "{check}");
    // Of the slot that is read `setup` says that the comment does not record it, and records it.
    let said = text(&sidecar.command(&["setup"]));
    assert!(said.contains("-- slot `renamed` is not recorded as walsweep's"), "{said}");
    let check = super::checked(&sidecar);
    assert!(check.contains("[slot_unread]") && !check.contains("first let"), "{check}");
    assert_eq!(sidecar.sigterm().await, 0);
    let said = text(&sidecar.command(&["teardown"]));
    let left = "the walsweep with slot `walsweep` has it, too; nobody reads slot `walsweep` now: \
                if that walsweep is gone, run `walsweep teardown` with that name as";
    assert!(said.contains(left), "{said}");
    bed.sql.run("select pg_drop_replication_slot('walsweep')").await;
    let said = text(&sidecar.command(&["teardown"]));
    let left = "left publication `walsweep`: its comment records slot `walsweep`, too, which is \
                not there";
    assert!(said.contains(left) && !said.contains("the walsweep with slot"), "{said}");
}

/// To work each out takes time that grows with the comment.
#[tokio::test]
async fn of_many_recorded_slots_that_are_gone_five_are_told_and_the_others_counted() {
    let bed = Bed::new(&[]).await;
    let sidecar = Sidecar::new(bed.settings());
    sidecar.setup();
    let comment: String = bed.sql.one(COMMENT).await;
    let slots: Vec<String> = (1..=7).map(|number| format!("\"gone{number}\"")).collect();
    let slots = format!("\"slots\":[\"walsweep\",{}]", slots.join(","));
    let many = comment.replace("\"slots\":[\"walsweep\"]", &slots);
    bed.sql.run(&format!("comment on publication walsweep is '{many}'")).await;
    let check = super::checked(&sidecar);
    assert_eq!(check.matches("info[slot_gone]").count(), 5, "{check}");
    assert!(check.contains("; and 2 others that are not there"), "{check}");
}

/// A promotion, and a restore from an older state, leave one timeline for the next. What stands in
/// Redis of before a promotion is as good as ever; what was written on the old timeline after this
/// server left it is of another history, however far its own log has come since.
#[tokio::test]
async fn a_watermark_from_beyond_where_the_server_left_its_timeline_proves_nothing() {
    let mut bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    assert_eq!(sidecar.sigterm().await, 0);
    renamed(&bed, &mut sidecar).await;
    assert_eq!(sidecar.sigterm().await, 0);
    bed.postgres.stop(StopMode::Fast).await.unwrap();
    std::fs::File::create(bed.postgres.data_dir().join("standby.signal")).unwrap();
    bed.postgres.start_again().await.unwrap();
    bed.sql = crate::support::Sql::connect(&bed.postgres).await;
    bed.sql.run("select pg_promote()").await;
    let left = bed.position().await;
    let check = sidecar.command(&["check"]);
    let told = "warning[slot_unclaimed]: slot `renamed` is not recorded as walsweep's";
    assert!(check.status.success() && text(&check).contains(told), "{}", text(&check));
    for _ in 0..2 {
        bed.sql.run("create table x (); drop table x; select pg_switch_wal()").await;
    }
    let (key, mut cache) = ("walsweep:renamed", bed.cache.clone());
    let value: String = cache.get(key).await.unwrap();
    assert!(value.contains("\"timeline\":1"), "{value}");
    let (before, after) = value.split_once("\"lsn\":\"").expect("it names an LSN");
    let (_, after) = after.split_once('"').unwrap();
    let beyond = format!("{before}\"lsn\":\"{}\"{after}", Lsn(left.0 + 8192));
    let _: () = cache.set(key, beyond).await.unwrap();
    let check = super::checked(&sidecar);
    assert!(check.contains("error[slot_unclaimed]"), "{check}");
}

/// It comes from the comment, and so from whoever owns the publication.
#[tokio::test]
async fn the_name_of_an_index_is_shown_on_one_line() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create table shop (id int primary key, code text not null, name text not null);
             create unique index \"odd\nindex\" on shop (code);
             alter table shop replica identity using index \"odd\nindex\"",
        )
        .await;
    let sidecar = Sidecar::new(of(&bed, "walsweep", &["shop"]));
    sidecar.setup();
    bed.sql.run("drop index \"odd\nindex\"").await;
    let printed = text(&sidecar.command(&["teardown", "--print"]));
    assert!(printed.contains("it was that of index `odd\\nindex`, which is gone"), "{printed}");
}

/// The old slot is torn down while the walsweep goes on under another name, which no comment has.
#[tokio::test]
async fn teardown_of_an_old_slot_name_leaves_the_publication_that_is_read_under_a_new_one() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    let publication = || Some("walsweep".to_owned());
    let old = Sidecar::new(Settings { publication: publication(), ..bed.settings() });
    sidecar.change(|new| (new.name, new.publication) = ("renamed".to_owned(), publication()));
    sidecar.start();
    sidecar.wait_ready().await;
    bed.settled().await;
    let pid: i32 = bed.sql.one("select active_pid from pg_replication_slots where active").await;
    let left = format!(
        "left publication `walsweep`: Postgres process {pid} (`walsweep stream`) reads slot \
         `renamed` with it, which its comment does not record"
    );
    let printed = text(&old.command(&["teardown", "--print"]));
    assert!(!printed.contains("drop publication"), "{printed}");
    let output = old.command(&["teardown"]);
    let said = text(&output);
    assert!(output.status.success() && said.contains(&left), "{said}");
    assert!(said.contains("dropped slot `walsweep`"), "{said}");
    // What is left is the other's, too.
    for part in ["another walsweep that has the publication may log in as it", "unless another"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("revoke "), "{said}");
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "item", "it takes no table out");
    bed.fill(&["item:2"]).await;
    bed.sql.run("update item set version = 8 where id = 2").await;
    bed.gone("item:2").await;
    assert_eq!(sidecar.sigterm().await, 0);
    sidecar.setup();
    sidecar.start();
    sidecar.wait_ready().await;
}

/// A walsweep with a publication of its own has nothing to do with this one.
#[tokio::test]
async fn teardown_drops_its_publication_while_another_walsweep_reads_its_own() {
    let bed = Bed::new(&[]).await;
    let mut other = Sidecar::new(Settings {
        name: "second".to_owned(),
        publication: Some("second".to_owned()),
        ..bed.settings()
    });
    other.setup();
    other.start();
    other.wait_ready().await;
    let sidecar = Sidecar::new(bed.settings());
    sidecar.setup();
    let said = text(&sidecar.command(&["teardown"]));
    assert!(said.contains("dropped publication `walsweep`"), "{said}");
}

/// Redis shows that walsweep read it, and nobody has moved it since: the owner's `setup` writes it
/// down, so that an emptied Redis stops nothing.
#[tokio::test]
async fn setup_claims_a_slot_that_redis_shows_to_be_walsweeps() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    bed.settled().await;
    assert_eq!(sidecar.sigterm().await, 0);
    renamed(&bed, &mut sidecar).await;
    assert_eq!(sidecar.sigterm().await, 0);
    let output = sidecar.command(&["setup"]);
    let said = text(&output);
    assert!(output.status.success() && !said.contains("nothing to do"), "{said}");
    let comment: String = bed.sql.one(COMMENT).await;
    assert!(comment.contains("\"slots\":[\"renamed\",\"walsweep\"]"), "{comment}");
    assert!(comment.contains("\"renamed\":[[\"public\",\"item\"]]"), "{comment}");
    flush(&bed).await;
    sidecar.start();
    sidecar.wait_ready().await;
}
