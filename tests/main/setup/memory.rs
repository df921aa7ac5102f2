//! The memory on a publication is there before anything is changed, and is never believed further
//! than the publication's owner may go.

use walsweep::preflight::SENTENCE;
use walsweep_stage::throwaway::{Signal, signal};

use crate::support::{Bed, PATIENCE, Settings, Sidecar, Sql, eventually, text};

use super::{printed_sql, psql, rule};

/// Tables of `shopkeeper`, who is no superuser, and of `registrar`. `ledger`, `till` and `ev_1`
/// have no identity but the full one, by their owners' choice.
const TABLES: &str = "
    create role shopkeeper login; create role registrar login;
    create table cart (id int primary key, name text not null);
    create table shop (id int primary key, name text not null);
    create table till (name text); alter table till replica identity full;
    create table ledger (name text); alter table ledger replica identity full;
    create table ev (id int not null, name text) partition by list (id);
    create table ev_1 partition of ev for values in (1);
    create table ev_2 partition of ev for values in (2);
    alter table ev_1 replica identity full;
    alter table cart owner to shopkeeper; alter table shop owner to shopkeeper;
    alter table till owner to shopkeeper; alter table ev owner to shopkeeper;
    alter table ev_2 owner to shopkeeper; alter table ev_1 owner to registrar;
    alter table ledger owner to registrar;
    grant create on database postgres to shopkeeper;";

const COMMENT: &str = "select obj_description(oid, 'pg_publication') from pg_publication";

const IDENTITIES: &str = "select string_agg(relname || ' ' || relreplident::text, ', '
                                            order by relname)
                            from pg_class
                           where relname in ('cart', 'ev', 'ev_1', 'ev_2', 'ledger', 'shop',
                                             'till')";

fn settings(bed: &Bed, tables: &[&str]) -> Settings {
    let rules: String = tables.iter().map(|name| rule(name, &["k:{name}"])).collect();
    Settings::new(&bed.postgres, &bed.redis, &rules)
}

fn url_of(bed: &Bed, role: &str) -> String {
    bed.postgres.url().replace("//postgres@", &format!("//{role}@"))
}

/// A comment that remembers identities from before which never were, of these tables and relations.
fn poisoned(tables: &[&str], relations: &[(&str, &str)]) -> String {
    let table = |name: &&str| format!("[\"public\",\"{name}\"]");
    let tables: Vec<String> = tables.iter().map(table).collect();
    let identity = |(of, relation): &(&str, &str)| {
        format!(
            "{{\"table\":{},\"relation\":{},\"was\":\"n\",\"index\":null}}",
            table(of),
            table(relation)
        )
    };
    let identities: Vec<String> = relations.iter().map(identity).collect();
    format!(
        "comment on publication walsweep is '{SENTENCE}\n{{\"tables\":{{\"walsweep\":[{}]}},\
         \"identities\":[{}]}}'",
        tables.join(","),
        identities.join(",")
    )
}

/// The owner of the publication writes into its comment what a superuser's `setup` and `teardown`
/// then find.
#[tokio::test]
async fn a_comment_leads_a_superuser_no_further_than_the_publications_owner_may_go() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let mut sidecar = Sidecar::new(settings(&bed, &["cart", "ev", "shop"]));
    // Walsweep's own, by its comment, and all that the comment tells is what its owner wrote.
    let poison = poisoned(
        &["cart", "ev", "shop"],
        &[("cart", "cart"), ("cart", "ledger"), ("cart", "till"), ("ev", "ev_1"), ("ev", "ev_2")],
    );
    let own = format!("create publication walsweep for table cart, ev, shop; {poison}");
    psql(&bed, "shopkeeper", &own);
    bed.sql
        .run("alter table cart replica identity full; alter table ev_2 replica identity full")
        .await;
    let superuser = bed.postgres.url();
    sidecar.change(|new| new.rules = settings(&bed, &["shop"]).rules);
    let printed = text(&sidecar.command(&["setup", "--print", "--as", &superuser]));
    let output = sidecar.command(&["setup", "--as", &superuser]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    // Those two are the owner's, and parts of the tables that are taken out.
    let expected = "cart n, ev d, ev_1 f, ev_2 n, ledger f, shop f, till f";
    assert_eq!(bed.sql.one::<String>(IDENTITIES).await, expected, "{said}");
    for name in ["ledger", "till", "ev_1"] {
        let sql = format!("alter table \"public\".\"{name}\" replica identity");
        assert!(!printed.contains(&sql) && !said.contains(&sql), "{printed}\n{said}");
    }
    bed.sql.run(&poison).await;
    bed.sql.run("alter table ev_2 replica identity full").await;
    for command in [&["teardown", "--print"][..], &["teardown"]] {
        let said = text(&sidecar.command(&[command, &["--as", &superuser]].concat()));
        assert!(
            said.contains("alter table \"public\".\"ev_2\" replica identity nothing"),
            "{said}"
        );
        for name in ["ledger", "till", "ev_1"] {
            assert!(!said.contains(&format!("\"{name}\"")), "{name}: {said}");
            let told = format!("`public.{name}` keeps its full replica identity: ");
            assert!(said.contains(&told), "{name}: {said}");
        }
    }
}

