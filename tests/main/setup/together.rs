//! Several walsweeps with one publication: what one writes into its comment, and takes out of it,
//! the others keep.

use std::process::{Child, Output};

use crate::support::{Bed, PATIENCE, Settings, Sidecar, eventually, text};

use super::{COMMENT, PUBLISHED, psql, rule};

const TABLES: &str = "create table shop (id int primary key, name text not null);
                      create table cart (id int primary key, name text not null);
                      create table club (id int primary key, name text not null);
                      create table stall (id int primary key, name text not null)";

fn of(bed: &Bed, name: &str, tables: &[&str]) -> Sidecar {
    let rules = tables.iter().map(|table| rule(table, &["k:{name}"])).collect();
    let publication = Some("walsweep".to_owned());
    Sidecar::new(Settings { name: name.to_owned(), publication, rules, ..bed.settings() })
}

async fn ended(child: Child) -> Output {
    tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap()
}

/// Side by side, many times: from nothing, and where there is a publication already.
#[tokio::test]
async fn two_setups_at_once_leave_what_both_are_to_be_remembered_of() {
    let bed = Bed::new(&["max_replication_slots = 16"]).await;
    bed.sql.run(TABLES).await;
    let (one, two) = (of(&bed, "one", &["shop", "club"]), of(&bed, "two", &["cart", "club"]));
    let third = of(&bed, "third", &["stall"]);
    for round in 0..20 {
        if round % 2 == 1 {
            third.setup();
        }
        let children = [one.spawn(&["setup"]), two.spawn(&["setup"])];
        for child in children {
            let output = ended(child).await;
            assert!(output.status.success(), "round {round}: {}", text(&output));
        }
        let comment: String = bed.sql.one(COMMENT).await;
        for part in [
            "\"one\":[[\"public\",\"club\"],[\"public\",\"shop\"]]",
            "\"two\":[[\"public\",\"cart\"],[\"public\",\"club\"]]",
            "\"relation\":[\"public\",\"shop\"]",
            "\"relation\":[\"public\",\"cart\"]",
        ] {
            assert!(comment.contains(part), "round {round}, {part}: {comment}");
        }
        let slots =
            if round % 2 == 1 { "[\"one\",\"third\",\"two\"]" } else { "[\"one\",\"two\"]" };
        assert!(comment.contains(&format!("\"slots\":{slots}")), "round {round}: {comment}");
        let said = text(&one.command(&["setup"])) + &text(&two.command(&["setup"]));
        assert_eq!(said.matches("nothing to do").count(), 2, "round {round}: {said}");
        bed.sql
            .run(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots;
                 drop publication walsweep;
                 alter table stall replica identity default;
                 alter table shop replica identity default;
                 alter table cart replica identity default;
                 alter table club replica identity default",
            )
            .await;
    }
}

fn printed(sidecar: &Sidecar) -> String {
    String::from_utf8(sidecar.command(&["setup", "--print"]).stdout).unwrap()
}

fn run_psql(bed: &Bed, before: &str, script: &str) -> Output {
    let mut psql = bed.postgres.command("psql");
    let url = bed.postgres.url();
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &url, "-c", before, "-f", "-"]);
    psql.stdin(std::process::Stdio::piped());
    psql.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut psql = psql.spawn().unwrap();
    std::io::Write::write_all(&mut psql.stdin.take().unwrap(), script.as_bytes()).unwrap();
    psql.wait_with_output().unwrap()
}

/// A script that was printed before somebody else's was run says so, and changes nothing there;
/// names with quotes, backslashes and dollars are no matter, nor is how the session reads them.
#[tokio::test]
async fn a_script_that_was_printed_before_another_was_run_forgets_nothing() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql.run("create table \"it's \\ $setup$\" (id int primary key, name text not null)").await;
    let odd = "[[rule]]\nname = \"odd\"\ntable = '''public.\"it's \\ $setup$\"'''\n\
               keys = [\"k:{name}\"]\n";
    let third = of(&bed, "third", &["stall"]);
    third.setup();
    let (mut one, two) = (of(&bed, "one", &["shop"]), of(&bed, "two", &["cart"]));
    one.change(|new| new.rules.push_str(odd));
    for strings in ["on", "off"] {
        let before = format!("set standard_conforming_strings = {strings}");
        let (first, second) = (printed(&one), printed(&two));
        let output = run_psql(&bed, &before, &first);
        assert!(output.status.success(), "{}\n{first}", text(&output));
        let comment: String = bed.sql.one(COMMENT).await;
        let output = run_psql(&bed, &before, &second);
        assert!(!output.status.success(), "{}\n{second}", text(&output));
        let said = text(&output);
        assert!(said.contains("the comment on the publication changed meanwhile"), "{said}");
        assert!(said.contains("print this SQL again"), "{said}");
        assert_eq!(bed.sql.one::<String>(COMMENT).await, comment);
        let output = run_psql(&bed, &before, &printed(&two));
        assert!(output.status.success(), "{}", text(&output));
        let comment: String = bed.sql.one(COMMENT).await;
        for part in ["\"slots\":[\"one\",\"third\",\"two\"]", "$setup$"] {
            assert!(comment.contains(part), "{part}: {comment}");
        }
        for sidecar in [&one, &two] {
            let output = sidecar.command(&["check"]);
            assert!(output.status.success(), "{}", text(&output));
            assert!(!text(&output).contains("publication_memory"), "{}", text(&output));
            let said = text(&sidecar.command(&["teardown"]));
            assert!(said.contains("dropped slot"), "{said}");
        }
    }
}

