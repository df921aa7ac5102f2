//! Who may run a step: what whoever runs it has to own, held against the owners that there are. The
//! script's headings, the look before the first change, and the hints about what was refused all
//! ask here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::{Error, Hands};
use crate::config::{Config, TableName};
use crate::preflight::{self, Does, Grant, Object, Step};
use crate::words::counted;

/// Something that has an owner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Thing {
    Database(String),
    Schema(String),
    Publication(String),
    EventTrigger(String),
    Function(String),
    Table(TableName),
}

impl Thing {
    /// Its kind, and its name for messages.
    fn named(&self) -> (&'static str, String) {
        match self {
            Thing::Database(name) => ("database", name.clone()),
            Thing::Schema(name) => ("schema", name.clone()),
            Thing::Publication(name) => ("publication", name.clone()),
            Thing::EventTrigger(name) => ("event trigger", name.clone()),
            Thing::Function(name) => ("function", name.clone()),
            Thing::Table(name) => ("table", name.to_string()),
        }
    }
}

impl fmt::Display for Thing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = self.named();
        write!(formatter, "{kind} `{name}`")
    }
}

/// Things in words: each, or of several of a kind the kind.
fn listed(things: &BTreeSet<&Thing>) -> String {
    let mut kinds: Vec<(&str, Vec<&Thing>)> = Vec::new();
    for thing in things {
        let (kind, _) = thing.named();
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, of)) => of.push(thing),
            None => kinds.push((kind, vec![thing])),
        }
    }
    let told = kinds.iter().map(|(kind, of)| match of.as_slice() {
        [one] => one.to_string(),
        _ => format!("the {kind}s"),
    });
    let told: Vec<String> = told.collect();
    match told.split_last() {
        Some((last, before)) if !before.is_empty() => format!("{} and {last}", before.join(", ")),
        _ => told.concat(),
    }
}

/// Something that is there, with its owner.
#[expect(clippy::struct_excessive_bools, reason = "facts that do not depend on each other")]
pub(super) struct Owned {
    thing: Thing,
    owner: String,
    can_log_in: bool,
    /// Whether the owner may make publications.
    may_create: bool,
    /// Another role that may log in, and may do what the owner may.
    member: Option<String>,
    /// Whether the role of the session may do what the owner may.
    is_own: bool,
    /// Whether the role of the session may grant there what `setup` grants.
    may_grant: bool,
}

impl Owned {
    /// One of a row of `sql/setup/owners.sql`.
    fn of(row: &Row) -> Result<Owned, tokio_postgres::Error> {
        let (kind, schema): (&str, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        let name: String = row.try_get(2)?;
        let thing = match (kind, schema) {
            ("table", Some(schema)) => Thing::Table(TableName { schema, name }),
            ("schema", _) => Thing::Schema(name),
            ("publication", _) => Thing::Publication(name),
            ("event trigger", _) => Thing::EventTrigger(name),
            ("function", _) => Thing::Function(name),
            _ => Thing::Database(name),
        };
        Ok(Owned {
            thing,
            owner: row.try_get(3)?,
            can_log_in: row.try_get(4)?,
            may_create: row.try_get(5)?,
            member: row.try_get(6)?,
            is_own: row.try_get(7)?,
            may_grant: row.try_get(8)?,
        })
    }

    /// It and its owner, for messages.
    pub(super) fn told(&self) -> String {
        format!("{} of `{}`", self.thing, self.owner)
    }
}

/// Everything that is asked about.
#[derive(Default)]
pub(super) struct Asked {
    pub(super) publication: Option<String>,
    /// The event trigger, and its function.
    pub(super) trigger: Option<String>,
    pub(super) tables: BTreeSet<TableName>,
    pub(super) schemas: BTreeSet<String>,
    pub(super) database: bool,
}

/// Gives all of this that is there, with its owners.
async fn owned(hands: &Hands<'_>, asked: &Asked) -> Result<Vec<Owned>, Error> {
    let Asked { publication, trigger, tables, schemas, database } = asked;
    let (places, names): (Vec<&str>, Vec<&str>) =
        tables.iter().map(|table| (&*table.schema, &*table.name)).unzip();
    let schemas: Vec<&str> = schemas.iter().map(String::as_str).collect();
    let arguments: [&(dyn ToSql + Sync); 6] =
        [publication, trigger, &places, &names, &schemas, database];
    let question = include_str!("../../sql/setup/owners.sql");
    let rows = hands.client.query(question, &arguments).await?;
    Ok(rows.iter().map(Owned::of).collect::<Result<Vec<_>, tokio_postgres::Error>>()?)
}

/// Gives all of this that the role of the session does not own.
pub(super) async fn not_owned(hands: &Hands<'_>, asked: &Asked) -> Result<Vec<Owned>, Error> {
    let mut rows = owned(hands, asked).await?;
    rows.retain(|one| !one.is_own);
    Ok(rows)
}

/// The owners of all that some steps are about.
pub(super) struct Owners<'a> {
    config: &'a Config,
    /// The role of the session.
    role: &'a str,
    owned: BTreeMap<Thing, Owned>,
    /// Whether the role of the session may make publications.
    may_create: bool,
    /// The tables that are added to a publication that one of the steps makes: they have to be of
    /// whoever makes it.
    added: BTreeSet<Thing>,
}

