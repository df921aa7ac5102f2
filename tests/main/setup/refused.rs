//! Anything that a role may not do is told with who may, and no more is left undone than has to be.

use crate::support::{Bed, Settings, Sidecar, text};

use super::rule;

/// The tables of `shopkeeper`, and a club that belongs to somebody else.
const TABLES: &str = "
    create role shopkeeper login replication;
    create role walsweep login replication;
    create role registrar;
    create table cart (id int primary key, club int, name text not null);
    create table shop (id int primary key);
    create table club (id int primary key, town text, name text not null);
    alter table cart owner to shopkeeper; alter table shop owner to shopkeeper;
    alter table club owner to registrar; grant select on club to shopkeeper, walsweep;
    grant create on database postgres to shopkeeper;";

const SLOTS: &str = "select count(*) from pg_replication_slots";

const IDENTITIES: &str = "select string_agg(relname || ' ' || relreplident::text, ', '
                                            order by relname)
                            from pg_class where relname in ('cart', 'shop', 'club')";

const COMMENT: &str = "select obj_description(oid, 'pg_publication') from pg_publication";

const LOOKUP: &str = "[lookup.club]\nsql = \"select name from public.club where id = $1\"\n\
                      params = [\"club\"]\ncache = 0\n";

fn settings(bed: &Bed, rules: String) -> Settings {
    let postgres_url = bed.postgres.url().replace("//postgres@", "//walsweep@");
    Settings { postgres_url, rules, ..bed.settings() }
}