/// Whoever holds the lock that all of them take is waited for briefly, as with any lock.
#[tokio::test]
async fn a_setup_waits_for_the_comment_of_another_and_does_not_fail() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let (one, two) = (of(&bed, "one", &["shop"]), of(&bed, "two", &["cart"]));
    one.setup();
    let other = crate::support::Sql::connect(&bed.postgres).await;
    other.run("begin; select pg_advisory_xact_lock(2002873459, 2003133808)").await;
    let setup = two.spawn(&["setup"]);
    let queued = "select exists (select from pg_locks where not granted)";
    let waits = || async { bed.sql.one::<bool>(queued).await };
    eventually(PATIENCE, "it waits", waits).await;
    other.run("commit").await;
    let output = ended(setup).await;
    assert!(output.status.success(), "{}", text(&output));
}

/// A rule of a table without a key, for inserts alone, and one that needs deletes: no DELETE of the
/// application ever fails, for the one that came later sees what the other has made, and says so.
#[tokio::test]
async fn no_table_is_added_to_a_publication_that_another_setup_widens_meanwhile() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql.run("create table bare (name text); insert into bare values ('a')").await;
    let inserts = rule("bare", &["k:{name}"]) + "operations = [\"insert\"]\n";
    let (mut one, two) = (of(&bed, "one", &[]), of(&bed, "two", &["cart"]));
    one.change(|new| new.rules = inserts);
    let other = crate::support::Sql::connect(&bed.postgres).await;
    other.run("begin; lock table bare in share update exclusive mode").await;
    let first = one.spawn(&["setup"]);
    let queued = "select exists (select from pg_locks where not granted)";
    let waits = || async { bed.sql.one::<bool>(queued).await };
    eventually(PATIENCE, "it waits for the table", waits).await;
    let mut second = two.spawn(&["setup"]);
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let is_waiting = second.try_wait().unwrap().is_none();
    other.run("commit").await;
    let (first, second) = (tokio::spawn(ended(first)), tokio::spawn(ended(second)));
    while !(first.is_finished() && second.is_finished()) {
        bed.sql.run("delete from bare where name = 'b'").await;
    }
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    assert!(first.status.success() && is_waiting, "{}", text(&first));
    let told = "the application's own UPDATE and DELETE of `public.bare` would fail";
    assert!(text(&second).contains(told), "{}", text(&second));
    bed.sql.run("delete from bare").await;
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "bare");
}

/// The table that nobody had a rule of is another's by now.
#[tokio::test]
async fn no_table_is_taken_out_that_another_setup_claims_meanwhile() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let (mut one, two) = (of(&bed, "one", &["shop", "club"]), of(&bed, "two", &["shop"]));
    one.setup();
    one.change(|new| new.rules = rule("club", &["k:{name}"]));
    let other = crate::support::Sql::connect(&bed.postgres).await;
    other.run("begin; lock table shop in share update exclusive mode").await;
    let first = one.spawn(&["setup"]);
    let queued = "select exists (select from pg_locks where not granted)";
    let waits = || async { bed.sql.one::<bool>(queued).await };
    eventually(PATIENCE, "it waits for the table", waits).await;
    let second = two.spawn(&["setup"]);
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    other.run("commit").await;
    for child in [first, second] {
        let output = ended(child).await;
        assert!(output.status.success(), "{}", text(&output));
    }
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "club shop");
    let check = two.command(&["check"]);
    assert!(check.status.success(), "{}", text(&check));
}

