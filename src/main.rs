//! The program: arguments, then one command, then an exit status.

use std::io::{Write, stderr};
use std::process::ExitCode;

use clap::Parser;
use walsweep::cli::{Cli, Command};
use walsweep::commands::{self, Failure};
use walsweep::setup_commands;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // One thread does everything: `capture/pause.rs` says why that is the faster way.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&Failure::halted(format!("start the runtime: {error}"))),
    };
    let local = tokio::task::LocalSet::new();
    match local.block_on(&runtime, execute(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

async fn execute(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run { config, strict } => Box::pin(commands::run(&config.config, strict)).await,
        Command::Check { config, json } => commands::check(&config.config, json).await,
        Command::Setup { print: true, lease: true, .. } => commands::print_lease(),
        Command::Setup { config, lease: true, .. } => commands::load_lease(&config.config).await,
        Command::Setup { config, print, login, .. } => {
            Box::pin(setup_commands::setup(&config.config, print, login.as_deref())).await
        }
        Command::Teardown { config, lease: true, .. } => commands::drop_lease(&config.config).await,
        Command::Teardown { config, print, login, .. } => {
            setup_commands::teardown(&config.config, print, login.as_deref()).await
        }
        Command::Explain(arguments) => commands::explain(&arguments),
        Command::Sweep { config, patterns, dry_run } => {
            commands::sweep(&config.config, &patterns, dry_run).await
        }
        Command::Demo { keep } => commands::demo(keep).await,
        Command::Completions { shell } => commands::completions(shell),
        Command::Man => commands::man(),
    }
}

/// The one place where an error becomes text for a person. A closed standard error cannot be told.
fn report(failure: &Failure) -> ExitCode {
    drop(writeln!(stderr(), "{failure}"));
    failure.status.into()
}
