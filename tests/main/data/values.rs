//! Values that are large, not sent, computed, or left out by the publication.

use redis::AsyncCommands;

use crate::support::{Bed, Settings, Sidecar, text};

use super::{ADOPT, expect, rule, sidecar};

/// Values outside of their row, which an UPDATE of other columns does not send.
#[tokio::test]
async fn an_unchanged_value_outside_of_the_row_is_taken_from_the_old_version_or_widens() {
    let bed = Bed::new(&[]).await;
    let ddl = "create table big (id int primary key, body text, doc jsonb, note text);
               alter table big alter body set storage external, alter doc set storage external;
               alter table big replica identity full;";
    let rules = rule("public.big", &["body:{body|sha256:16}", "doc:{doc|sha256:16}", "n:{note}"]);
    let sidecar = sidecar(&bed, ddl, &rules).await;
    let insert = "insert into big select 1, repeat('x', 100000),
                  jsonb_build_object('a', repeat('y', 100000)), 'n'";
    bed.sql.run(insert).await;
    bed.settled().await;
    let sum = |column: &str| {
        format!(
            "select '{column}:' || left(encode(sha256({column}::text::bytea), 'hex'), 16) from big"
        )
    };
    let (body, doc): (String, String) =
        (bed.sql.one(&sum("body")).await, bed.sql.one(&sum("doc")).await);
    let update = "update big set note = 'm'";
    expect(&bed, update, &[&body, &doc, "n:n", "n:m"], &["body:0", "doc:0"]).await;
    // Without the old version there is nothing to take it from.
    bed.sql.run("alter table big replica identity default").await;
    expect(&bed, "update big set note = 'o'", &[&body, &doc, "body:0", "n:o"], &["other"]).await;
    let widened = "walsweep_widened_total{rule=\"publicbig\",reason=\"unchanged_toast\"}";
    assert!(sidecar.metric(widened).await >= 1.0);
}

#[tokio::test]
async fn a_value_of_half_a_megabyte_is_a_key_and_a_longer_one_a_pattern() {
    let bed = Bed::new(&[]).await;
    let ddl = "create table large (id int primary key, v text)";
    let sidecar = sidecar(&bed, ddl, &rule("public.large", &["large:{new.v}"])).await;
    let key = format!("large:{}", "v".repeat(500_000));
    let insert = "insert into large values (1, repeat('v', 500000))";
    expect(&bed, insert, &[&key], &["large:v"]).await;
    let key = format!("large:{}", "v".repeat(3_000_000));
    let _: () = bed.cache.clone().set(&key, "cached").await.unwrap();
    let insert = "insert into large values (2, repeat('v', 3000000))";
    expect(&bed, insert, &[&key, "large:w"], &["other"]).await;
    let widened = "walsweep_widened_total{rule=\"publiclarge\",reason=\"large_value\"}";
    assert_eq!(sidecar.metric(widened).await, 1.0);
}

#[tokio::test]
async fn computed_numbered_and_dropped_columns_do_not_shift_the_others() {
    let bed = Bed::new(&[]).await;
    let ddl = "create table made (gone text, id int generated always as identity primary key,
                   price int, twice int generated always as (price * 2) stored, also text,
                   name text);
               alter table made drop column gone; alter table made drop column also;
               alter table made replica identity full";
    let rules = rule("public.made", &["made:{id}", "price:{price}", "name:{name}"]);
    let sidecar = sidecar(&bed, ddl, &rules).await;
    let insert = "insert into made (price, name) values (5, 'a')";
    expect(&bed, insert, &["made:1", "price:5", "name:a"], &["made:5", "name:10"]).await;
    let update = "update made set price = 6";
    expect(&bed, update, &["price:5", "price:6"], &["price:12", "price:10"]).await;
    sidecar.assert_quiet(&["watermark_missing"]);
}

