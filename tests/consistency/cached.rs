//! The content of the cache: keys, the query behind each, and the form of a value.
//!
//! A value lists `id:version` with commas, so that it can be judged without asking the database: it
//! is stale as soon as one of its rows has a later version. What else it holds is compared at rest.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, NoTls, Statement};

use crate::schema::{
    ALL_ROWS, CHILD_PAGE, FIRST_PARTS, FLASHES, ITEMS, LABELS, PAGES, PHANTOMS, SECOND_PARTS,
    SHELVES, TEAMS, label_name, slug_name, team_name,
};

/// Pages of a team's list that are asked for.
const LIST_PAGES: i32 = 3;

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
    /// One row of a table that is truncated.
    Flash(i32),
    /// One page, with all that its definition makes of it.
    Page(i32),
    /// The pages on a shelf.
    Shelf(i32),
    /// The shelves with a label, and the pages on them.
    Label(i32),
    /// One row of the partitioned table.
    Part(i32),
    /// The parts on a shelf.
    Parts(i32),
    /// The materialized view.
    Stat,
}

/// The form of a value of which nothing but rows is shown.
const ROWS: &str = "select coalesce(string_agg(id || ':' || version, ',' order by id), '') ";

/// A page as its columns show it, `note_…` by whatever name it has.
const PAGE: &str = "
select coalesce(string_agg(concat_ws(',',
           id || ':' || version,
           '3001:' || split_part(name, '#', 2),
           (select string_agg('3002:' || substr(key, 6), ',')
              from jsonb_object_keys(to_jsonb(page)) as key where key like 'note\\_%'),
           '3003:' || substr(mood::text, 2),
           split_part(name, '#', 1), code), ','), '')
  from page where id = $1";

impl Key {
    /// Every key that a reader may ask for.
    pub(crate) fn all() -> Vec<Key> {
        let pages = |team| (0..LIST_PAGES).map(move |page| Key::List { team, page });
        let mut all: Vec<Key> = (1..=ITEMS).chain(PHANTOMS).map(Key::Item).collect();
        all.extend((1..=ITEMS).map(Key::Slug));
        all.extend((0..TEAMS).flat_map(pages));
        all.extend(FLASHES.map(Key::Flash));
        all.extend(Key::all_defined());
        all
    }

    /// Those of tables whose definition changes, of partitions, lookups and views.
    pub(crate) fn all_defined() -> Vec<Key> {
        let mut all: Vec<Key> = PAGES.chain([CHILD_PAGE]).map(Key::Page).collect();
        all.extend(SHELVES.map(Key::Shelf));
        all.extend((0..LABELS).map(Key::Label));
        all.extend(FIRST_PARTS.chain(SECOND_PARTS).map(Key::Part));
        all.extend(SHELVES.map(Key::Parts));
        all.push(Key::Stat);
        all
    }

    /// The key's name in the cache.
    pub(crate) fn name(self) -> String {
        match self {
            Key::Item(id) => format!("item:{id}"),
            Key::Slug(slug) => format!("slug:{}", slug_name(slug)),
            Key::List { team, page } => format!("list:{}:{page}", team_name(team)),
            Key::Flash(id) => format!("flash:{id}"),
            Key::Page(id) => format!("page:{id}"),
            Key::Shelf(shelf) => format!("pages:{shelf}:all"),
            Key::Label(label) => format!("label:{}", label_name(label)),
            Key::Part(id) => format!("part:{id}"),
            Key::Parts(shelf) => format!("parts:{shelf}:all"),
            Key::Stat => "stat:all".to_owned(),
        }
    }