/// Of what `teardown` looked at nothing changes until it drops it.
#[tokio::test]
async fn a_teardown_waits_for_a_setup_and_names_it() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let (one, two) = (of(&bed, "one", &["shop"]), of(&bed, "two", &["cart"]));
    one.setup();
    let other = crate::support::Sql::connect(&bed.postgres).await;
    other.run("begin; lock table cart in access share mode").await;
    let setup = two.spawn(&["setup"]);
    let queued = "select exists (select from pg_locks where not granted)";
    let waits = || async { bed.sql.one::<bool>(queued).await };
    eventually(PATIENCE, "it waits for the table", waits).await;
    let teardown = one.spawn(&["teardown"]);
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    other.run("commit").await;
    let (setup, teardown) = (ended(setup).await, ended(teardown).await);
    assert!(setup.status.success(), "{}", text(&setup));
    let said = text(&teardown);
    assert!(teardown.status.success(), "{said}");
    let holder = "the lock of walsweep's comments is taken by Postgres process ";
    assert!(said.contains(holder) && said.contains("(walsweep command)"), "{said}");
    assert!(said.contains("left publication `walsweep`: the walsweep with slot `two`"), "{said}");
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "cart");
}

/// Any role may take it: whoever has it is named, and no SQL waits for it longer than for a table.
#[tokio::test]
async fn whoever_keeps_the_lock_of_the_comment_is_named() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql.run("create role mallory login").await;
    let (one, two) = (of(&bed, "one", &["shop"]), of(&bed, "two", &["cart"]));
    one.setup();
    let check = super::checked(&two);
    let sql = super::printed_sql(&check);
    let sql = sql.lines().find(|line| line.contains("comment on publication")).unwrap();
    let script = printed(&two);
    let mut psql = bed.postgres.command("psql");
    let url = bed.postgres.url().replace("//postgres@", "//mallory@");
    let lock = "begin; select pg_advisory_xact_lock(2002873459, 2003133808); select pg_sleep(600)";
    psql.env("PGAPPNAME", "idler").args(["-X", "-q", "-d", &url, "-c", lock]);
    let mut holder = psql.stdout(std::process::Stdio::null()).spawn().unwrap();
    let taken = "select exists (select from pg_locks where locktype = 'advisory' and granted)";
    eventually(PATIENCE, "it has the lock", || async { bed.sql.one::<bool>(taken).await }).await;
    let named = |said: &str| said.contains(" of role mallory (idler)");
    let refused = bed.sql.client().batch_execute(sql).await.unwrap_err();
    let said = refused.as_db_error().map(|error| error.message().to_owned()).unwrap_or_default();
    assert!(named(&said), "{said}");
    let setup = two.spawn(&["setup"]);
    let by_script = tokio::task::spawn_blocking({
        let (postgres, url) = (bed.postgres.command("psql"), bed.postgres.url());
        move || run_script(postgres, &url, &script)
    });
    // Longer than one attempt of each.
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    holder.kill().unwrap();
    holder.wait().unwrap();
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'mallory'";
    bed.sql.run(end).await;
    let (output, by_script) = (ended(setup).await, by_script.await.unwrap());
    assert!(named(&text(&output)), "{}", text(&output));
    assert!(named(&text(&by_script)), "{}", text(&by_script));
}

fn run_script(mut psql: std::process::Command, url: &str, script: &str) -> Output {
    psql.args(["-X", "-q", "-d", url, "-f", "-"]);
    psql.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut psql = psql.stderr(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut psql.stdin.take().unwrap(), script.as_bytes()).unwrap();
    psql.wait_with_output().unwrap()
}

/// A transaction that has one snapshot from its beginning on would not see what was written while
/// it waited.
#[tokio::test]
async fn what_is_printed_forgets_nothing_in_a_session_of_another_isolation() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let (one, two) = (of(&bed, "one", &["shop"]), of(&bed, "two", &["cart"]));
    let third = of(&bed, "third", &["club"]);
    one.setup();
    let before: String = bed.sql.one(COMMENT).await;
    // The SQL that claims a slot of before.
    bed.sql.run("select pg_create_logical_replication_slot('two', 'pgoutput')").await;
    let by_check = super::printed_sql(&super::checked(&two));
    let of_comment = by_check.lines().find(|line| line.contains("comment on publication")).unwrap();
    for level in ["repeatable read", "serializable"] {
        let set = format!("set default_transaction_isolation = '{level}';\n");
        // Alone it is refused, for it cannot change what its transaction began as.
        for open in ["", "begin;\n"] {
            let alone = format!("{set}{open}{of_comment}\n");
            let output = run_script(bed.postgres.command("psql"), &bed.postgres.url(), &alone);
            let said = text(&output);
            assert!(said.contains("transaction that is read committed"), "{level}: {said}");
        }
        let as_before = format!("comment on publication walsweep is '{before}'");
        bed.sql.run(&as_before).await;
        for sql in [&by_check, &printed(&third)] {
            bed.sql.run(&as_before).await;
            let other = crate::support::Sql::connect(&bed.postgres).await;
            other.run("begin; select pg_advisory_xact_lock(2002873459, 2003133808)").await;
            let running = tokio::task::spawn_blocking({
                let (psql, url) = (bed.postgres.command("psql"), bed.postgres.url());
                let sql = format!("{set}{sql}");
                move || run_script(psql, &url, &sql)
            });
            let queued = "select exists (select from pg_locks
                                          where locktype = 'advisory' and not granted)";
            eventually(PATIENCE, "it waits", || async { bed.sql.one::<bool>(queued).await }).await;
            let meanwhile = before.replace("\"one\"", "\"meanwhile\"");
            let comment = format!("comment on publication walsweep is '{meanwhile}'; commit");
            other.run(&comment).await;
            let said = text(&running.await.unwrap());
            assert!(said.contains("changed meanwhile"), "{level}: {said}\n{sql}");
            assert_eq!(bed.sql.one::<String>(COMMENT).await, meanwhile, "{level}: {sql}");
        }
    }
}

