//! The command line.

use std::ffi::OsString;
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
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit status: 0 clean stop or all well; 1 halted, a person is needed, or \
                          `check` found a problem; 2 wrong usage; 78 the configuration is invalid.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Remove keys as commits become visible, until SIGTERM or Ctrl-C; SIGHUP reloads.
    Run {
        /// Refuse to start if a rule does not fit its table, instead of suspending that rule.
        #[arg(long)]
        strict: bool,
        /// Log at level `debug`: of each transaction how many keys went, by which rule, and what
        /// widened, and why.
        #[arg(short, long)]
        verbose: bool,
    },
    /// Check the configuration, the database and Redis; print each finding with its cure.
    Check {
        /// Print the findings as JSON.
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
    /// Show which keys a row change removes, and by which rule.
    ///
    /// Reads no row, and needs no server. Where it can reach Postgres, it takes columns, types and
    /// replica identity from the table.
    Explain(ExplainArgs),
    /// Remove keys by hand: all that match, in one SCAN pass.
    Sweep {
        /// Redis patterns of any bytes, such as `db:leaderboard:*`; without `redis.prefix`, which
        /// is put before them.
        #[arg(required = true, value_name = "PATTERN")]
        patterns: Vec<OsString>,
        /// Count the keys, and remove nothing.
        #[arg(long)]
        dry_run: bool,
        /// Remove also keys that no rule covers.
        #[arg(long)]
        force: bool,
        /// Only from the Redis of this name, of several.
        #[arg(long, value_name = "NAME")]
        target: Option<String>,
    },
    /// Count the keys that are in Redis: by the rule that reaches them, and those that none does.
    ///
    /// Reads names alone, by one SCAN pass over each Redis. A rule that reaches no key may be
    /// misspelt; keys that no rule reaches are either no cache of these tables, or never go.
    Coverage {
        /// Print it as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say how the running walsweep is: what flows, what waits and why, the slot, targets, rules.
    ///
    /// Asks at `[http] listen`, and ends with 1 where the verdict is WRONG: readers may see old
    /// values, and a person is needed. It ends with 1 as well where nobody answers, or where
    /// `/healthz` is not 200. One that stands by for another is well. It begins with what `/readyz`
    /// says.
    Status(StatusArgs),
    /// Say who removed a key: when, for which transaction, by which rule, and whether it widened.
    ///
    /// Asks the running walsweep, at `[http] listen`, and reads the audit trail where `[audit]`
    /// names one. Ends with 1 where no removal of the key is known, and says why that may be.
    Why {
        /// The key as it stands in Redis, of any bytes.
        key: OsString,
        /// Print it as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prove that a commit removes keys, from Postgres to every Redis; say how long it took.
    ///
    /// Puts a key of its own into every Redis, commits a message that names it, and waits until the
    /// running walsweep has removed it. Touches no table. Ends with 1 where a key stays, and says
    /// why.
    Probe {
        /// How long the commit and the removal may take together.
        #[arg(
            long,
            value_name = "SECONDS",
            default_value_t = 10,
            value_parser = clap::value_parser!(u64).range(1..=3600)
        )]
        timeout: u64,
        /// Print it as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Let the running walsweep read its configuration again, and say what came of it.
    ///
    /// Finds the process at `[http] listen`, and sends it SIGHUP. It goes on with the old
    /// configuration while it judges the new one, and where it refuses it.
    Reload {
        /// The process, where `[http] listen` is ""; else it must be the one that answers there.
        #[arg(long, value_name = "PID")]
        pid: Option<u32>,
    },
    /// Start throwaway Postgres and Redis with a football site, and show what happens to its keys.
    Demo {
        /// Leave everything running until Ctrl-C.
        #[arg(long)]
        keep: bool,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print a manual page.
    Man(ManArgs),
}

/// The options of `status`.
#[derive(Args, Clone, Copy, Debug)]
pub struct StatusArgs {
    /// Print it as JSON.
    #[arg(long)]
    pub json: bool,
    /// Ask again each second, until Ctrl-C; with --json an object each time.
    #[arg(long)]
    pub watch: bool,
    /// End with 0 whenever `/healthz` is 200, as a health check wants it: a restart cures nothing
    /// of a verdict.
    #[arg(long)]
    pub alive: bool,
}

/// Arguments of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The command that the page is of; without one, the page of the program.
    #[arg(value_name = "COMMAND")]
    pub page: Option<String>,
    /// Write all pages into this folder instead, as files such as `walsweep-run.1`.
    #[arg(long, value_name = "FOLDER", conflicts_with = "page")]
    pub to: Option<PathBuf>,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The table or materialized view, `schema.table`; without a schema `public`.
    pub table: String,
    /// The operation on the row: insert, update, delete or truncate; on a view: refresh.
    #[arg(long, value_name = "OPERATION")]
    pub op: Operation,
    /// Suppose these columns to be the replica identity, instead of asking the table.
    #[arg(long, value_name = "COLUMN", value_delimiter = ',')]
    pub identity: Vec<String>,
    /// The row before, as a JSON object. Only what the replica identity sends of it counts.
    #[arg(long, value_name = "JSON")]
    pub old: Option<String>,
    /// The row after, as a JSON object; columns that it leaves out did not change.
    #[arg(long, value_name = "JSON")]
    pub new: Option<String>,
    /// Ask no server: take types from the JSON, and suppose that Postgres sends all of `--old`.
    #[arg(long)]
    pub offline: bool,
}
