//! `explain` and `check` at real servers, and what they tell a person.

use std::process::Output;

use crate::support::{Bed, Settings, Sidecar, text};

const RULES: &str = "[[rule]]\nname = \"item\"\ntable = \"public.item\"\n\
                     keys = [\"item:{id}\", \"list:{version}:*\"]\n";

fn explain(sidecar: &Sidecar, old: &str, more: &[&str]) -> Output {
    let arguments = ["explain", "item", "--op", "delete", "--old", old];
    sidecar.command(&[&arguments, more].concat())
}

/// A typing error in a row would be taken for a column that is not sent.
#[tokio::test]
async fn explain_refuses_a_column_that_the_table_has_not() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = Sidecar::new(Settings::new(&bed.postgres, &bed.redis, RULES));
    let good = explain(&sidecar, r#"{"id": 7, "version": 2}"#, &[]);
    assert_eq!(good.status.code(), Some(0), "{}", text(&good));
    let expected = "  key      item:7  from `item:{id}`\n  \
                    pattern  list:2:*  from `list:{version}:*`\n";
    assert!(text(&good).ends_with(expected), "{}", text(&good));
    let wrong = explain(&sidecar, r#"{"id": 7, "verson": 2}"#, &[]);
    assert_eq!(wrong.status.code(), Some(1), "{}", text(&wrong));
    let said =
        "read `--old`: `public.item` has no column `verson`\n  hint: did you mean `version`?";
    assert!(text(&wrong).contains(said), "{}", text(&wrong));
    let offline = explain(&sidecar, r#"{"id": 7, "verson": 2}"#, &["--offline"]);
    assert_eq!(offline.status.code(), Some(0), "{}", text(&offline));
    let said = "unread     `verson`: no rule of `public.item` reads it; did you mean `version`?";
    assert!(text(&offline).contains(said), "{}", text(&offline));
    let other = sidecar.command(&["explain", "itme", "--op", "truncate"]);
    assert_eq!(other.status.code(), Some(1), "{}", text(&other));
    assert!(text(&other).contains("no table or materialized view `public.itme`"));
    assert!(text(&other).contains("hint: did you mean `public.item`?"), "{}", text(&other));
    sidecar.change(|new| new.postgres_url = "postgres://nobody@127.0.0.1:1/postgres".to_owned());
    let alone = explain(&sidecar, r#"{"id": 7, "version": 2}"#, &[]);
    assert_eq!(alone.status.code(), Some(0), "{}", text(&alone));
    assert!(text(&alone).contains("note       columns were not compared"), "{}", text(&alone));
}

/// A row is judged here as in the stream, however its values are written.
#[tokio::test]
async fn explain_reads_values_by_the_types_of_their_columns() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create domain points as int;
             create table score (id int primary key, total numeric(10,2), done boolean,
                                 at timestamptz, day date, points points, code char(4),
                                 at_ip inet)",
        )
        .await;
    let mut sidecar = Sidecar::new(bed.settings());
    for (when, new, is_met) in [
        ("new.points == 1", r#"{"points": 1.0}"#, true),
        ("new.points == 1", r#"{"points": "1"}"#, true),
        ("new.points > 1", r#"{"points": "1"}"#, false),
        ("new.total > 9", r#"{"total": "10"}"#, true),
        ("new.total == 1", r#"{"total": "1.000"}"#, true),
        ("new.done", r#"{"done": "t"}"#, true),
        ("new.done", r#"{"done": "false"}"#, false),
        ("new.done", r#"{"done": 1}"#, true),
        ("new.at == timestamp('2026-07-19T18:00:00Z')", r#"{"at": "2026-07-19 20:00+02"}"#, true),
        (
            "new.at > timestamp('2026-07-19T18:00:00Z')",
            r#"{"at": "19 July 2026 18:00 UTC"}"#,
            false,
        ),
        ("new.day < timestamp('2026-07-19T18:00:00Z')", r#"{"day": "2026-07-19"}"#, true),
        ("new.code == 'ab'", r#"{"code": "ab"}"#, true),
        ("new.code == 'true'", r#"{"code": true}"#, true),
    ] {
        sidecar.change(|settings| {
            settings.rules = format!(
                "[[rule]]\nname = \"score\"\ntable = \"public.score\"\nwhen = {when:?}\n\
                 keys = [\"board\"]\n"
            );
        });
        let said = text(&sidecar.command(&["explain", "score", "--op", "insert", "--new", new]));
        assert!(!said.contains("condition_"), "{when} {new}: {said}");
        assert_eq!(said.contains("key      board"), is_met, "{when} {new}: {said}");
        assert_eq!(said.contains("its `when` is false"), !is_met, "{when} {new}: {said}");
    }
    sidecar.change(|settings| {
        settings.rules = "[[rule]]\nname = \"score\"\ntable = \"public.score\"\n\
                          keys = [\"s:{total}:{done}:{at}:{code}:{at_ip}\"]\n"
            .to_owned();
    });
    let new = r#"{"total": 1.5, "done": "no", "at": "2026-07-19T18:00:00Z", "code": "ab",
                  "at_ip": "10.0.0.1/32"}"#;
    let said = text(&sidecar.command(&["explain", "score", "--op", "insert", "--new", new]));
    let key = "key      s:1.50:false:2026-07-19 18:00:00+00:ab  :10.0.0.1  from";
    assert!(said.contains(key), "{said}");
    let new = r#"{"total": "many"}"#;
    let wrong = sidecar.command(&["explain", "score", "--op", "insert", "--new", new]);
    let said = "read `--new`: column `total` is of type `numeric(10,2)`: invalid input syntax";
    assert!(text(&wrong).contains(said), "{}", text(&wrong));
    assert_eq!(wrong.status.code(), Some(1));
}

#[tokio::test]
async fn explain_takes_the_replica_identity_from_the_table() {
    let bed = Bed::new(&[]).await;
    let sidecar = Sidecar::new(Settings::new(&bed.postgres, &bed.redis, RULES));
    bed.sql
        .run(
            "update item set version = id;
             create unique index item_version on item (version) include (team)",
        )
        .await;
    let row = r#"{"id": 7, "team": "a", "version": 2}"#;
    for (identity, keys, note) in [
        ("full", "key      item:7|pattern  list:2:*", ""),
        (
            "default",
            "key      item:7|pattern  list:*",
            "no `team`, `version`: the replica identity is `id`",
        ),
        (
            "using index item_version",
            "pattern  item:*|pattern  list:2:*",
            "no `id`, `team`: the replica identity is `version`",
        ),
        ("nothing", "pattern  item:*|pattern  list:*", "while it is published, Postgres refuses"),
    ] {
        bed.sql.run(&format!("alter table item replica identity {identity}")).await;
        let said = text(&explain(&sidecar, row, &[]));
        for part in keys.split('|').chain([note]) {
            assert!(said.contains(part), "{identity}: {part}: {said}");
        }
        assert_eq!(said.contains("note "), !note.is_empty(), "{identity}: {said}");
    }
    // What is supposed by hand is taken as it is, and said.
    let update = ["explain", "item", "--op", "update", "--new", row, "--identity", "id"];
    let said = text(&sidecar.command(&update));
    assert!(said.contains("the replica identity is nothing; `--identity` supposes `id`"), "{said}");
    let refresh = sidecar.command(&["explain", "item", "--op", "refresh"]);
    let said = text(&refresh);
    assert!(said.contains("`public.item` is a table, and only a materialized view"), "{said}");
    assert!(said.contains("hint: ask for `--op insert`"), "{said}");
    assert_eq!(refresh.status.code(), Some(1));
    let offline = text(&explain(&sidecar, row, &["--offline"]));
    assert!(offline.contains("note       the table was not asked: "), "{offline}");
}

#[tokio::test]
async fn explain_says_that_changed_counts_every_update_where_old_values_are_not_sent() {
    let bed = Bed::new(&[]).await;
    let rules = "[[rule]]\nname = \"item\"\ntable = \"public.item\"\nchanged = [\"version\"]\n\
                 keys = [\"item:{id}\"]\n";
    let sidecar = Sidecar::new(Settings::new(&bed.postgres, &bed.redis, rules));
    let row = r#"{"id": 7, "version": 2}"#;
    for (identity, is_told) in [("default", true), ("full", false)] {
        bed.sql.run(&format!("alter table item replica identity {identity}")).await;
        let update = ["explain", "item", "--op", "update", "--old", row, "--new", row];
        let said = text(&sidecar.command(&update));
        let told = "  changed  counts as met: Postgres does not send the old value";
        assert_eq!(said.contains(told), is_told, "{identity}: {said}");
        assert_eq!(said.contains("key      item:7"), is_told, "{identity}: {said}");
        assert_eq!(said.contains("no column of `changed` differs"), !is_told, "{identity}: {said}");
    }
}

/// The verdict stands with the rest, on standard output, whatever it is.
#[tokio::test]
async fn check_tells_what_is_fine_and_its_verdict_on_standard_output() {
    let bed = Bed::new(&[]).await;
    let sidecar = Sidecar::new(Settings::new(&bed.postgres, &bed.redis, RULES));
    sidecar.setup();
    bed.sql.run("alter table item replica identity full").await;
    let output = sidecar.command(&["check"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(output.stderr.is_empty(), "{:?}", output.stderr.escape_ascii().to_string());
    let version: String = bed.sql.one("select current_setting('server_version_num')").await;
    let version: u32 = version.parse().unwrap();
    let version = format!("{}.{}", version / 10_000, version % 10_000);
    for line in [
        &*format!("postgres  version {version} at `"),
        "redis     version ",
        "pass      redis has no keys: ",
        "rules     1 rule for 1 table\n",
        "rule      `item`: 1 exact key and 1 pattern of `public.item`\n",
        "info[start_sweeps]: the next start will sweep everything",
    ] {
        assert!(said.contains(&format!("\n{line}")) || said.starts_with(line), "{line}: {said}");
    }
    assert!(said.ends_with("\n`walsweep run` would start\n"), "{said}");
    bed.sql.run("drop table item").await;
    let output = sidecar.command(&["check"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("would suspend rule `item`"), "{said}");
    let place = "config.toml:23:9: rule.0.table: there is no table `public.item`";
    assert!(said.contains(place), "{said}");
    assert!(output.stderr.is_empty(), "{:?}", output.stderr.escape_ascii().to_string());
    // A program reads JSON alone.
    let output = sidecar.command(&["check", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &json["ok"]), (Some(1), &false.into()));
    assert_eq!(json["verdict"]["run"], "suspend");
    let findings = json["postgres"].as_array().unwrap();
    let missing = findings.iter().find(|one| one["code"] == "table_missing").unwrap();
    let file = missing["file"].as_str().unwrap();
    assert!(file.ends_with("config.toml"), "{file}");
    assert_eq!(json["facts"][0]["about"], "postgres");
}

/// It is run beside a walsweep to see whether all is well, and takes nothing from it.
#[tokio::test]
async fn check_says_what_a_second_run_would_do_beside_one_that_runs() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    let check = sidecar.command(&["check"]);
    let said = text(&check);
    assert!(check.status.success(), "{said}");
    assert!(said.contains("info[slot_active]") && said.contains("info[listen_running]"), "{said}");
    let verdict = "`walsweep run` is at work already; another one beside it needs an \
                   `http.listen` of its own, and would stand by until the slot is free\n";
    assert!(said.ends_with(verdict), "{said}");
    let enough = "\nreload    `walsweep reload` is enough for the walsweep that runs, ";
    assert!(said.contains(enough), "{said}");
    let json = sidecar.command(&["check", "--json"]).stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!((&json["ok"], &json["verdict"]["run"]), (&true.into(), &"running".into()));
    assert_eq!(sidecar.readyz().await, Some(200), "it runs on");
    // Another file than it runs with: what a reload takes over, and what is read only at the start.
    let (rules, http) = (bed.settings().rules, bed.settings().http);
    sidecar.change(|settings| settings.rules = rules.replace("list:", "lists:"));
    assert!(text(&sidecar.command(&["check"])).contains(enough));
    sidecar.change(|settings| "keys = true".clone_into(&mut settings.http));
    let said = text(&sidecar.command(&["check"]));
    let restart = "\nreload    the walsweep that runs began with another `http.keys`: ";
    assert!(said.contains(restart) && !said.contains(enough), "{said}");
    // It tells no value: not of options, and nothing at all of those that may hold a secret.
    let (_, page) = sidecar.get("/reload").await.unwrap();
    assert!(page.contains("\"postgres.slot\":") && !page.contains("postgres://"), "{page}");
    assert!(!page.contains("url") && !page.contains("127.0.0.1"), "{page}");
    sidecar.change(|settings| settings.http = http);
    // The same slot, and an address of its own.
    let second = Sidecar::new(bed.settings());
    let said = text(&second.command(&["check"]));
    assert!(said.ends_with("\n`walsweep run` would stand by until the slot is free\n"), "{said}");
    assert_eq!(sidecar.sigterm().await, 0);
    let listener = std::net::TcpListener::bind(("127.0.0.1", sidecar.http_port())).unwrap();
    let check = sidecar.command(&["check"]);
    let said = text(&check);
    assert_eq!(check.status.code(), Some(1), "{said}");
    assert!(said.contains("error[listen_in_use]: cannot listen on `http.listen`"), "{said}");
    assert!(said.contains(": a process listens there, and does not answer within 2 s"), "{said}");
    assert!(said.ends_with("\n`walsweep run` would refuse to start\n"), "{said}");
    drop(listener);
    let said = text(&sidecar.command(&["check"]));
    assert!(said.ends_with("\n`walsweep run` would start\n"), "{said}");
}

/// Each walsweep is called `walsweep` by default, and so is its slot: another one that has the
/// address is told from this one by what it streams.
#[tokio::test]
async fn a_walsweep_of_another_slot_at_the_address_is_not_this_one() {
    let bed = Bed::new(&[]).await;
    let mut sidecar = bed.sidecar().await;
    let listen = sidecar.http_port();
    let said = text(&sidecar.command(&["check"]));
    assert!(said.contains("info[listen_running]"), "{said}");
    bed.sql.run("create database other").await;
    let other_database = bed.postgres.url_of("other");
    for change in [
        (|new: &mut Settings, _: &str| new.name = "another".to_owned()) as fn(&mut Settings, &str),
        |new, url| new.postgres_url = url.to_owned(),
    ] {
        let mut settings = bed.settings();
        change(&mut settings, &other_database);
        let other = Sidecar::new_at(settings, listen);
        let check = other.command(&["check"]);
        let said = text(&check);
        assert_eq!(check.status.code(), Some(1), "{said}");
        assert!(said.contains("error[listen_in_use]: "), "{said}");
        let who = format!("another walsweep (process {}), of slot `walsweep` in", sidecar.id());
        assert!(said.contains(&who) && said.contains(" database `postgres` of "), "{said}");
        assert!(!said.contains("walsweep_slot_info"), "{said}");
        assert!(!said.contains("is at work already"), "{said}");
        assert!(said.ends_with("\n`walsweep run` would refuse to start\n"), "{said}");
    }
    assert_eq!(sidecar.sigterm().await, 0);
}

/// The server refuses such a row, so that no key of it is ever removed.
#[tokio::test]
async fn explain_refuses_a_value_that_the_column_cannot_hold() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create type mood as enum ('sad', 'ok');
             create schema closed;
             create type closed.mood as enum ('sad', 'ok');
             create domain code as varchar(3);
             create table typed (id smallint primary key, short varchar(3), coded code, bits bit(3),
                                 total numeric(4,2), feels mood, hidden closed.mood, data jsonb,
                                 plain json, fixed char(2), many int[], moods mood[])",
        )
        .await;
    let mut settings = bed.settings();
    settings.rules = "[[rule]]\nname = \"typed\"\ntable = \"public.typed\"\n\
                      keys = [\"t:{id}:{short}:{coded}:{bits}:{total}:{feels}:{data}\"]\n"
        .to_owned();
    let mut sidecar = Sidecar::new(settings);
    let explain = |sidecar: &Sidecar, new: &str| {
        let output = sidecar.command(&["explain", "typed", "--op", "insert", "--new", new]);
        (output.status.code(), text(&output))
    };
    for (new, said) in [
        (r#"{"id": 40000}"#, "column `id` is of type `smallint`: value \"40000\" is out of range"),
        (r#"{"id": 1.5}"#, "column `id` is of type `smallint`: invalid input syntax"),
        (
            r#"{"short": "abcd"}"#,
            "column `short` is of type `character varying(3)`: value too long",
        ),
        (
            r#"{"coded": "abcd"}"#,
            "column `coded` is of type `character varying(3)`: value too long",
        ),
        (r#"{"fixed": "abc"}"#, "column `fixed` is of type `character(2)`: value too long"),
        (r#"{"bits": "10"}"#, "column `bits` is of type `bit(3)`: bit string length 2"),
        (r#"{"total": 100}"#, "column `total` is of type `numeric(4,2)`: numeric field overflow"),
        (r#"{"feels": "fine"}"#, "column `feels` is of type `public.mood`: invalid input value"),
        (r#"{"data": "{"}"#, "column `data` is of type `jsonb`: invalid input syntax"),
        (r#"{"many": "1"}"#, "column `many` is of type `integer[]`: malformed array literal"),
    ] {
        let (code, told) = explain(&sidecar, new);
        assert!(told.contains(&format!("read `--new`: {said}")), "{new}: {told}");
        assert_eq!(code, Some(1), "{new}: {told}");
    }
    let good = r#"{"id": 7, "short": "abc   ", "coded": "a", "bits": "101", "total": 1.005,
                   "feels": "ok", "data": "{\"b\":1,\"a\":2}", "plain": "{\"b\":1}", "many": "{1}",
                   "moods": "{sad}", "hidden": "sad", "fixed": "a"}"#;
    let (code, told) = explain(&sidecar, good);
    assert_eq!(code, Some(0), "{told}");
    let key = "key      t:7:abc:a:101:1.01:ok:{\"a\": 2, \"b\": 1}";
    assert!(told.contains(key), "{told}");
    // Of what the role may not name nothing is said.
    bed.sql.run("create role reader login").await;
    sidecar.change(|new| new.postgres_url = new.postgres_url.replace("postgres@", "reader@"));
    let (code, told) = explain(&sidecar, r#"{"id": 7, "hidden": "never", "feels": "ok"}"#);
    assert_eq!(code, Some(0), "{told}");
    assert!(!told.contains("were not compared"), "{told}");
}

#[tokio::test]
async fn a_redis_that_is_not_there_is_told_with_its_address_and_what_to_do() {
    let bed = Bed::new(&[]).await;
    let dead = walsweep_stage::throwaway::free_port().unwrap();
    let mut settings = bed.settings();
    settings.redis_url = format!("redis://127.0.0.1:{dead}");
    let sidecar = Sidecar::new(settings);
    let told = format!("connect to redis at `127.0.0.1:{dead}`: Connection refused");
    for command in [&["check"][..], &["sweep", "item:*"]] {
        let said = text(&sidecar.command(command));
        assert!(said.contains(&told), "{command:?}: {said}");
        let hint = "hint: see that Redis runs, and that `redis.url` names it";
        assert!(said.contains(hint), "{command:?}: {said}");
    }
}