/// psql ends a comment at a carriage return, and a name may have one.
#[tokio::test]
async fn no_part_of_a_name_is_run_as_a_statement_or_means_another_table() {
    let bed = Bed::new(&[]).await;
    bed.sql.run("create table victim (id int); create table \"ev a\" (name text)").await;
    let names = ["ev\rdrop table victim;", "ev\ndrop table victim;", "ev\na"];
    bed.sql.run("create table ev (id int not null, name text) partition by list (id)").await;
    for (id, name) in names.iter().enumerate() {
        // The first is told in a comment, as one of which the log has nothing.
        let kind = if id == 0 { "unlogged table" } else { "table" };
        let partition = format!("create {kind} \"{name}\" partition of ev for values in ({id})");
        bed.sql.run(&partition).await;
    }
    let sidecar = Sidecar::new(settings(&bed, &["ev"]));
    let script = String::from_utf8(sidecar.command(&["setup", "--print"]).stdout).unwrap();
    assert!(script.contains("a partition of `public.ev`, is an unlogged table"), "{script}");
    psql(&bed, "postgres", &script);
    let victims = "select count(*) from pg_class where relname = 'victim'";
    assert_eq!(bed.sql.one::<i64>(victims).await, 1, "{script}");
    let full = "select count(*) from pg_class where relname like 'ev%' and relreplident = 'f'";
    assert_eq!(bed.sql.one::<i64>(full).await, 3, "{script}");
    let printed = String::from_utf8(sidecar.command(&["teardown", "--print"]).stdout).unwrap();
    let (_, back) = printed.split_once("go back with: ").expect("identities are told");
    let back = back.lines().next().unwrap();
    assert!(!back.contains("\"ev a\""), "{back}");
    psql(&bed, "postgres", back);
    assert_eq!(bed.sql.one::<i64>(full).await, 0, "{back}");
    psql(&bed, "postgres", &printed);
    assert_eq!(bed.sql.one::<i64>(victims).await, 1, "{printed}");
}

/// Whatever ends `setup` between two statements, and be it without a word: what was changed before
/// is remembered, and told.
#[tokio::test]
async fn what_was_changed_is_remembered_whatever_ends_setup() {
    for (kind, is_told) in [(Signal::Int, true), (Signal::Kill, false)] {
        let bed = Bed::new(&[]).await;
        bed.sql.run(TABLES).await;
        let reader = Sql::connect(&bed.postgres).await;
        reader.run("begin; select from shop").await;
        let sidecar = Sidecar::new(settings(&bed, &["cart", "shop"]));
        let setup = sidecar.spawn(&["setup"]);
        let queued = "select count(*) from pg_locks where not granted";
        let waits = || async { bed.sql.one::<i64>(queued).await > 0 };
        eventually(PATIENCE, "it waits for the second table", waits).await;
        signal(&[setup.id()], kind).unwrap();
        let output =
            tokio::task::spawn_blocking(|| setup.wait_with_output().unwrap()).await.unwrap();
        assert!(!output.status.success(), "{}", text(&output));
        let gone = || async { bed.sql.one::<i64>(queued).await == 0 };
        eventually(PATIENCE, "it leaves the queue", gone).await;
        reader.run("commit").await;
        let now = bed.sql.one::<String>(IDENTITIES).await;
        assert!(now.starts_with("cart f, ") && now.contains("shop d"), "{now}");
        if is_told {
            let said = text(&output);
            let done = "what was done before it stays:\ncreate publication \"walsweep\";\n";
            assert!(said.contains(done), "{said}");
            assert!(
                said.contains("alter table \"public\".\"cart\" replica identity full;"),
                "{said}"
            );
            assert!(!said.contains("Remembered nowhere"), "{said}");
        }
        let remembered = bed.sql.one::<String>(COMMENT).await;
        assert!(remembered.contains("\"relation\":[\"public\",\"cart\"]"), "{remembered}");
        let back = text(&sidecar.command(&["teardown", "--print"]));
        assert!(
            back.contains("alter table \"public\".\"cart\" replica identity default"),
            "{back}"
        );
        // It goes on where it ended.
        sidecar.setup();
        let all = bed.sql.one::<String>(IDENTITIES).await;
        assert!(all.starts_with("cart f, ") && all.contains("shop f"), "{all}");
        let output = sidecar.command(&["check"]);
        assert!(output.status.success(), "{}", text(&output));
    }
}