/// A table that only the one used is taken out with it, and may have its identity back.
#[tokio::test]
async fn a_teardown_takes_out_what_no_other_uses_and_leaves_the_rest() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let (one, two) = (of(&bed, "one", &["shop", "club"]), of(&bed, "two", &["cart", "club"]));
    one.setup();
    two.setup();
    bed.sql.run("insert into shop values (1, 'a'); insert into club values (1, 'a')").await;
    let printed = String::from_utf8(one.command(&["teardown", "--print"]).stdout).unwrap();
    assert!(printed.contains("A superuser may run all of it"), "{printed}");
    let said = text(&one.command(&["teardown"]));
    for part in [
        "dropped slot `one`",
        "took `public.shop` out of publication `walsweep`",
        "left publication `walsweep`: the walsweep with slot `two` has it, too",
        "alter table \"public\".\"shop\" replica identity default",
        "`public.club` keeps its full replica identity: `public.club` is still in use",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("took `public.club`"), "{said}");
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "cart club");
    let (_, back) = said.split_once("go back with: ").unwrap();
    bed.sql.run(back.lines().next().unwrap()).await;
    bed.sql.run("update shop set name = 'b'; update club set name = 'b'").await;
    let check = two.command(&["check"]);
    assert!(check.status.success(), "{}", text(&check));
    // What is printed does the same.
    one.setup();
    let printed = String::from_utf8(one.command(&["teardown", "--print"]).stdout).unwrap();
    psql(&bed, "postgres", &printed);
    assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "cart club");
    let said = text(&two.command(&["teardown"]));
    assert!(said.contains("dropped publication `walsweep`"), "{said}");
}

/// Nothing of that is done before it is seen that the comment has changed.
#[tokio::test]
async fn a_script_that_was_printed_before_takes_no_table_that_another_has_since() {
    let bed = Bed::new(&["max_replication_slots = 16"]).await;
    bed.sql.run(TABLES).await;
    let (mut one, two) = (of(&bed, "one", &["shop", "cart"]), of(&bed, "two", &["cart"]));
    let identity = "select relreplident::text from pg_class where relname = 'cart'";
    let third = of(&bed, "third", &["stall"]);
    third.setup();
    one.setup();
    one.change(|new| new.rules = rule("shop", &["k:{name}"]));
    let freed = printed(&one);
    assert!(freed.contains("drop table only \"public\".\"cart\""), "{freed}");
    one.change(|new| new.rules.push_str(&rule("cart", &["k:{name}"])));
    let teardown = String::from_utf8(one.command(&["teardown", "--print"]).stdout).unwrap();
    assert!(teardown.contains("drop table only \"public\".\"cart\""), "{teardown}");
    two.setup();
    for script in [freed, teardown] {
        let output = run_psql(&bed, "select", &script);
        assert!(!output.status.success(), "{}", text(&output));
        assert!(text(&output).contains("print this SQL again"), "{}", text(&output));
        assert_eq!(bed.sql.one::<String>(PUBLISHED).await, "cart shop stall");
        assert_eq!(bed.sql.one::<String>(identity).await, "f");
    }
}

/// Two at once make the role that both log in as: it is not there for the one, nor can it make it.
#[tokio::test]
async fn a_role_that_somebody_else_makes_meanwhile_is_taken() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let mut one = of(&bed, "one", &["shop"]);
    one.change(|new| {
        new.postgres_url = bed.postgres.url().replace("//postgres@", "//sweeper@");
    });
    let other = crate::support::Sql::connect(&bed.postgres).await;
    other.run("begin; create role sweeper login").await;
    let setup = one.spawn(&["setup", "--as", &bed.postgres.url()]);
    let queued = "select exists (select from pg_locks where not granted)";
    let waits = || async { bed.sql.one::<bool>(queued).await };
    eventually(PATIENCE, "it waits for the role", waits).await;
    other.run("commit").await;
    let output = ended(setup).await;
    assert!(output.status.success(), "{}", text(&output));
    let may = "select rolreplication from pg_roles where rolname = 'sweeper'";
    assert!(bed.sql.one::<bool>(may).await, "{}", text(&output));
}
