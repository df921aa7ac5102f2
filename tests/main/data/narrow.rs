//! A publication that somebody narrowed by hand: what it leaves out, what it costs, how it is
//! widened.

use crate::setup::printed_sql;
use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually, text};

use super::{ADOPT, checked, rule};

/// Three tables: by primary key, by another index, and one that is FULL.
const TABLES: &str = "
    create table person (id int primary key, name text not null, mail text, story text);
    create table badge (id int primary key, code text not null unique, story text);
    alter table badge replica identity using index badge_code_key;
    create table whole (id int primary key, a text, b text);
    alter table whole replica identity full;
    insert into person select i, 'n' || i, 'm' || i, repeat('x', 500) from generate_series(1, 9) i;
    insert into badge select i, 'c' || i, repeat('x', 500) from generate_series(1, 9) i;
    insert into whole select i, 'a', 'b' from generate_series(1, 9) i;";

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
async fn setup_publishes_whole_tables() {
    let Some(bed) = tables().await else { return };
    let rules = rules(&["person:{id}"]);
    let sidecar = Sidecar::new(Settings::new(&bed.postgres, &bed.redis, &rules));
    sidecar.setup();
    let all = "badgeid,code,story personid,name,mail,story wholeid,a,b";
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, all);
    let output = checked(&sidecar);
    for word in ["narrow", "column list", "row filter", "Price", "price"] {
        assert!(!output.contains(word), "{word}: {output}");
    }
    // What a migration does later.
    bed.sql
        .run(
            "alter table person drop column mail, alter story type varchar(900);
             alter table badge replica identity full; alter table person replica identity full;
             update person set story = 'y'; update badge set story = 'y'; delete from badge",
        )
        .await;
}

/// Whatever rules need is told, and what a list costs; `setup` widens what is its own.
#[tokio::test]
async fn a_list_that_is_there_is_told_and_widened_if_it_is_walsweeps() {
    let Some(bed) = tables().await else { return };
    bed.sql.run("create publication walsweep for table person (id, mail), badge, whole").await;
    let before = bed.sql.one::<String>(PUBLISHED).await;
    let settings = Settings::new(&bed.postgres, &bed.redis, &rules(&["person:{id}"]));
    let mut sidecar = Sidecar::new(settings);
    let output = checked(&sidecar);
    for part in ["warning[narrowed]", "2 of 4 columns", "cannot be dropped or retyped"] {
        assert!(output.contains(part), "{part}: {output}");
    }
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, before, "somebody else's");
    sidecar.change(|settings| settings.rules = rules(&["person:{id}", "name:{new.name}"]));
    let output = sidecar.command(&["check"]);
    assert!(text(&output).contains("error[column_not_published]"), "{}", text(&output));
    let output = sidecar.command(&["setup"]);
    assert!(!output.status.success());
    for part in ["was not made by `walsweep setup`", "add table only \"public\".\"person\";"] {
        assert!(text(&output).contains(part), "{part}: {}", text(&output));
    }
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, before, "somebody else's");
    // `setup` made the slot, and could not record it on somebody else's publication.
    bed.sql.run(ADOPT).await;
    let said = text(&sidecar.command(&["setup"]));
    assert!(said.contains("if it is walsweep's, record that as `postgres`, who owns"), "{said}");
    bed.sql.run(&printed_sql(&said)).await;
    sidecar.setup();
    let all = "badgeid,code,story personid,name,mail,story wholeid,a,b";
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, all);
    // Without a need, too: a list is for migrations to trip over.
    bed.sql.run("alter publication walsweep set table person, badge (code), whole").await;
    sidecar.setup();
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, all);
}

/// SQL that `check` offers beyond the need does not break the application's own writes.
#[tokio::test]
async fn a_larger_identity_comes_with_all_columns() {
    let Some(bed) = tables().await else { return };
    bed.sql.run("create publication walsweep for table person (id, name)").await;
    let rules = rule("public.person", &["name:{name}"]) + "immutable = [\"name\"]\n";
    let sidecar = Sidecar::new(Settings::new(&bed.postgres, &bed.redis, &rules));
    let output = checked(&sidecar);
    let (_, after) = output.split_once("warning[delete_widens]").expect("a DELETE widens");
    let (_, sql) = after.split_once("sql: ").expect("the warning has SQL");
    let sql = sql.split("\nwarning[").next().unwrap().split("\ninfo[").next().unwrap();
    bed.sql.run(sql).await;
    bed.sql.run("update person set story = 'y'; delete from person where id = 1").await;
    assert!(!checked(&sidecar).contains("delete_widens"));
}

/// A renamed column of a rule is that, and nothing else: no write of the application fails.
#[tokio::test]
async fn a_renamed_column_is_not_told_as_a_column_list_that_fails_writes() {
    let Some(bed) = tables().await else { return };
    bed.sql.run("create publication walsweep for table person (id, name)").await;
    let rules = rule("public.person", &["name:{name}", "person:{id}"]);
    let sidecar = Sidecar::new(Settings::new(&bed.postgres, &bed.redis, &rules));
    bed.sql.run("alter table person rename name to called").await;
    let output = text(&sidecar.command(&["check"]));
    assert!(output.contains("error[column_missing]"), "{output}");
    assert!(!output.contains("error[column_list]"), "{output}");
    bed.sql.run("update person set story = 'y'; delete from person where id = 1").await;
}

/// A listed column is not dropped, as the README says. CASCADE takes the table out of the
/// publication, and that is told.
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
