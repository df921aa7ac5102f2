//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::command::explain::Operation;

/// Removes Redis cache keys once the Postgres commit that makes them stale is visible.
#[derive(Debug, Parser)]
#[command(name = "walsweep", version, about, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// The configuration file; before or after the command.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        default_value = "config.toml",
        env = "WALSWEEP_CONFIG"
    )]
    pub config: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit status: 0 clean stop or all well; 1 halted, a person is needed, or \
                          `check` found a problem; 2 usage; 78 the configuration is invalid.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Remove keys as commits become visible, until told to stop.
    Run {
        /// Refuse to start if a rule does not fit its table, instead of suspending that rule.
        #[arg(long)]
        strict: bool,
    },
    /// Hold the configuration against the database and Redis; every finding with its cure.
    Check {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Create role, publication, replica identities, event trigger and slot, where missing.
    Setup {
        /// Print the SQL and do nothing.
        #[arg(long)]
        print: bool,
        /// Log in as an owner of the tables or a superuser, and set up for the configured role.
        #[arg(long = "as", value_name = "URL", env = "WALSWEEP_SETUP_AS", hide_env_values = true)]
        login: Option<String>,
        /// Load the lease functions into Redis, and nothing else; with --print, print them.
        #[arg(long)]
        lease: bool,
    },
    /// Drop slot, publication and event trigger, if `setup` made them.
    Teardown {
        /// Print the SQL and do nothing.
        #[arg(long, conflicts_with = "lease")]
        print: bool,
        /// Log in as an owner of the tables or a superuser.
        #[arg(long = "as", value_name = "URL", env = "WALSWEEP_SETUP_AS", hide_env_values = true)]
        login: Option<String>,
        /// Remove the lease functions from Redis, and nothing else.
        #[arg(long)]
        lease: bool,
    },
    /// Show which keys a row change removes, and by which rule. Reads no row, and needs no server;
    /// where Postgres can be reached, columns, types and replica identity are the table's.
    Explain(ExplainArgs),
    /// Remove the keys that match, by hand, in one SCAN pass.
    Sweep {
        /// Redis patterns, such as `db:leaderboard:*`.
        #[arg(required = true, value_name = "PATTERN")]
        patterns: Vec<String>,
        /// Count, remove nothing.
        #[arg(long)]
        dry_run: bool,
        /// Remove keys that no rule covers, too.
        #[arg(long)]
        force: bool,
    },
    /// Throwaway Postgres and Redis, a football site, and what happens to its keys.
    Demo {
        /// Leave everything running until Ctrl-C.
        #[arg(long)]
        keep: bool,
    },
    /// Print a completion script.
    Completions {
        /// For this shell.
        shell: Shell,
    },
    /// Print the manual page.
    Man,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The table or materialized view, `schema.table`; without a schema `public`.
    pub table: String,
    /// What happens to the row: insert, update, delete or truncate; to a view: refresh.
    #[arg(long, value_name = "OPERATION")]
    pub op: Operation,
    /// Columns of the replica identity, for an UPDATE without an old row; else the table's.
    #[arg(long, value_name = "COLUMN", value_delimiter = ',')]
    pub identity: Vec<String>,
    /// The row before, as JSON. Of it only what the replica identity sends is known.
    #[arg(long, value_name = "JSON")]
    pub old: Option<String>,
    /// The row after, as JSON.
    #[arg(long, value_name = "JSON")]
    pub new: Option<String>,
    /// Ask no server; types and replica identity are then supposed to be as the rows tell.
    #[arg(long)]
    pub offline: bool,
}