impl<'a> Owners<'a> {
    /// Asks for those of these steps.
    pub(super) async fn of(
        config: &'a Config,
        hands: &Hands<'a>,
        steps: &[&Step],
    ) -> Result<Owners<'a>, Error> {
        let creates = steps.iter().any(|step| matches!(step.does, Does::CreatePublication(_)));
        let adding = steps.iter().filter(|step| matches!(step.does, Does::AddTables(_)));
        let added = adding.filter(|_| creates).flat_map(|step| things(config, &step.does));
        let mut asked = Asked::default();
        for thing in steps.iter().flat_map(|step| things(config, &step.does)) {
            match thing {
                Thing::Table(table) => drop(asked.tables.insert(table)),
                Thing::Schema(name) => drop(asked.schemas.insert(name)),
                Thing::Publication(name) => asked.publication = Some(name),
                Thing::EventTrigger(name) | Thing::Function(name) => asked.trigger = Some(name),
                Thing::Database(_) => asked.database = true,
            }
        }
        let rows = owned(hands, &asked).await?;
        let may_create = if creates {
            let question = include_str!("../../sql/setup/may_create.sql");
            hands.client.query_one(question, &[]).await?.try_get(0)?
        } else {
            true
        };
        Ok(Owners {
            config,
            role: &hands.endpoint.user,
            owned: rows.into_iter().map(|one| (one.thing.clone(), one)).collect(),
            may_create,
            added: added.collect(),
        })
    }

    /// Gives all that whoever takes a step has to own, and that is there.
    fn rows(&self, does: &Does) -> Vec<&Owned> {
        let things = things(self.config, does);
        things.iter().filter_map(|thing| self.owned.get(thing)).collect()
    }

    /// Gives those of [`Owners::rows`] that the role of the session may not do this to.
    fn lacking(&self, does: &Does) -> Vec<&Owned> {
        let mut rows = self.rows(does);
        let is_grant = matches!(does, Does::Grant(_));
        rows.retain(|one| !(one.is_own || is_grant && one.may_grant));
        rows
    }

    /// Whether the server will refuse this to the role of the session, as far as owners tell.
    pub(super) fn denies(&self, does: &Does) -> bool {
        match does {
            Does::CreatePublication(_) => !self.may_create,
            does => !self.lacking(does).is_empty(),
        }
    }

    /// Tells what of these steps the role of the session may not do; of tables of one owner how
    /// many, and one of them.
    pub(super) fn lacks(&self, steps: &[&Step]) -> Vec<String> {
        let (grants, others) = apart(steps);
        let mut lacks = Vec::new();
        if others.iter().any(|step| matches!(step.does, Does::CreatePublication(_))) {
            let database = &self.config.postgres.endpoint.database;
            lacks.push(format!("create a publication in database `{database}`"));
        }
        lacks.extend(summed("change", self.all_lacking(&others)));
        lacks.extend(summed("grant a right on", self.all_lacking(&grants)));
        lacks
    }

    fn all_lacking(&self, steps: &[&Step]) -> BTreeMap<&Thing, &Owned> {
        let lacking = steps.iter().flat_map(|step| self.lacking(&step.does));
        lacking.map(|one| (&one.thing, one)).collect()
    }

    /// Who may take these steps, which the role of the session may not, among all that have to be
    /// taken, `needed`.
    pub(super) fn hint(&self, denied: &[&Step], needed: &[&Step]) -> String {
        if denied.iter().any(|step| matches!(step.does, Does::Role | Does::Trigger)) {
            return "a superuser may, or the administrator role of a managed service: `walsweep \
                    setup --print` shows the SQL, and `walsweep setup --as URL` with that login \
                    runs it"
                .to_owned();
        }
        let (grants, others) = apart(denied);
        let mut parts = Vec::new();
        if others.iter().any(|step| matches!(step.does, Does::CreatePublication(_))) {
            let (database, role) = (&self.config.postgres.endpoint.database, self.role);
            parts.push(format!(
                "`grant create on database {} to {}` by the owner of the database lets role \
                 `{role}`; or a superuser's login in `walsweep setup --as URL`",
                preflight::escaped(database),
                preflight::escaped(role)
            ));
        }
        let lacking = self.all_lacking(&others);
        if !lacking.is_empty() {
            let what = summed("", lacking);
            // With the login of one owner alone the steps of another would be refused.
            let (_, all) = apart(needed);
            let all: Vec<&Owned> = all.iter().flat_map(|step| self.rows(&step.does)).collect();
            let login = login("setup", &all);
            parts.push(format!("role `{}` does not own {}: {login}", self.role, what.join(", ")));
        }
        parts.extend(self.granted_by(&grants));
        if parts.is_empty() {
            parts.push("`walsweep setup --as URL` with a superuser's login".to_owned());
        }
        parts.join("; ")
    }

    /// Who may run these grants, with all that each owner has to run.
    fn granted_by(&self, steps: &[&Step]) -> Vec<String> {
        let mut by_owner: BTreeMap<&str, (Vec<&Owned>, Vec<&str>)> = BTreeMap::new();
        for step in steps {
            for one in self.lacking(&step.does) {
                let (things, sql) = by_owner.entry(&one.owner).or_default();
                things.push(one);
                sql.push(&step.sql);
            }
        }
        let told = by_owner.into_iter().map(|(owner, (owned, sql))| {
            let things = listed(&owned.iter().map(|one| &one.thing).collect());
            let sql = sql.join("; ");
            let who = match (owned[0].can_log_in, &owned[0].member) {
                (true, _) => format!("owns {things}: let that role run `{sql}`"),
                (false, Some(member)) => format!(
                    "owns {things}, and cannot log in: let a member of it, such as `{member}`, run \
                     `{sql}`"
                ),
                (false, None) => format!(
                    "owns {things}, and cannot log in, nor can a member of it: let a superuser run \
                     `{sql}`"
                ),
            };
            format!("`{owner}` {who}")
        });
        let mut told: Vec<String> = told.collect();
        if !told.is_empty() {
            told.push("or `walsweep setup --as URL` with a superuser's login".to_owned());
        }
        told
    }

    /// Who may run a part of a script with this step in it.
    pub(super) fn who(&self, does: &Does) -> Who<'_> {
        match does {
            Does::Role | Does::Trigger => Who::Superuser,
            Does::CreateSlot | Does::DropSlot => Who::Replicator,
            does => {
                let creates = matches!(does, Does::CreatePublication(_));
                let mut owned: BTreeMap<&Thing, &Owned> =
                    self.rows(does).into_iter().map(|one| (&one.thing, one)).collect();
                if creates || does.alters_publication() {
                    owned.extend(self.added.iter().filter_map(|one| self.owned.get_key_value(one)));
                }
                Who::Owner { owned, creates }
            }
        }
    }
}