/// Since version 18 a publication may have generated columns; virtual ones it never has.
#[tokio::test]
async fn a_generated_column_is_a_key_where_it_is_published() {
    let bed = Bed::new(&[]).await;
    let version = bed.version().await;
    let ddl = "create table made (id int primary key, price int,
                   twice int generated always as (price * 2) stored);
               alter table made replica identity full; insert into made values (1, 5)";
    bed.sql.run(ddl).await;
    let rules = rule("public.made", &["twice:{twice}"]);
    let settings = || Settings::new(&bed.postgres, &bed.redis, &rules);
    if version < 18 {
        let output = Sidecar::new(settings()).command(&["setup"]);
        assert!(!output.status.success(), "{}", text(&output));
        assert!(text(&output).contains("is generated, and not published"), "{}", text(&output));
        return;
    }
    // A full identity has all columns, and all of them have to be published.
    let sidecar = Sidecar::set_up(settings()).await;
    expect(&bed, "update made set price = 6", &["twice:10", "twice:12"], &["twice:5"]).await;
    drop(sidecar);
    bed.sql.run("alter publication walsweep set (publish_generated_columns = none)").await;
    let write = bed.sql.client().batch_execute("update made set price = 7").await;
    assert!(write.is_err(), "without them the server refuses the application's own writes");
    let sidecar = Sidecar::set_up(settings()).await;
    expect(&bed, "update made set price = 8", &["twice:12", "twice:16"], &["twice:5"]).await;
    sidecar.assert_quiet(&["tables_changed"]);
    bed.sql
        .run("alter table made add column half int generated always as (price / 2) virtual")
        .await;
    let mut other = Settings::new(&bed.postgres, &bed.redis, &rule("made", &["half:{new.half}"]));
    other.name = "walsweep".to_owned();
    let output = Sidecar::new(other).command(&["check"]);
    assert!(text(&output).contains("`half` of `public.made` is generated"), "{}", text(&output));
    assert!(text(&output).contains("error[generated_identity]"), "{}", text(&output));
    assert!(text(&output).contains("it is virtual"), "{}", text(&output));
}

/// No cure by a full identity is told, let alone run, where the server would answer it by refusing
/// the application's own writes: without the generated columns, and with virtual ones in any case.
#[tokio::test]
async fn no_full_identity_where_generated_columns_forbid_it() {
    let bed = Bed::new(&[]).await;
    let version = bed.version().await;
    let ddl = "create table made (id int primary key, plain int not null, price int,
                   twice int generated always as (price * 2) stored);
               insert into made values (1, 5, 7), (2, 6, 8)";
    bed.sql.run(ddl).await;
    let rules = rule("public.made", &["plain:{plain}"]);
    let optional = format!("{rules}immutable = [\"plain\"]\n");
    let settings = |rules: &str| Settings::new(&bed.postgres, &bed.redis, rules);
    let told = |rules| text(&Sidecar::new(settings(rules)).command(&["setup", "--print"]));
    let identity = "alter table \"public\".\"made\" replica identity full";
    let generated = "(publish_generated_columns = stored)";
    let used = rule("public.made", &["twice:{new.twice}"]);
    let created = |rules| told(rules).contains(" with (publish_generated_columns = stored)");
    assert_eq!(created(&rules), version >= 18, "created with what is identified");
    assert_eq!(created(&used), version >= 18, "created with what keys need");
    assert!(!created(&optional), "and not for nothing");
    bed.sql.run("create publication walsweep for table made").await;
    bed.sql.run(ADOPT).await;
    let (needed, advice) = (told(&rules), told(&optional));
    if version < 18 {
        assert!(!needed.contains(generated) && needed.contains(identity), "{needed}");
        return;
    }
    let order = |told: &str| told.find(generated).zip(told.find(identity)).map(|(a, b)| a < b);
    assert_eq!(order(&needed), Some(true), "{needed}");
    assert_eq!(order(&advice), Some(true), "{advice}");
    bed.sql.run("alter table made add v int generated always as (price + 1) virtual").await;
    let checked = |rules| text(&Sidecar::new(settings(rules)).command(&["check"]));
    for told in [told(&rules), checked(&rules), checked(&optional)] {
        assert!(!told.contains(identity) && told.contains("would have `v`"), "{told}");
        assert!(!told.contains("generated_identity"), "none is full: {told}");
    }
    let sidecar = Sidecar::set_up(settings(&optional)).await;
    let update = "update made set price = price + 2 where id = 1";
    expect(&bed, update, &["plain:5"], &["plain:6"]).await;
    drop(sidecar);
    // An identity by index may have one, too.
    let by_index = "alter publication walsweep set (publish_generated_columns = none);
                    alter table made drop twice;
                    alter table made add twice int generated always as (price * 2) stored unique;
                    alter table made alter twice set not null;
                    alter table made replica identity using index made_twice_key";
    bed.sql.run(by_index).await;
    assert!(checked(&optional).contains("error[generated_identity]"));
    assert!(bed.sql.client().batch_execute(update).await.is_err(), "the server refuses it");
    let _sidecar = Sidecar::set_up(settings(&optional)).await;
    expect(&bed, update, &["plain:5"], &["plain:6"]).await;
}

