//! `walsweep explain`, from its arguments to what it prints.

use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use super::{Question, Table};
use crate::command::NAME;
use crate::command::cli::ExplainArgs;
use crate::command::failure::{Failure, halted, print};
use crate::command::load::configuration;
use crate::config::{Config, TableName};
use crate::postgres::connect_sql;
use crate::preflight;

/// How long `explain` waits for Postgres: it answers without, too.
const EXPLAIN_WAIT: Duration = Duration::from_secs(2);

/// `walsweep explain`.
///
/// # Errors
///
/// 78 for the configuration; 1 for a row that is not one, or a column that the table has not.
pub async fn explain(path: &Path, arguments: &ExplainArgs) -> Result<(), Failure> {
    let (config, rules) = configuration(path)?;
    let row = |name: &str, text: &Option<String>| {
        let parse = |text: &String| {
            serde_json::from_str::<super::Object>(text).map_err(|error| {
                Failure::halted(format!("read `--{name}`: not a JSON object: {error}"))
            })
        };
        text.as_ref().map(parse).transpose()
    };
    let question = Question {
        table: arguments.table.parse::<TableName>().map_err(halted)?,
        operation: arguments.op,
        old: row("old", &arguments.old)?,
        new: row("new", &arguments.new)?,
        identity: arguments.identity.clone(),
    };
    let failed = |error: super::Error| halted(&error).with_hint(error.hint());
    super::check(&rules, &question).map_err(failed)?;
    let told = if arguments.offline { Err(None) } else { ask(&config, &question).await? };
    let (question, table, note) = match told {
        Ok((table, typed)) => (typed, Some(table), None),
        Err(why) => (question, None, why),
    };
    let explanation = super::explain(&rules, &question, table.as_ref()).map_err(failed)?;
    print(&format!("{explanation}{}", note.unwrap_or_default()))
}

/// Asks for the table as it is; gives a note where Postgres cannot be asked.
async fn ask(
    config: &Config,
    question: &Question,
) -> Result<Result<(Table, Question), Option<String>>, Failure> {
    let asked = async {
        let sql = connect_sql(&config.postgres.endpoint, NAME).await.map_err(|e| e.to_string())?;
        super::ask(question, &sql).await.map_err(|error| preflight::message(&error))
    };
    let limit = EXPLAIN_WAIT + config.postgres.endpoint.password.patience();
    let why = match timeout(limit, asked).await {
        Ok(Ok(Ok(told))) => return Ok(Ok(told)),
        Ok(Ok(Err(error))) => return Err(halted(&error).with_hint(error.hint())),
        Ok(Err(why)) => why,
        Err(_elapsed) => format!("Postgres gave no answer in {} s", limit.as_secs()),
    };
    Ok(Err(Some(format!("note       columns were not compared with the table: {why}\n"))))
}