/// Somebody else's publication remembers nothing for walsweep.
#[tokio::test]
async fn an_identity_that_nothing_remembers_is_told_with_what_sets_it_back() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql.run("create publication walsweep for table cart").await;
    let sidecar = Sidecar::new(settings(&bed, &["cart"]));
    let output = sidecar.command(&["setup"]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    let (_, back) = said.split_once("-- Remembered nowhere").expect("it is told");
    let back: Vec<&str> = back.lines().filter_map(|line| line.strip_prefix("--     ")).collect();
    let expected = "alter table \"public\".\"cart\" replica identity default;";
    let limits = ["set local lock_timeout = '2s';", "set local synchronous_commit = local;"];
    assert_eq!(back, [&["begin;"], &limits[..], &[expected, "commit;"]].concat(), "{said}");
    let again = text(&sidecar.command(&["setup"]));
    assert!(again.contains("nothing to do"), "told once, for it was changed once: {again}");
}

/// Who may not do all that is needed changes nothing, whatever would come first.
#[tokio::test]
async fn nothing_is_changed_by_who_may_not_do_all_that_is_needed() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let before = bed.sql.one::<String>(IDENTITIES).await;
    let sidecar = Sidecar::new(settings(&bed, &["cart", "ledger"]));
    let is_same = async |said: &str| {
        assert_eq!(bed.sql.one::<String>(IDENTITIES).await, before, "{said}");
        let made = "select (select count(*) from pg_replication_slots)
                         + (select count(*) from pg_publication)";
        assert_eq!(bed.sql.one::<i64>(made).await, 0, "{said}");
    };
    for (revoked, told) in [
        (
            "",
            "role `shopkeeper` may not change table `public.ledger` of `registrar`; nothing of it \
             was done",
        ),
        (
            "revoke create on database postgres from shopkeeper",
            "role `shopkeeper` may not create a publication in database `postgres`, change table \
             `public.ledger` of `registrar`; nothing of it was done",
        ),
    ] {
        bed.sql.run(revoked).await;
        let output = sidecar.command(&["setup", "--as", &url_of(&bed, "shopkeeper")]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        let said = text(&output);
        assert!(said.contains(told) && said.contains("a member of each owner"), "{said}");
        is_same(&said).await;
    }
}