/// Gives all that whoever takes a step has to own. To grant a right, it is enough to have been
/// granted it so that one may grant it on.
fn things(config: &Config, does: &Does) -> BTreeSet<Thing> {
    if let Does::Grant(Grant { on, .. }) = does {
        return BTreeSet::from([match on {
            Object::Database(name) => Thing::Database(name.clone()),
            Object::Schema(name) => Thing::Schema(name.clone()),
            Object::Table(table) => Thing::Table(table.clone()),
        }]);
    }
    let publication = Thing::Publication(config.postgres.publication.clone());
    let publication = does.alters_publication().then_some(publication);
    does.owned().into_iter().map(Thing::Table).chain(publication).collect()
}

/// The grants among some steps, and the others.
fn apart<'a>(steps: &[&'a Step]) -> (Vec<&'a Step>, Vec<&'a Step>) {
    steps.iter().copied().partition(|step| matches!(step.does, Does::Grant(_)))
}

/// Tells what is to be done to things, one by one; of tables of one owner how many, and one of
/// them.
fn summed(verb: &str, owned: BTreeMap<&Thing, &Owned>) -> Vec<String> {
    let mut told: Vec<(&Owned, usize)> = Vec::new();
    for one in owned.into_values() {
        let is_of_it = |(first, _): &&mut (&Owned, usize)| {
            matches!((&first.thing, &one.thing), (Thing::Table(_), Thing::Table(_)))
                && first.owner == one.owner
        };
        match told.iter_mut().find(is_of_it) {
            Some((_, count)) => *count += 1,
            None => told.push((one, 1)),
        }
    }
    let told = told.into_iter().map(|(first, count)| match (count, first.thing.named()) {
        (1, _) => format!("{verb} {}", first.told()),
        (count, (_, name)) => {
            let tables = counted(count, "table");
            format!("{verb} {tables} of `{}`, such as `{name}`", first.owner)
        }
    });
    told.map(|text| text.trim_start().to_owned()).collect()
}