/// An identity that only a warning asks for, of a table of somebody else: all else is done, up to
/// the slot, and nothing is remembered of what was not.
#[tokio::test]
async fn a_refused_step_that_is_not_needed_leaves_all_others_done() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql
        .run(
            "create publication walsweep for table club; alter publication walsweep owner to
             shopkeeper",
        )
        .await;
    bed.sql.run(crate::data::ADOPT).await;
    let sidecar =
        Sidecar::new(settings(&bed, LOOKUP.to_owned() + &rule("cart", &["cart:{club.name}"])));
    let owner = bed.postgres.url().replace("//postgres@", "//shopkeeper@");
    let output = sidecar.command(&["setup", "--as", &owner]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    for part in [
        "-- Not done, and not needed to run: postgres refused a statement: must be owner of table \
         club; it was `alter table \"public\".\"club\" replica identity full`",
        "-- Without it: lookup `club` reads `name` of `public.club`",
        "-- hint: role `shopkeeper` does not own table `public.club` of `registrar`: `registrar` \
         cannot log in, and no member of it; `walsweep setup --as URL` with a superuser's login",
        "-- created slot `walsweep`",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(bed.sql.one::<i64>(SLOTS).await, 1, "{said}");
    assert_eq!(bed.sql.one::<String>(IDENTITIES).await, "cart f, club d, shop d");
    let remembered = bed.sql.one::<String>(COMMENT).await;
    assert!(remembered.contains("\"cart\"") && !remembered.contains("\"club\""), "{remembered}");
    // It is told each time, and done by whoever may.
    let again = text(&sidecar.command(&["setup", "--as", &owner]));
    assert!(again.contains("must be owner of table club"), "{again}");
    assert!(!again.contains("comment on publication"), "nothing is to be remembered: {again}");
    let output = sidecar.command(&["setup", "--as", &bed.postgres.url()]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(bed.sql.one::<String>(IDENTITIES).await, "cart f, club f, shop d");
    assert!(bed.sql.one::<String>(COMMENT).await.contains("\"club\""));
}

/// Who owns the tables need not own the publication: the comment on it is refused, the slot is not.
#[tokio::test]
async fn a_comment_that_only_the_owner_of_the_publication_may_write_does_not_keep_back_the_slot() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql.run("create publication walsweep for table cart, shop").await;
    bed.sql.run(crate::data::ADOPT).await;
    let mut sidecar = Sidecar::new(settings(&bed, rule("cart", &["cart:{name}"])));
    let owner = bed.postgres.url().replace("//postgres@", "//shopkeeper@");
    let output = sidecar.command(&["setup", "--as", &owner]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    for part in [
        "must be owner of publication walsweep",
        "what it does not list, `teardown` does not undo",
        "-- hint: role `shopkeeper` does not own publication `walsweep` of `postgres`",
        "-- created slot `walsweep`",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(bed.sql.one::<i64>(SLOTS).await, 1, "{said}");
    assert_eq!(bed.sql.one::<String>(IDENTITIES).await, "cart f, club d, shop d");
    // What is needed, and refused, names the right role, too.
    let both = rule("cart", &["cart:{name}"]) + &rule("club", &["club:{id}"]);
    sidecar.change(|new| new.rules = both);
    let output = sidecar.command(&["setup", "--as", &owner]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let hint = "does not own publication `walsweep` of `postgres`, table `public.club` of \
                `registrar`: `walsweep setup --as URL` with a superuser's login";
    let told = "role `shopkeeper` may not change publication `walsweep` of `postgres`, change \
                table `public.club` of `registrar`; nothing of it was done";
    assert!(said.contains(told) && said.contains(hint), "{said}");
    assert!(!said.contains("setup --print"), "no circle: {said}");
}

/// A right on the database is missing to create one.
#[tokio::test]
async fn a_publication_that_may_not_be_created_is_told_with_the_grant() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql.run("revoke create on database postgres from shopkeeper").await;
    let sidecar = Sidecar::new(settings(&bed, rule("cart", &["cart:{id}"])));
    let owner = bed.postgres.url().replace("//postgres@", "//shopkeeper@");
    let said = text(&sidecar.command(&["setup", "--as", &owner]));
    let hint = "`grant create on database \"postgres\" to \"shopkeeper\"` by the owner of the \
                database lets role `shopkeeper`";
    let told = "role `shopkeeper` may not create a publication in database `postgres`";
    assert!(said.contains(told) && said.contains(hint), "{said}");
}

/// A hint names a login that can do it, and no grant that does not help.
#[tokio::test]
async fn a_hint_names_who_can_and_what_helps() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    let as_role = |role: &str| bed.postgres.url().replace("//postgres@", &format!("//{role}@"));
    let of_club = || settings(&bed, rule("club", &["club:{id}"]));
    let mut sidecar = Sidecar::new(of_club());
    let said = |sidecar: &Sidecar, role: &str| {
        let output = sidecar.command(&["setup", "--as", &as_role(role)]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        text(&output)
    };
    // Nobody may log in as the owner, and then a member may.
    let all = said(&sidecar, "shopkeeper");
    let nobody = "`registrar` cannot log in, and no member of it; `walsweep setup --as URL` with a \
                  superuser's login, or that of a role that `grant \"registrar\" to …` makes a \
                  member";
    assert!(all.contains(nobody), "{all}");
    bed.sql.run("create role clerk login; grant registrar to clerk").await;
    let all = said(&sidecar, "shopkeeper");
    let member = "with the login of a member of it, such as `clerk`, or a superuser's";
    assert!(all.contains(member), "{all}");
    // Without the grant it is refused again, with it done.
    let all = said(&sidecar, "clerk");
    assert!(all.contains("`grant create on database \"postgres\" to \"clerk\"`"), "{all}");
    bed.sql.run("grant create on database postgres to registrar").await;
    let output = sidecar.command(&["setup", "--as", &as_role("clerk")]);
    assert!(output.status.success(), "{}", text(&output));
    // To grant what a lookup reads takes the owner of that, and no right on the database.
    bed.sql.run("drop publication walsweep; revoke select on club from shopkeeper, walsweep").await;
    let lookup = LOOKUP.to_owned() + &rule("cart", &["cart:{club.name}"]);
    sidecar.change(|new| new.rules = lookup);
    let all = said(&sidecar, "shopkeeper");
    let owner = "`registrar` owns table `public.club`, and cannot log in: let a member of it, such \
                 as `clerk`, run `grant select on \"public\".\"club\" to \"walsweep\"`; or \
                 `walsweep setup --as URL` with a superuser's login";
    assert!(all.contains(owner), "{all}");
    assert!(!all.contains("grant create"), "{all}");
}

/// A table that cannot be taken out of the publication keeps the identity that it needs there.
#[tokio::test]
async fn what_comes_after_a_refused_step_is_left_too() {
    let bed = Bed::new(&[]).await;
    bed.sql.run(TABLES).await;
    bed.sql.run("create table log (line text); alter table log owner to shopkeeper").await;
    let both = rule("cart", &["cart:{name}"]) + &rule("log", &["log:{line}"]);
    let mut sidecar = Sidecar::new(settings(&bed, both));
    let output = sidecar.command(&["setup", "--as", &bed.postgres.url()]);
    assert!(output.status.success(), "{}", text(&output));
    let before = bed.sql.one::<String>(COMMENT).await;
    sidecar.change(|new| new.rules = rule("cart", &["cart:{name}"]));
    let owner = bed.postgres.url().replace("//postgres@", "//shopkeeper@");
    let output = sidecar.command(&["setup", "--as", &owner]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("-- Not done, and not needed to run: postgres refused a statement: must be"),
        "{said}"
    );
    let full = "select relreplident::text from pg_class where relname = 'log'";
    assert_eq!(bed.sql.one::<String>(full).await, "f", "{said}");
    bed.sql.run("insert into log values ('a'); update log set line = 'b'; delete from log").await;
    assert_eq!(bed.sql.one::<String>(COMMENT).await, before, "it is remembered as it was");
    let output = sidecar.command(&["setup", "--as", &bed.postgres.url()]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(bed.sql.one::<String>(full).await, "d");
    bed.sql.run("insert into log values ('a'); update log set line = 'b'").await;
}

/// The refusal is read first: the reason, and of the SQL no more than it is about.
#[tokio::test]
async fn an_error_says_why_before_it_shows_the_sql() {
    let bed = Bed::new(&[]).await;
    bed.sql
        .run(
            "create role clerk login; create table cart (id int primary key, name text not null);
             alter table cart owner to clerk",
        )
        .await;
    let mut sidecar = Sidecar::new(settings(&bed, rule("item", &["item:{id}"])));
    let clerk = bed.postgres.url().replace("//postgres@", "//clerk@");
    let output = sidecar.command(&["setup", "--as", &clerk]);
    let said = String::from_utf8(output.stderr).unwrap();
    let first = said.lines().find(|line| line.contains("refused")).unwrap_or(&said);
    assert!(first.contains("postgres refused a statement: permission denied"), "{said}");
    assert!(first.ends_with("; it was `create role \"walsweep\" login`"), "{said}");
    // The comment on a publication is changed by a long statement.
    let output = sidecar.command(&["setup", "--as", &bed.postgres.url()]);
    assert!(output.status.success(), "{}", text(&output));
    bed.sql.run("alter publication walsweep add table cart").await;
    sidecar.change(|new| new.rules.push_str(&rule("cart", &["cart:{name}"])));
    let said = text(&sidecar.command(&["setup", "--as", &clerk]));
    let told = "postgres refused a statement: must be owner of publication walsweep; it was \
                `comment on publication \"walsweep\" is E'walsweep setup made this";
    assert!(said.contains(told), "{said}");
    let refused = said.lines().find(|line| line.contains("postgres refused")).unwrap();
    assert!(refused.chars().count() < 320 && !refused.contains("$setup$"), "{refused}");
}
