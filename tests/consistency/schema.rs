//! The tables, the rules that remove what is cached of them, and what is published.
//!
//! Row ids are unique over all tables. What a row reads as may change without a change of the row:
//! such a reading has an id and versions of its own, which a SELECT finds in the name of a column,
//! in the label of an enum, or in a text that every row has.

/// Ids of table `item`: 1 to this. Some of them are not there at any time.
pub(crate) const ITEMS: i32 = 64;

/// The items that half of the load goes to.
pub(crate) const HOT_ITEMS: i32 = 8;

/// Items that nobody writes but who loses commits on purpose, or hides them from the stream: no
/// later commit removes their keys.
pub(crate) const PHANTOMS: std::ops::RangeInclusive<i32> = 65..=68;

/// Ids of table `flash`, which is truncated now and then.
pub(crate) const FLASHES: std::ops::RangeInclusive<i32> = 1001..=1016;

/// Ids of table `page`, whose definition changes.
pub(crate) const PAGES: std::ops::RangeInclusive<i32> = 2001..=2008;

/// The row of a table that inherits from `page`, while there is one.
pub(crate) const CHILD_PAGE: i32 = 2099;

/// The reading of `page.name`, which is converted: what stands behind its `#`.
pub(crate) const NAME_READING: i32 = 3001;

/// The reading of the column `note_…` of `page`, which is dropped and added again.
pub(crate) const NOTE_READING: i32 = 3002;

/// The reading of `page.mood`, whose label is renamed.
pub(crate) const MOOD_READING: i32 = 3003;

/// Ids of table `part` in its first partition.
pub(crate) const FIRST_PARTS: std::ops::RangeInclusive<i32> = 4001..=4008;

/// Ids of table `part` in its second partition, which is detached now and then.
pub(crate) const SECOND_PARTS: std::ops::RangeInclusive<i32> = 4009..=4016;

/// Ids of table `shelf`, which a lookup reads.
pub(crate) const SHELVES: std::ops::RangeInclusive<i32> = 5001..=5004;

/// Labels of shelves.
pub(crate) const LABELS: i32 = 6;

/// The materialized view's only row.
pub(crate) const STAT: i32 = 6001;

/// Teams; the lists of a team are the keys that a pattern removes.
pub(crate) const TEAMS: i32 = 8;

/// Beginnings of the names of all cached keys, up to their first colon.
pub(crate) static FAMILIES: [&str; 10] =
    ["item", "slug", "list", "flash", "page", "pages", "label", "part", "parts", "stat"];

/// The families that show rows of `page`.
pub(crate) static PAGE_FAMILIES: [&str; 3] = ["page", "pages", "label"];

/// The families whose keys one rule gives, or two that give nothing else.
pub(crate) fn families_of_rule(family: &str) -> &'static [&'static str] {
    match family {
        "item" | "slug" | "list" => &FAMILIES[0..3],
        "flash" => &FAMILIES[3..4],
        "page" | "pages" => &FAMILIES[4..6],
        "label" => &FAMILIES[6..7],
        "part" | "parts" => &FAMILIES[7..9],
        _ => &FAMILIES[9..10],
    }
}

/// The publication, which somebody may drop and create again by hand, with its comment, as a dump
/// has it. That claims the slot, as `walsweep setup` does: a lost slot of nobody's waits for a
/// person.
pub(crate) const PUBLICATION: &str = r#"
create publication walsweep for table item, flash, page, shelf, part
    with (publish_via_partition_root = true);
comment on publication walsweep is
    E'walsweep setup made this, and walsweep teardown drops it\n{"slots":["walsweep"]}';
"#;

/// All tables but `page`.
const TABLES: &str = "
create table item (id int primary key, team text, slug text, version bigint not null);
alter table item replica identity full;
create index on item (team, id);
create index on item (slug, id);
create table flash (id int primary key, version bigint not null);
create table shelf (id int primary key, label text not null, version bigint not null);
alter table shelf replica identity full;
create type mood as enum ('m0');
create domain code as text;
create table part (id int primary key, shelf int not null, version bigint not null)
    partition by range (id);
create table part_a partition of part for values from (4001) to (4009);
create table part_b partition of part for values from (4009) to (4017);
alter table part replica identity full;
alter table part_a replica identity full;
alter table part_b replica identity full;
create table seed (version bigint not null);
insert into seed values (0);
create materialized view stat as select version from seed;
";

/// The rules that remove what is cached.
pub(crate) const RULES: &str = r#"
[lookup.kept]
sql = "select label from public.shelf where id = $1"
params = ["shelf"]

[[rule]]
name = "item"
table = "public.item"
keys = ["item:{id}", "slug:{slug}", "list:{team}:*"]

[[rule]]
name = "flash"
table = "public.flash"
keys = ["flash:{id}"]

[[rule]]
name = "page"
table = "public.page"
keys = ["page:{id}", "pages:{shelf}:*"]

[[rule]]
name = "labelled"
table = "public.page"
keys = ["label:{kept.label}"]

[[rule]]
name = "shelf"
table = "public.shelf"
keys = ["label:{label}"]

[[rule]]
name = "part"
table = "public.part"
keys = ["part:{id}", "parts:{shelf}:*"]

[[rule]]
name = "stat"
materialized_view = "public.stat"
keys = ["stat:*"]
"#;

/// Every row with its version, table by table: one that is locked or gone spoils only its own.
pub(crate) const ALL_ROWS: [&str; 6] = [
    "select id, version from item",
    "select id, version from flash",
    "select id, version from page",
    "select id, version from shelf",
    "select id, version from part",
    "select 6001, version from stat",
];

/// Every table, with its rows at version 0, and the publication.
pub(crate) fn create() -> String {
    let mut statements = format!("{TABLES}{}{PUBLICATION}", create_page(0, "m0"));
    let mut row = |table: &str, values: String| {
        statements.push_str(&format!("insert into {table} values ({values});\n"));
    };
    for id in (1..=ITEMS * 7 / 8).chain(PHANTOMS) {
        row("item", format!("{id}, '{}', '{}', 0", team_name(id % TEAMS), slug_name(id)));
    }
    FLASHES.for_each(|id| row("flash", format!("{id}, 0")));
    SHELVES.for_each(|id| row("shelf", format!("{id}, '{}', 0", label_name(id % LABELS))));
    FIRST_PARTS.chain(SECOND_PARTS).for_each(|id| row("part", format!("{id}, {}, 0", shelf(id))));
    statements + "refresh materialized view stat;\n"
}

/// Table `page` with its rows, all of them and their readings at `version`; `mood` is the label of
/// the enum. It is not published yet.
pub(crate) fn create_page(version: u64, mood: &str) -> String {
    let mut statements = format!(
        "create table page (
             id int primary key, shelf int not null, version bigint not null,
             name text not null default 'Page#{version}', mood mood not null default '{mood}',
             code code not null default 'c', note_{version} bigint not null default {version}
         );
         alter table page replica identity full;\n"
    );
    for id in PAGES {
        let row = format!("insert into page values ({id}, {}, {version});\n", shelf(id));
        statements.push_str(&row);
    }
    statements
}

/// The shelf that a row begins on.
fn shelf(id: i32) -> i32 {
    SHELVES.start() + id % 4
}

/// A team's name: full of what a careless pattern would take for syntax.
pub(crate) fn team_name(team: i32) -> String {
    format!("te[a]m*{team}")
}

/// An item's slug.
pub(crate) fn slug_name(slug: i32) -> String {
    format!("s?{slug}")
}

/// A shelf's label.
pub(crate) fn label_name(label: i32) -> String {
    format!("l*{label}")
}
