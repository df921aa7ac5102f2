//! What is cached: keys, the query behind each, and the form of a value.
//!
//! Every value has one form, `id:version,id:version`, so that it can be judged without asking the
//! database: it is stale as soon as one of its rows has a later version. Row ids are unique over
//! both tables.

use tokio_postgres::{Client, NoTls, Statement};

/// Ids of table `item`: 1 to this. Some of them are not there at any time.
pub(crate) const ITEMS: i32 = 64;

/// The items that half of the load goes to.
pub(crate) const HOT_ITEMS: i32 = 8;

/// Items that nobody writes but who loses commits on purpose: no later commit removes their keys.
pub(crate) const PHANTOMS: std::ops::RangeInclusive<i32> = 65..=68;

/// Ids of table `flash`, which is truncated now and then.
pub(crate) const FLASHES: std::ops::RangeInclusive<i32> = 1001..=1016;

/// Teams; the lists of a team are the keys that a pattern removes.
pub(crate) const TEAMS: i32 = 8;

/// Pages of a team's list that are asked for.
const PAGES: i32 = 3;

/// Both tables, and some rows.
pub(crate) const SCHEMA: &str = "
create table item (id int primary key, team text, slug text, version bigint not null);
alter table item replica identity full;
create index on item (team, id);
create index on item (slug, id);
create table flash (id int primary key, version bigint not null);
create publication walsweep for table item, flash;
";

/// The rules that remove what is cached.
pub(crate) const RULES: &str = r#"
[[rule]]
name = "item"
table = "public.item"
keys = ["item:{id}", "slug:{slug}", "list:{team}:*"]

[[rule]]
name = "flash"
table = "public.flash"
keys = ["flash:{id}"]
"#;

/// Every row with its version.
pub(crate) const ALL_ROWS: &str =
    "select id, version from item union all select id, version from flash";

/// A cached key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// One item.
    Item(i32),
    /// The item with a slug that has the lowest id.
    Slug(i32),
    /// A page of a team's items.
    List {
        /// The team's number.
        team: i32,
        /// The page, from 0.
        page: i32,
    },
    /// One row of the other table.
    Flash(i32),
}

/// A team's name: full of what a careless pattern would take for syntax.
pub(crate) fn team_name(team: i32) -> String {
    format!("te[a]m*{team}")
}

/// An item's slug.
pub(crate) fn slug_name(slug: i32) -> String {
    format!("s?{slug}")
}

impl Key {
    /// Every key that a reader may ask for.
    pub(crate) fn all() -> Vec<Key> {
        let pages = |team| (0..PAGES).map(move |page| Key::List { team, page });
        let mut all: Vec<Key> = (1..=ITEMS).chain(PHANTOMS).map(Key::Item).collect();
        all.extend((1..=ITEMS).map(Key::Slug));
        all.extend((0..TEAMS).flat_map(pages));
        all.extend(FLASHES.map(Key::Flash));
        all
    }

    /// The key's name in the cache.
    pub(crate) fn name(self) -> String {
        match self {
            Key::Item(id) => format!("item:{id}"),
            Key::Slug(slug) => format!("slug:{}", slug_name(slug)),
            Key::List { team, page } => format!("list:{}:{page}", team_name(team)),
            Key::Flash(id) => format!("flash:{id}"),
        }
    }
}

/// The rows of a value, with their versions.
pub(crate) fn versions(value: &str) -> impl Iterator<Item = (i32, u64)> {
    value.split(',').filter_map(|pair| {
        let (id, version) = pair.split_once(':')?;
        Some((id.parse().ok()?, version.parse().ok()?))
    })
}

/// A connection to the database, with the queries behind the keys.
pub(crate) struct Rows {
    client: Client,
    item: Statement,
    slug: Statement,
    list: Statement,
    flash: Statement,
}

impl Rows {
    /// Connects.
    pub(crate) async fn open(url: &str) -> Result<Rows, tokio_postgres::Error> {
        let client = connect(url).await?;
        let select = |from: &str| {
            format!("select coalesce(string_agg(id || ':' || version, ',' order by id), '') {from}")
        };
        let slug = "from (select * from item where slug = $1 order by id limit 1) one";
        let list = "from (select * from item where team = $1 order by id limit 4 offset $2) page";
        Ok(Rows {
            item: client.prepare(&select("from item where id = $1")).await?,
            slug: client.prepare(&select(slug)).await?,
            list: client.prepare(&select(list)).await?,
            flash: client.prepare(&select("from flash where id = $1")).await?,
            client,
        })
    }

    /// What the cache should hold for a key; empty where there is no row.
    pub(crate) async fn value(&self, key: Key) -> Result<String, tokio_postgres::Error> {
        let row = match key {
            Key::Item(id) => self.client.query_one(&self.item, &[&id]).await?,
            Key::Slug(slug) => self.client.query_one(&self.slug, &[&slug_name(slug)]).await?,
            Key::List { team, page } => {
                let offset = i64::from(page) * 4;
                self.client.query_one(&self.list, &[&team_name(team), &offset]).await?
            }
            Key::Flash(id) => self.client.query_one(&self.flash, &[&id]).await?,
        };
        row.try_get(0)
    }

    /// Every row with its version.
    pub(crate) async fn all(&self) -> Result<Vec<(i32, u64)>, tokio_postgres::Error> {
        let rows = self.client.query(ALL_ROWS, &[]).await?;
        let pair = |row: &tokio_postgres::Row| {
            let version = u64::try_from(row.try_get::<_, i64>(1)?).unwrap_or(0);
            Ok((row.try_get(0)?, version))
        };
        rows.iter().map(pair).collect()
    }
}

/// A connection that a task of its own serves.
pub(crate) async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    drop(tokio::spawn(connection));
    Ok(client)
}
