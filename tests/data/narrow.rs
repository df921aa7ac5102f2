//! A publication of the columns that the rules need, and what happens when they need others.

use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually, text};

use super::{checked, expect, rule};

/// Three tables: by primary key, by another index, and one that is FULL.
const TABLES: &str = "
    create table person (id int primary key, name text not null, mail text, story text);
    create table badge (id int primary key, code text not null unique, story text);
    alter table badge replica identity using index badge_code_key;
    create table whole (id int primary key, a text, b text);
    alter table whole replica identity full;
    insert into person select i, 'n' || i, 'm' || i, repeat('x', 500) from generate_series(1, 9) i;
    insert into badge select i, 'c' || i, repeat('x', 500) from generate_series(1, 9) i;
    insert into whole select i, 'a', 'b' from generate_series(1, 9) i;
    analyze;";

const PUBLISHED: &str = "select string_agg(tablename || array_to_string(attnames, ','), ' '
                                           order by tablename)
                           from pg_publication_tables where pubname = 'walsweep'";

fn rules(person: &[&str]) -> String {
    let badge = rule("public.badge", &["badge:{code}"]);
    rule("public.person", person) + &badge + &rule("public.whole", &["whole:{a}"])
}

/// A server with the tables; none before version 15, which has no column lists.
async fn tables() -> Option<Bed> {
    let bed = Bed::new(&[]).await;
    if bed.version().await < 15 {
        return None;
    }
    bed.sql.run(TABLES).await;
    Some(bed)
}

#[tokio::test]
async fn setup_publishes_what_the_rules_need_and_widens_it_for_other_rules() {
    let Some(bed) = tables().await else { return };
    let settings = Settings::new(&bed.postgres, &bed.redis, &rules(&["person:{id}"]));
    let mut sidecar = Sidecar::new(settings);
    let output = text(&sidecar.command(&["setup", "--print"]));
    assert!(output.contains("1 of 4 columns of `public.person`, 9"), "{output}");
    for table in ["\"badge\" (\"code\")", "\"person\" (\"id\")", "\"whole\""] {
        assert!(output.contains(&format!("\"public\".{table}")), "{output}");
    }
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "badgecode personid wholeid,a,b");
    sidecar.start();
    sidecar.wait_ready().await;
    let writes =
        "update person set story = 'y', id = 11 where id = 1; delete from person where id = 2;
                  update badge set story = 'z', code = 'd' where id = 1;
                  delete from badge where id = 2; update whole set a = 'z' where id = 1";
    let gone = ["person:1", "person:11", "person:2", "badge:c1", "badge:d", "badge:c2", "whole:a"];
    expect(&bed, writes, &gone, &["person:3", "badge:c3", "whole:b"]).await;
    assert_eq!(sidecar.sigterm().await, 0);

    // Other rules need another column: refused, cured, and what was cached before is swept.
    sidecar.change(|settings| settings.rules = rules(&["person:{id}", "name:{new.name}"]));
    let output = sidecar.command(&["check"]);
    assert!(text(&output).contains("error[column_not_published]"), "{}", text(&output));
    assert!(!output.status.success());
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "badgecode personid,name wholeid,a,b");
    bed.fill(&["name:n3", "person:4"]).await;
    sidecar.start();
    sidecar.wait_ready().await;
    bed.gone("name:n3").await;
    bed.settled().await;
    let update = "update person set name = 'q' where id = 3";
    expect(&bed, update, &["name:q", "person:3"], &["person:5", "name:n4"]).await;
    assert_eq!(sidecar.sigterm().await, 0);

    // An old name needs the whole row, which a list does not allow.
    sidecar.change(|settings| settings.rules = rules(&["person:{id}", "name:{name}"]));
    sidecar.setup();
    let all = "badgecode personid,name,mail,story wholeid,a,b";
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, all);
    sidecar.start();
    sidecar.wait_ready().await;
    bed.settled().await;
    let update = "update person set name = 'r' where id = 3";
    expect(&bed, update, &["name:q", "name:r", "person:3"], &["person:5", "name:n4"]).await;
}

