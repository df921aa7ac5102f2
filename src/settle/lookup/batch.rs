//! One statement for many rows of a lookup, and its rows put together again.

use std::mem::take;
use std::pin::pin;

use futures_util::TryStreamExt;
use postgres_protocol::escape::escape_identifier;
use tokio_postgres::types::{Kind, ToSql, Type};
use tokio_postgres::{Row, Statement};

use super::query;
use super::room::RowRoom;
use super::rows::{Asked, Param, Text, VALUE_SIZE_MAX};
use crate::config::LookupRows;
use crate::keys::{Found, FoundRows, Wanted};
use crate::postgres::Sql;
use crate::postgres::statement::render;

/// The cost of a value beside its bytes.
const VALUE_COST: usize = 32;

/// The statement that asks for many rows of a lookup, whose query has parameters of these types;
/// `None` if they cannot be asked for together.
pub(super) fn statement(asked: &Asked, types: &[Type]) -> Option<String> {
    // Boxes are the only type whose arrays have another delimiter.
    if types.is_empty() || !types.iter().all(|kind| is_plain(kind) && *kind != Type::BOX) {
        return None;
    }
    let query = query::with_columns(&asked.query)?;
    let array = |(at, kind): (usize, &Type)| {
        let (schema, name) = (escape_identifier(kind.schema()), escape_identifier(kind.name()));
        format!("pg_catalog.unnest(${}::{schema}.{name}[])", at + 1)
    };
    let arrays: Vec<String> = types.iter().enumerate().map(array).collect();
    let names: Vec<String> = (1..=types.len()).map(query::column_name).collect();
    let values = [
        ("arrays", &*arrays.join(", ")),
        ("names", &*names.join(", ")),
        ("statement", &*asked.statement(&query)),
    ];
    Some(render(include_str!("../../../sql/lookup_batch.sql"), &values))
}

/// Whether an array of the type is one column: arrays of arrays have one shape, and a row is as
/// many columns as it has.
fn is_plain(kind: &Type) -> bool {
    match kind.kind() {
        Kind::Array(_) | Kind::Composite(_) | Kind::Pseudo => false,
        Kind::Domain(base) => is_plain(base),
        _ => true,
    }
}

/// Asks for rows of one lookup together. Each row is kept as it comes, as far as there is `room`.
///
/// # Errors
/// Of one for all: whatever the server says, or the connection.
pub(super) async fn ask(
    sql: &Sql,
    statement: &Statement,
    (asked, wanted): (&Asked, &[Wanted]),
    room: &RowRoom,
) -> Result<Vec<Found>, tokio_postgres::Error> {
    let arrays = arrays(wanted);
    let params = arrays.iter().map(|array| Param(Some(array)));
    let params: Vec<Param<'_>> = params.collect();
    let params = params.iter().map(|param| param as &(dyn ToSql + Sync));
    let mut gathered: Vec<Gathered> = wanted.iter().map(|_| Gathered::default()).collect();
    let mut rows = pin!(sql.query_raw(statement, params).await?);
    while let Some(row) = rows.try_next().await? {
        let place: i64 = row.try_get(0)?;
        let place = usize::try_from(place).ok().and_then(|place| place.checked_sub(1));
        if let Some(one) = place.and_then(|place| gathered.get_mut(place)) {
            one.take((&row, 1), asked, room)?;
        }
    }
    Ok(gathered.into_iter().map(|one| one.found(asked)).collect())
}

/// Each parameter of all, as the text of an array
/// (<https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO>).
fn arrays(wanted: &[Wanted]) -> Vec<Vec<u8>> {
    let mut arrays: Vec<Vec<u8>> = Vec::new();
    for one in wanted {
        for (at, value) in one.params().into_iter().enumerate() {
            if arrays.len() == at {
                arrays.push(Vec::new());
            }
            let array = &mut arrays[at];
            array.push(if array.is_empty() { b'{' } else { b',' });
            match value {
                None => array.extend_from_slice(b"NULL"),
                Some(value) => {
                    array.push(b'"');
                    for byte in value {
                        if matches!(byte, b'"' | b'\\') {
                            array.push(b'\\');
                        }
                        array.push(*byte);
                    }
                    array.push(b'"');
                }
            }
        }
    }
    arrays.iter_mut().for_each(|array| array.push(b'}'));
    arrays
}

/// The rows of one answer, while they come.
#[derive(Default)]
pub(super) struct Gathered {
    count: usize,
    rows: FoundRows,
    /// The room that they take.
    bytes: usize,
    is_large: bool,
    is_beyond: bool,
}

impl Gathered {
    /// Takes in a row, whose columns begin at a place, if there is room for it.
    pub(super) fn take(
        &mut self,
        (row, start): (&Row, usize),
        asked: &Asked,
        room: &RowRoom,
    ) -> Result<(), tokio_postgres::Error> {
        self.count += 1;
        if self.is_large || self.is_beyond || self.count > asked.most() {
            self.drop_rows(room);
            return Ok(());
        }
        let text = |at| Ok(row.try_get::<_, Option<Text<'_>>>(at)?.map(|text| text.0));
        let values: Vec<Option<&[u8]>> = (start..row.len()).map(text).collect::<Result<_, _>>()?;
        self.is_large = values.iter().flatten().any(|value| value.len() > VALUE_SIZE_MAX);
        if self.is_large {
            self.drop_rows(room);
            return Ok(());
        }
        let bytes: usize = values.iter().flatten().map(|value| value.len()).sum();
        let bytes = bytes + values.len() * VALUE_COST;
        if !room.take(bytes) {
            self.is_beyond = true;
            self.drop_rows(room);
            return Ok(());
        }
        self.bytes += bytes;
        self.rows.push(values.into_iter());
        Ok(())
    }

    /// Drops the rows, and leaves their room to others.
    fn drop_rows(&mut self, room: &RowRoom) {
        room.give_back(take(&mut self.bytes));
        self.rows = FoundRows::default();
    }

    /// The answer that they are.
    pub(super) fn found(self, asked: &Asked) -> Found {
        match asked.rows {
            _ if self.is_large => Found::Large,
            _ if self.is_beyond => Found::Beyond,
            LookupRows::Many if self.count > asked.most() => Found::Beyond,
            LookupRows::One if self.count > asked.most() => Found::Many,
            _ if self.count > 0 => Found::Rows(self.rows),
            _ => Found::None,
        }
    }
}
