//! Partitioned tables, whose changes come under their own name or under that of a partition.

use crate::support::{Bed, Settings, Sidecar};

use super::{expect, rule, sidecar};

/// By list of `region`; some of the old values that the rule needs are not in the primary key.
const TABLE: &str = "
    create table part (id int, region text, owner text, primary key (id, region))
        partition by list (region);
    create table part_eu partition of part for values in ('eu');
    create table part_us partition of part for values in ('us') partition by range (id);
    create table part_us_low partition of part_us for values from (0) to (100);
    create table part_us_high partition of part_us for values from (100) to (200);";

#[tokio::test]
async fn changes_of_every_partition_reach_the_rules_of_the_table() {
    let bed = Bed::new(&[]).await;
    let rules = rule("public.part", &["part:{id}", "owner:{owner}", "region:{region}"]);
    let sidecar = sidecar(&bed, TABLE, &rules).await;
    let insert = "insert into part values (1, 'eu', 'a'), (2, 'us', 'b'), (102, 'us', 'c')";
    expect(&bed, insert, &["part:1", "owner:b", "part:102"], &["part:3", "owner:d"]).await;
    let update = "update part set owner = 'x' where id = 102";
    expect(&bed, update, &["owner:c", "owner:x"], &["owner:a", "part:1", "region:eu"]).await;
    // A row that moves is deleted here and inserted there.
    let moved = "update part set region = 'us' where id = 1";
    expect(&bed, moved, &["region:eu", "region:us", "owner:a"], &["owner:b", "part:2"]).await;
    let moved = "update part set id = 150 where id = 2";
    expect(&bed, moved, &["part:2", "part:150", "owner:b"], &["part:1", "region:eu"]).await;
    expect(&bed, "delete from part_us_high where id = 150", &["owner:b"], &["owner:a"]).await;
    expect(&bed, "truncate part", &["part:1", "owner:zz"], &["item:1"]).await;
    sidecar.assert_quiet(&["watermark_missing"]);
}

/// The server sends what the log has under the table's promise of more: NULLs that are none.
#[tokio::test]
async fn a_partition_with_a_smaller_identity_widens_and_is_told_with_its_cure() {
    let bed = Bed::new(&[]).await;
    let rules = rule("public.part", &["owner:{owner}"]);
    let sidecar = sidecar(&bed, TABLE, &rules).await;
    bed.sql.run("insert into part values (1, 'eu', 'a'), (3, 'eu', null), (4, 'eu', 'e')").await;
    bed.settled().await;
    // A whole old version: its NULL is one.
    expect(&bed, "delete from part where id = 3", &[], &["owner:a", "owner:b"]).await;
    let add = "create table part_asia partition of part for values in ('asia');
               insert into part values (10, 'asia', 'b'), (11, 'asia', 'c'), (12, 'asia', 'd')";
    expect(&bed, add, &["owner:b", "owner:d"], &["owner:a"]).await;
    sidecar.wait_log("partition=\"public.part_asia\"").await;
    sidecar.wait_log("`walsweep check` has the SQL that cures it").await;
    let update = "update part set owner = 'n' where id = 10";
    expect(&bed, update, &["owner:b", "owner:n"], &["item:1"]).await;
    let moved = "update part set id = 20 where id = 11";
    expect(&bed, moved, &["owner:c"], &["item:1"]).await;
    expect(&bed, "delete from part where id = 12", &["owner:d"], &["item:1"]).await;
    // The others' old values are still whole, where they are no NULL.
    expect(&bed, "delete from part where id = 4", &["owner:e"], &["owner:a", "owner:zz"]).await;
    let cured = "alter table part_asia replica identity full;
                 update part set owner = 'm' where id = 20";
    expect(&bed, cured, &["owner:c", "owner:m"], &["owner:a", "owner:zz"]).await;
}

/// Nothing is sent of the rows of a table that becomes a partition, or ends being one.
#[tokio::test]
async fn rows_that_come_and_go_with_their_partition_are_swept() {
    let bed = Bed::new(&[]).await;
    let rules = rule("public.part", &["part:{id}", "list:{region}:*"]);
    let sidecar = sidecar(&bed, TABLE, &rules).await;
    bed.sql.run("insert into part values (1, 'eu', 'a')").await;
    bed.settled().await;
    bed.fill(&["part:1", "list:eu:1", "other"]).await;
    bed.sql.run("alter table part detach partition part_eu").await;
    bed.gone("part:1").await;
    bed.gone("list:eu:1").await;
    bed.fill(&["part:1"]).await;
    bed.sql.run("update part_eu set id = 1").await;
    bed.settled().await;
    assert!(bed.has("part:1").await, "it is another table now");
    bed.sql.run("alter table part attach partition part_eu for values in ('eu')").await;
    bed.gone("part:1").await;
    expect(&bed, "update part set id = 2 where id = 1", &["part:1", "part:2"], &["other"]).await;
    bed.fill(&["part:2"]).await;
    bed.sql.run("drop table part_eu").await;
    bed.gone("part:2").await;
    assert_eq!(sidecar.metric("walsweep_resyncs_total{reason=\"tables_changed\"}").await, 3.0);
    // One that is made empty needs no sweep.
    bed.settled().await;
    let add = "create table part_new partition of part for values in ('new');
               alter table part_new replica identity full;
               insert into part values (7, 'new', 'a')";
    expect(&bed, add, &["part:7", "list:new:x"], &["part:8", "list:eu:x"]).await;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert!(bed.has("part:8").await);
}