/// Who may run a part of a script.
pub(super) enum Who<'a> {
    /// A superuser, or the administrator of a managed service.
    Superuser,
    /// A role that may replicate, such as walsweep's own.
    Replicator,
    /// Whoever owns all of this, and makes a publication if that is one of the steps.
    Owner { owned: BTreeMap<&'a Thing, &'a Owned>, creates: bool },
}

impl<'a> Who<'a> {
    fn owners(&self) -> BTreeSet<&'a str> {
        match self {
            Who::Owner { owned, .. } => owned.values().map(|one| one.owner.as_str()).collect(),
            Who::Superuser | Who::Replicator => BTreeSet::new(),
        }
    }

    /// Takes in what the next step is about, if the same may run it: `false` if not.
    pub(super) fn takes_in(&mut self, next: &Who<'a>) -> bool {
        let is_same = self.owners() == next.owners();
        match (self, next) {
            (Who::Superuser, Who::Superuser) | (Who::Replicator, Who::Replicator) => true,
            (Who::Owner { owned, creates }, Who::Owner { owned: more, creates: also })
                if is_same =>
            {
                owned.extend(more);
                *creates |= also;
                true
            }
            _ => false,
        }
    }

    /// It as the heading of the part.
    pub(super) fn heading(&self, config: &Config) -> String {
        let database = &config.postgres.endpoint.database;
        let (owned, creates) = match self {
            Who::Superuser => {
                return "By a superuser, or the administrator role of a managed service:"
                    .to_owned();
            }
            Who::Replicator => {
                return format!(
                    "By a role that may replicate, such as walsweep's own, `{}`:",
                    config.postgres.replication_endpoint.user
                );
            }
            Who::Owner { owned, creates } => (owned, *creates),
        };
        let owners = self.owners();
        let of = |owner: &str| {
            let things = owned.values().filter(|one| one.owner == owner);
            listed(&things.map(|one| &one.thing).collect())
        };
        let needs = creates && !(owners.len() == 1 && owned.values().all(|one| one.may_create));
        let needs = match needs {
            true => format!(", and needs CREATE on database `{database}`"),
            false => String::new(),
        };
        match (owned.values().next(), owners.len()) {
            (None, _) if creates => format!("By a role with CREATE on database `{database}`:"),
            (None, _) => "By the owner of what it changes:".to_owned(),
            (Some(Owned { owner, can_log_in: true, .. }), 1) => {
                format!("By `{owner}`, who owns {}{needs}:", of(owner))
            }
            (Some(Owned { owner, member: Some(member), .. }), 1) => format!(
                "By a member of `{owner}`, such as `{member}`: `{owner}` owns {}{needs}:",
                of(owner)
            ),
            (Some(Owned { owner, .. }), 1) => format!(
                "By a superuser: `{owner}` owns {}, and nobody can log in with its rights:",
                of(owner)
            ),
            _ => {
                let each = owners.iter().map(|owner| format!("`{owner}` owns {}", of(owner)));
                let each = each.collect::<Vec<_>>().join(", ");
                let needs = needs.replacen(", and needs", ", which needs", 1);
                format!("By a superuser, or a role that is a member of each owner{needs}: {each}:")
            }
        }
    }
}

/// The logins with which a command may do it to all of these, which have to be some.
pub(super) fn login(command: &str, rows: &[&Owned]) -> String {
    let owners: BTreeSet<&str> = rows.iter().map(|one| one.owner.as_str()).collect();
    let by = format!("`walsweep {command} --as URL` with");
    let [first, ..] = rows else { return format!("{by} a superuser's login") };
    if owners.len() > 1 {
        return format!(
            "{by} a superuser's login, or that of a role that is a member of each owner"
        );
    }
    let owner = &first.owner;
    match (first.can_log_in, &first.member) {
        (true, _) => format!("{by} the login of `{owner}`, or a superuser's"),
        (false, Some(member)) => format!(
            "`{owner}` cannot log in; {by} the login of a member of it, such as `{member}`, or a \
             superuser's"
        ),
        (false, None) => format!(
            "`{owner}` cannot log in, and no member of it; {by} a superuser's login, or that of a \
             role that `grant {} to …` makes a member",
            preflight::escaped(owner)
        ),
    }
}