    /// The query behind it.
    fn query(self) -> String {
        let from = match self {
            Key::Item(_) => "from item where id = $1",
            Key::Slug(_) => "from (select * from item where slug = $1 order by id limit 1) one",
            Key::List { .. } => {
                "from (select * from item where team = $1 order by id limit 4 offset $2) page"
            }
            Key::Flash(_) => "from flash where id = $1",
            Key::Page(_) => return PAGE.to_owned(),
            Key::Shelf(_) => "from page where shelf = $1",
            Key::Label(_) => {
                "from (select id, version from shelf where label = $1
                       union all
                       select page.id, page.version
                         from page join shelf on shelf.id = page.shelf where label = $1) both_of"
            }
            Key::Part(_) => "from part where id = $1",
            Key::Parts(_) => "from part where shelf = $1",
            Key::Stat => "from (select 6001 as id, version from stat) one",
        };
        format!("{ROWS}{from}")
    }
}

/// Gives the part of a key's name before its first colon.
pub(crate) fn family(name: &str) -> &str {
    name.split(':').next().unwrap_or_default()
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
    /// Each is prepared when it is first asked for: its table may not be there before.
    statements: Mutex<HashMap<String, Statement>>,
}

impl Rows {
    /// Connects. No query waits longer than `patience` for a table that somebody else locked.
    pub(crate) async fn open(url: &str, patience: Duration) -> Result<Rows, Error> {
        let client = connect(url).await?;
        let patience = format!("set lock_timeout = '{}ms'", patience.as_millis());
        client.batch_execute(&patience).await?;
        Ok(Rows { client, statements: Mutex::default() })
    }

    /// Whether the connection is gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    async fn prepared(&self, query: String) -> Result<Statement, Error> {
        let known = self.statements.lock().unwrap().get(&query).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let statement = self.client.prepare(&query).await?;
        self.statements.lock().unwrap().insert(query, statement.clone());
        Ok(statement)
    }

    /// Gives the value that the cache should hold for a key; empty where there is no row.
    pub(crate) async fn value(&self, key: Key) -> Result<String, Error> {
        let statement = self.prepared(key.query()).await?;
        let (id, text, offset);
        let mut params: Vec<&(dyn ToSql + Sync)> = Vec::new();
        match key {
            Key::Item(one)
            | Key::Flash(one)
            | Key::Page(one)
            | Key::Shelf(one)
            | Key::Part(one)
            | Key::Parts(one) => {
                id = one;
                params.push(&id);
            }
            Key::Slug(slug) => {
                text = slug_name(slug);
                params.push(&text);
            }
            Key::Label(label) => {
                text = label_name(label);
                params.push(&text);
            }
            Key::List { team, page } => {
                (text, offset) = (team_name(team), i64::from(page) * 4);
                params.extend([&text as &(dyn ToSql + Sync), &offset]);
            }
            Key::Stat => {}
        }
        self.client.query_one(&statement, &params).await?.try_get(0)
    }

    /// Every row with its version.
    pub(crate) async fn all(&self) -> Result<Vec<(i32, u64)>, Error> {
        let mut all = Vec::new();
        for query in ALL_ROWS {
            all.extend(self.rows(query).await?);
        }
        Ok(all)
    }

    /// The rows of all tables that are there and not locked. Fails when the connection does.
    pub(crate) async fn within_reach(&self) -> Result<Vec<(i32, u64)>, Error> {
        let mut all = Vec::new();
        for query in ALL_ROWS {
            match self.rows(query).await {
                Ok(rows) => all.extend(rows),
                Err(error) if self.is_closed() || error.as_db_error().is_none() => {
                    return Err(error);
                }
                Err(_out_of_reach) => {}
            }
        }
        Ok(all)
    }

    async fn rows(&self, query: &str) -> Result<Vec<(i32, u64)>, Error> {
        let statement = self.prepared(query.to_owned()).await?;
        let rows = self.client.query(&statement, &[]).await?;
        let pair = |row: &tokio_postgres::Row| {
            let version = u64::try_from(row.try_get::<_, i64>(1)?).unwrap_or(0);
            Ok((row.try_get(0)?, version))
        };
        rows.iter().map(pair).collect()
    }
}

/// A connection that a task of its own serves.
pub(crate) async fn connect(url: &str) -> Result<Client, Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    drop(tokio::spawn(connection));
    Ok(client)
}