/// The log has of an old row the columns of its identity, also once that is changed while the
/// stream runs.
#[tokio::test]
async fn old_values_are_what_the_identity_has_at_the_time_of_the_change() {
    let bed = Bed::new(&[]).await;
    let ddl = "create table ident (id int primary key, slug text not null unique, body text);
               alter table ident replica identity full;
               insert into ident select i, 's' || i, 'b' || i from generate_series(1, 9) i";
    let rules = rule("public.ident", &["id:{id}", "slug:{slug}", "body:{body}"]);
    let sidecar = sidecar(&bed, ddl, &rules).await;
    let update = "update ident set body = 'n' where id = 1";
    expect(&bed, update, &["body:b1", "body:n", "id:1", "slug:s1"], &["body:b2", "id:2"]).await;
    let default = "alter table ident replica identity default;
                   update ident set body = 'o' where id = 1";
    expect(&bed, default, &["body:b2", "slug:s9", "id:1"], &["id:2"]).await;
    let moved = "update ident set id = 11 where id = 1";
    expect(&bed, moved, &["id:1", "id:11", "slug:s9"], &["id:2"]).await;
    expect(&bed, "delete from ident where id = 11", &["id:11", "body:b9"], &["id:2"]).await;
    let index = "alter table ident replica identity using index ident_slug_key;
                 update ident set body = 'o' where id = 2";
    expect(&bed, index, &["slug:s2", "id:9", "body:b9"], &["slug:s3"]).await;
    let moved = "update ident set slug = 'x2', id = 12 where id = 2";
    expect(&bed, moved, &["slug:s2", "slug:x2", "id:2"], &["slug:s3"]).await;
    bed.sql.run("alter table ident replica identity nothing").await;
    let refused = bed.sql.client().batch_execute("update ident set body = 'x'").await.unwrap_err();
    let message = refused.as_db_error().unwrap().message().to_owned();
    assert!(message.contains("does not have a replica identity"), "{message}");
    expect(&bed, "insert into ident values (13, 's13', 'b')", &["id:13"], &["id:3"]).await;
    let full = "alter table ident replica identity full;
                update ident set body = 'z' where id = 3";
    expect(&bed, full, &["body:b3", "body:z", "id:3"], &["body:b4", "id:4", "slug:s4"]).await;
    sidecar.assert_quiet(&["watermark_missing"]);
}

/// Rows that it hides remove no key: the rule is suspended, and the SQL that widens is told.
#[tokio::test]
async fn a_row_filter_is_an_error_until_all_rows_are_published() {
    let bed = Bed::new(&[]).await;
    if bed.version().await < 15 {
        return;
    }
    let ddl = "create table seen (id int, state text, owner text, primary key (id, state));
               alter table seen replica identity full;
               create publication walsweep for table seen where (state <> 'draft')";
    bed.sql.run(ddl).await;
    let rules = rule("public.seen", &["seen:{id}", "state:{state}", "owner:{owner}"]);
    let mut sidecar = Sidecar::new(Settings::new(&bed.postgres, &bed.redis, &rules));
    let output = text(&sidecar.command(&["check"]));
    assert!(output.contains("error[row_filter]"), "{output}");
    assert!(output.contains("cannot be dropped or retyped"), "what it costs: {output}");
    let output = sidecar.command(&["setup"]);
    assert!(!output.status.success(), "somebody else's: {}", text(&output));
    let filtered = "select rowfilter is not null from pg_publication_tables";
    assert!(bed.sql.one::<bool>(filtered).await);
    sidecar.start();
    sidecar.wait_log("rule `publicseen` is suspended").await;
    let sql = text(&output);
    let (_, sql) = sql.split_once("sql: ").unwrap();
    let sql = sql.split("commit;").next().unwrap();
    bed.sql.run(&format!("{sql} commit")).await;
    sidecar.wait_ready().await;
    let insert = "insert into seen values (1, 'draft', 'a'), (2, 'live', 'b')";
    expect(&bed, insert, &["seen:2", "seen:1", "owner:a"], &["seen:3"]).await;
    // One that is added while the stream runs.
    bed.sql.run("alter publication walsweep set table seen where (state <> 'draft')").await;
    sidecar.wait_log("has a row filter for `public.seen`").await;
    bed.fill(&["seen:9"]).await;
    bed.sql.run("alter publication walsweep set table seen").await;
    bed.gone("seen:9").await;
    let hidden = "update seen set owner = 'd' where id = 1";
    expect(&bed, hidden, &["seen:1", "owner:d"], &["seen:2"]).await;
}