#[tokio::test]
async fn a_publication_that_is_there_is_advised_and_left_alone() {
    let Some(bed) = tables().await else { return };
    bed.sql.run("create publication walsweep for table person, badge, whole").await;
    let all = bed.sql.one::<String>(PUBLISHED).await;
    let settings = Settings::new(&bed.postgres, &bed.redis, &rules(&["person:{id}"]));
    let sidecar = Sidecar::new(settings);
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, all);
    let output = checked(&sidecar);
    assert!(output.contains("info[columns_unneeded]"), "{output}");
    let list = "alter publication \"walsweep\" add table \"public\".\"person\" (\"id\");";
    assert!(output.contains(list), "{output}");
    assert!(!output.contains("all of `public.whole`"), "{output}");
    let cure = "begin; alter publication walsweep drop table person;
                alter publication walsweep add table person (id); commit";
    bed.sql.run(cure).await;
    assert!(!checked(&sidecar).contains("publishes all of `public.person`"));
}

/// What `check` offers beyond the need must not break the application's own writes.
#[tokio::test]
async fn a_larger_identity_comes_with_all_columns() {
    let Some(bed) = tables().await else { return };
    let rules = rule("public.person", &["name:{name}"]) + "immutable = [\"name\"]\n";
    let sidecar = Sidecar::new(Settings::new(&bed.postgres, &bed.redis, &rules));
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "personid,name");
    let output = checked(&sidecar);
    let (_, after) = output.split_once("warning[delete_widens]").expect("a DELETE widens");
    let (_, sql) = after.split_once("sql: ").expect("the warning has SQL");
    let sql = sql.split("\ninfo[").next().unwrap().split("\n0 errors").next().unwrap();
    bed.sql.run(sql).await;
    bed.sql.run("update person set story = 'y'; delete from person where id = 1").await;
    assert!(!checked(&sidecar).contains("delete_widens"));
}

/// A list that somebody else made is made longer, never shorter: others may read its columns.
#[tokio::test]
async fn a_list_that_is_there_keeps_its_columns() {
    let Some(bed) = tables().await else { return };
    bed.sql.run("create publication walsweep for table person (id, mail), badge, whole").await;
    let rules = rules(&["person:{id}", "name:{new.name}"]);
    let sidecar = Sidecar::new(Settings::new(&bed.postgres, &bed.redis, &rules));
    sidecar.setup();
    let all = "badgeid,code,story personid,name,mail wholeid,a,b";
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, all);
}

/// What `setup` prints is run by hand, once: no write of the application may fail after it.
#[tokio::test]
async fn a_table_that_has_to_become_full_gets_no_list() {
    let Some(bed) = tables().await else { return };
    let rules = rule("public.person", &["name:{name}"]);
    let sidecar = Sidecar::new(Settings::new(&bed.postgres, &bed.redis, &rules));
    let script = sidecar.command(&["setup", "--print"]);
    let script = String::from_utf8(script.stdout).unwrap();
    // One by one, as psql does it: a slot is not created in a transaction that wrote.
    for statement in script.replace("\\set ON_ERROR_STOP on", "").split(";\n") {
        bed.sql.run(statement).await;
    }
    bed.sql.run("update person set story = 'y'; delete from person where id = 1").await;
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "personid,name,mail,story");
    checked(&sidecar);
}

/// What the README says of a listed column: it is not dropped, and CASCADE, which takes the table
/// out of the publication, is no silence.
#[tokio::test]
async fn a_listed_column_that_is_dropped_with_its_dependents_is_told() {
    let Some(bed) = tables().await else { return };
    bed.sql.run("create publication walsweep for table person (id, mail)").await;
    let rules = rule("public.person", &["person:{id}"]);
    let sidecar = Sidecar::set_up(Settings::new(&bed.postgres, &bed.redis, &rules)).await;
    bed.settled().await;
    let drop = bed.sql.client().batch_execute("alter table person drop column mail").await;
    let refused = drop.unwrap_err().as_db_error().unwrap().message().to_owned();
    assert!(refused.contains("because other objects depend on it"), "{refused}");
    bed.fill(&["person:1", "other"]).await;
    bed.sql.run("alter table person drop column mail cascade; delete from person").await;
    sidecar.wait_log("`public.person` is not in publication `walsweep`").await;
    let readyz = async |status| sidecar.readyz().await == Some(status);
    eventually(PATIENCE, "it is not ready", || readyz(503)).await;
    bed.sql.run("alter publication walsweep add table person (id)").await;
    bed.gone("person:1").await;
    eventually(PATIENCE, "it is ready", || readyz(200)).await;
    assert!(bed.has("other").await);
}