/// A common way to load many rows: they are no changes of the table, though they come with a
/// partition that is as old as its membership.
#[tokio::test]
async fn rows_of_a_partition_that_is_filled_and_attached_in_one_transaction_are_swept() {
    let bed = Bed::new(&[]).await;
    let rules = rule("public.part", &["part:{id}", "list:{region}:*"]);
    let sidecar = sidecar(&bed, TABLE, &rules).await;
    let swept = "walsweep_resyncs_total{reason=\"tables_changed\"}";
    for (count, region, last) in [
        (1.0, "asia", "alter table part_asia replica identity full"),
        (2.0, "africa", "alter table part_africa rename to part_af"),
    ] {
        bed.settled().await;
        bed.fill(&["part:7", &format!("list:{region}:x"), "other"]).await;
        bed.sql
            .run(&format!(
                "begin; create table part_{region} (like part including all);
                 insert into part_{region} values (7, '{region}', 'a');
                 alter table part attach partition part_{region} for values in ('{region}');
                 {last}; commit"
            ))
            .await;
        bed.gone("part:7").await;
        bed.gone(&format!("list:{region}:x")).await;
        assert!(bed.has("other").await);
        assert_eq!(sidecar.metric(swept).await, count);
    }
    // One that is made as a partition needs no sweep, whatever its columns are.
    bed.settled().await;
    bed.fill(&["part:8"]).await;
    let add = "begin; create table part_new partition of part (owner not null default 'x')
                   for values in ('new') partition by list (id);
               create table part_new_one partition of part_new default;
               insert into part values (9, 'new', 'a'); commit";
    expect(&bed, add, &["part:9", "list:new:x"], &["part:8", "other"]).await;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert!(bed.has("part:8").await);
}

/// Fills keys, runs statements as one transaction, quicker than a look, and again while walsweep is
/// down: `gone` goes, the other keys stay.
async fn swept(bed: &Bed, sidecar: &mut Sidecar, statements: &str, (gone, stay): (&str, &[&str])) {
    let others = async || {
        for key in stay {
            assert!(bed.has(key).await, "{key} after {statements}");
        }
    };
    sidecar.wait_ready().await;
    bed.settled().await;
    bed.fill(stay).await;
    bed.fill(&[gone]).await;
    bed.sql.run(&format!("begin; {statements}; commit")).await;
    bed.gone(gone).await;
    sidecar.wait_ready().await;
    bed.settled().await;
    others().await;
    assert_eq!(sidecar.sigterm().await, 0);
    bed.fill(&[gone]).await;
    bed.sql.run(&format!("begin; {statements}; commit")).await;
    sidecar.start();
    sidecar.wait_ready().await;
    assert!(!bed.has(gone).await, "{statements}");
    others().await;
}

/// Changes in between are another table's: only the membership tells of them, as a new one.
#[tokio::test]
async fn a_partition_or_an_heir_that_is_taken_out_changed_and_put_back_at_once_is_swept() {
    let bed = Bed::new(&[]).await;
    let rules = [
        rule("public.part", &["part:{id}"]),
        rule("public.tree", &["tree:{id}"]),
        rule("public.heir", &["heir:{id}"]),
    ];
    let more = "create table tree (id int primary key, owner text);
                create table heir (primary key (id)) inherits (tree);
                insert into heir values (1, 'a'); insert into part values (1, 'eu', 'a')";
    let mut sidecar = sidecar(&bed, &format!("{TABLE}{more}"), &rules.concat()).await;
    let part = "alter table part detach partition part_eu; update part_eu set owner = 'b';
                alter table part attach partition part_eu for values in ('eu')";
    swept(&bed, &mut sidecar, part, ("part:1", &["tree:1", "heir:1"])).await;
    let tree = "alter table heir no inherit tree; alter table heir inherit tree";
    swept(&bed, &mut sidecar, tree, ("tree:1", &["part:1", "heir:1"])).await;
}

/// Changes of a partition are told while it is a part of the table that is published.
#[tokio::test]
async fn a_partition_that_is_published_with_its_table_and_taken_out_for_a_change_is_swept() {
    let bed = Bed::new(&[]).await;
    let rules = [rule("public.part_eu", &["eu:{id}"]), rule("public.part_asia", &["asia:{id}"])];
    let more = "create table part_asia partition of part for values in ('asia');
                insert into part values (1, 'eu', 'a');
                create publication walsweep for table part";
    bed.sql.run(&format!("{TABLE}{more}")).await;
    let mut sidecar =
        Sidecar::set_up(Settings::new(&bed.postgres, &bed.redis, &rules.concat())).await;
    let statements = "alter table part detach partition part_eu; update part_eu set owner = 'b';
                      alter table part attach partition part_eu for values in ('eu')";
    swept(&bed, &mut sidecar, statements, ("eu:1", &["asia:1"])).await;
}