/// A walsweep that may not write into the comment is not remembered: others would take its tables
/// out. That is told loudly, with the SQL for who may.
#[tokio::test]
async fn a_shared_publication_that_cannot_remember_is_told_until_its_owner_writes_it() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql.run("create role walsweep login replication").await;
    let key = |name: &str| rule(name, &["k:{id}"]);
    let all = settings(&bed, &[]);
    let mut first =
        Sidecar::new(Settings { rules: key("cart") + &key("shop"), ..settings(&bed, &[]) });
    first.setup();
    let postgres_url = url_of(&bed, "walsweep");
    let publication = Some("walsweep".to_owned());
    let rules = rule("cart", &["other:{name}"]);
    let second = Sidecar::new(Settings {
        name: "second".to_owned(),
        publication,
        postgres_url,
        rules,
        ..all
    });
    let output = second.command(&["setup", "--as", &url_of(&bed, "shopkeeper")]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    let lacks = "it does not list `public.cart` for slot `second`: another walsweep with this \
                 publication may take the table out";
    for part in [
        lacks,
        "must be owner of publication walsweep",
        "-- Remembered nowhere, so keep it: ",
        "--     alter table \"public\".\"cart\" replica identity default;",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let check = super::checked(&second);
    let (_, told) = check.split_once("warning[publication_memory]").expect("it is a warning");
    assert!(
        told.contains(lacks) && told.contains("`postgres`, who owns the publication"),
        "{told}"
    );
    let told = told.split("\nwarning[").next().and_then(|told| told.split("\ninfo[").next());
    let sql = printed_sql(told.unwrap());
    psql(&bed, "postgres", &sql);
    let check = super::checked(&second);
    assert!(!check.contains("publication_memory"), "{check}");
    first.change(|new| new.rules = key("shop"));
    first.setup();
    let published =
        "select string_agg(tablename, ' ' order by tablename) from pg_publication_tables";
    assert_eq!(bed.sql.one::<String>(published).await, "cart shop");
    let said = text(&first.command(&["teardown"]));
    assert!(said.contains("its comment records slot `second`, too, which is not there"), "{said}");
}

/// `run` would refuse to read it, once Redis is emptied.
#[tokio::test]
async fn no_slot_is_made_where_the_comment_that_would_claim_it_is_refused() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql.run("create role keeper login replication").await;
    let rules = rule("cart", &["cart:{id}"]);
    Sidecar::new(Settings { rules: rules.clone(), ..settings(&bed, &[]) }).setup();
    let second = Sidecar::new(Settings {
        name: "second".to_owned(),
        publication: Some("walsweep".to_owned()),
        postgres_url: url_of(&bed, "keeper"),
        rules,
        ..settings(&bed, &[])
    });
    let said = text(&second.command(&["setup"]));
    assert!(said.contains("must be owner of publication walsweep"), "{said}");
    let slots = "select string_agg(slot_name, ' ') from pg_replication_slots";
    assert_eq!(bed.sql.one::<String>(slots).await, "walsweep", "{said}");
}

/// Half of a comment tells neither that nobody else has the publication nor what `setup` changed.
#[tokio::test]
async fn a_comment_that_was_cut_off_is_told_and_nothing_goes_by_it() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let first = Sidecar::new(settings(&bed, &["cart"]));
    first.setup();
    let publication = Some("walsweep".to_owned());
    let second =
        Settings { name: "second".to_owned(), publication, ..settings(&bed, &["cart", "shop"]) };
    let mut second = Sidecar::new(second);
    second.setup();
    let whole: String = bed.sql.one(COMMENT).await;
    let many: Vec<String> = (0..1001).map(|number| format!("\"s{number}\"")).collect();
    let many = format!("{SENTENCE}\n{{\"tables\":{{}},\"slots\":[{}]}}", many.join(","));
    for damaged in [&whole[..whole.len() - 40], &many] {
        let write = |comment: &str| {
            format!("comment on publication walsweep is '{}'", comment.replace('\'', "''"))
        };
        bed.sql.run(&write(damaged)).await;
        let check = super::checked(&first);
        let told = "warning[publication_memory]: the comment on publication `walsweep` of \
                    `postgres` begins as walsweep's, and cannot be read: ";
        let (_, after) = check.split_once(told).unwrap_or_else(|| panic!("{check}"));
        assert!(after.contains("write it again as it was"), "{check}");
        second.change(|new| new.rules = settings(&bed, &["cart", "shop", "till"]).rules);
        let output = second.command(&["setup"]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("the comment on publication `walsweep` cannot be read"), "{said}");
        let said = text(&first.command(&["teardown"]));
        let left = "left publication `walsweep` of `postgres`: its comment begins as walsweep's, \
                    and cannot be read";
        assert!(said.contains(left) && said.contains("left slot `walsweep`"), "{said}");
        assert_eq!(bed.sql.one::<String>(COMMENT).await, *damaged, "it stays as it was");
        let published =
            "select string_agg(tablename, ' ' order by tablename) from pg_publication_tables";
        assert_eq!(bed.sql.one::<String>(published).await, "cart shop");
        bed.sql.run(&write(&whole)).await;
        let check = super::checked(&first);
        assert!(!check.contains("publication_memory"), "{check}");
    }
}
