//! Who may do what a login may not, as a hint names it.

use std::collections::BTreeSet;

use tokio_postgres::Row;

use super::{Error, Hands};
use crate::config::{Config, TableName};
use crate::preflight::{self, Does, Runner};

/// What is asked about.
#[derive(Default)]
pub(super) struct Asked<'a> {
    pub(super) publication: Option<&'a String>,
    /// The event trigger, and its function.
    pub(super) trigger: Option<&'a String>,
    pub(super) tables: &'a [TableName],
    pub(super) schema: Option<&'a String>,
}

/// Something that the role of a session does not own.
pub(super) struct NotOwned {
    /// Its kind and name.
    what: String,
    owner: String,
    can_log_in: bool,
    /// Whether the owner may make publications.
    may_create: bool,
    /// Another role that may log in, and may do what the owner may.
    member: Option<String>,
}

impl NotOwned {
    fn of(row: &Row) -> Result<NotOwned, tokio_postgres::Error> {
        Ok(NotOwned {
            what: row.try_get(0)?,
            owner: row.try_get(1)?,
            can_log_in: row.try_get(2)?,
            may_create: row.try_get(3)?,
            member: row.try_get(4)?,
        })
    }

    /// It and its owner, for messages.
    pub(super) fn told(&self) -> String {
        format!("{} of `{}`", self.what, self.owner)
    }
}

/// What of this the role of the session does not own.
pub(super) async fn not_owned(
    hands: &Hands<'_>,
    Asked { publication, trigger, tables, schema }: Asked<'_>,
) -> Result<Vec<NotOwned>, Error> {
    let (schemas, names): (Vec<&str>, Vec<&str>) =
        tables.iter().map(|table| (&*table.schema, &*table.name)).unzip();
    let question = include_str!("../../sql/setup/not_owned.sql");
    let arguments: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
        [&publication, &trigger, &schemas, &names, &schema];
    let rows = hands.client.query(question, &arguments).await?;
    Ok(rows.iter().map(NotOwned::of).collect::<Result<Vec<_>, tokio_postgres::Error>>()?)
}

/// Who may take a step that the role of the session may not.
pub(super) async fn who_may(
    config: &Config,
    hands: &Hands<'_>,
    does: &Does,
) -> Result<String, Error> {
    let role = &hands.endpoint.user;
    if does.runner() == Runner::Superuser {
        return Ok("a superuser may, or the administrator role of a managed service: `walsweep \
                   setup --print` shows the SQL, and `walsweep setup --as URL` with that login \
                   runs it"
            .to_owned());
    }
    let publication = does.alters_publication().then_some(&config.postgres.publication);
    let (mut tables, mut schema) = (does.locks(), None);
    if let Does::Grant { on, table } = does {
        match table {
            Some(name) => tables.push(TableName { schema: on.clone(), name: name.clone() }),
            None => schema = Some(on),
        }
    }
    let asked = Asked { publication, trigger: None, tables: &tables, schema };
    let rows = not_owned(hands, asked).await?;
    let creates = matches!(does, Does::CreatePublication(..));
    let database = &config.postgres.endpoint.database;
    let may_create = async || -> Result<bool, Error> {
        let question = include_str!("../../sql/setup/may_create.sql");
        Ok(hands.client.query_one(question, &[]).await?.try_get(0)?)
    };
    Ok(if !rows.is_empty() {
        let what: Vec<String> = rows.iter().map(NotOwned::told).collect();
        let database = creates.then_some(database.as_str());
        let login = login("setup", database, &rows);
        format!("role `{role}` does not own {}: {login}", what.join(", "))
    } else if creates && !may_create().await? {
        format!(
            "{} by the owner of the database lets role `{role}`; or a superuser's login in \
             `walsweep setup --as URL`",
            grant_create(database, role)
        )
    } else {
        "`walsweep setup --as URL` with a superuser's login".to_owned()
    })
}

fn grant_create(database: &str, role: &str) -> String {
    let (database, role) = (preflight::escaped(database), preflight::escaped(role));
    format!("`grant create on database {database} to {role}`")
}

/// The logins with which a command may do it to all of these, which have to be some; with
/// `database` they make a publication in it.
pub(super) fn login(command: &str, database: Option<&str>, rows: &[NotOwned]) -> String {
    let owners: BTreeSet<&str> = rows.iter().map(|one| one.owner.as_str()).collect();
    let by = format!("`walsweep {command} --as URL` with");
    let [first, ..] = rows else { return format!("{by} a superuser's login") };
    if owners.len() > 1 {
        return format!(
            "{by} a superuser's login, or that of a role that is a member of each owner"
        );
    }
    let owner = &first.owner;
    let grant = database.filter(|_| !first.may_create);
    let grant = grant.map(|database| format!(", once there is {}", grant_create(database, owner)));
    let grant = grant.unwrap_or_default();
    match (first.can_log_in, &first.member) {
        (true, _) => format!("{by} the login of `{owner}`{grant}, or a superuser's"),
        (false, Some(member)) => format!(
            "`{owner}` cannot log in; {by} the login of a member of it, such as \
             `{member}`{grant}, or a superuser's"
        ),
        (false, None) => format!(
            "`{owner}` cannot log in, and no member of it; {by} a superuser's login, or that of a \
             role that `grant {} to …` makes a member{grant}",
            preflight::escaped(owner)
        ),
    }
}
