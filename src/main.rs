//! The program: arguments, then one command, then an exit status.

use std::io::{Write, stderr};
use std::panic::resume_unwind;
use std::process::ExitCode;

use clap::Parser;
use tokio::runtime::LocalOptions;
use tokio::task::spawn_local;
use walsweep::command::cli::{Cli, Command};
use walsweep::command::failure::Failure;
use walsweep::command::{
    check, coverage, demo, explain, lease, pages, probe, reload, run, setup, status, sweep,
    teardown, why,
};

fn main() -> ExitCode {
    // One that does not take it only holds more memory.
    walsweep_heap::return_large_blocks();
    let cli = Cli::parse();
    // One thread does everything: `capture/pause.rs` says why that is the faster way.
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = match builder.enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => return report(&Failure::halted(format!("start the runtime: {error}"))),
    };
    // A task like the others: the runtime would poll the future of `block_on` with all that is in
    // it whenever one of them wakes.
    let outcome = runtime.block_on(async { spawn_local(execute(cli)).await });
    // Not to wait for a resolver that does not answer: it has a thread of its own for that, and may
    // take tens of seconds.
    runtime.shutdown_background();
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => report(&failure),
        Err(error) => resume_unwind(error.into_panic()),
    }
}

async fn execute(Cli { config, command }: Cli) -> Result<(), Failure> {
    match command {
        Command::Run { strict, verbose } => Box::pin(run::run(&config, strict, verbose)).await,
        Command::Check { json } => check::check(&config, json).await,
        Command::Setup { print: true, lease: true, .. } => lease::print_lease(),
        Command::Setup { lease: true, .. } => lease::load_lease(&config).await,
        Command::Setup { print, login, .. } => {
            Box::pin(setup::setup(&config, print, login.as_deref())).await
        }
        Command::Teardown { lease: true, .. } => lease::drop_lease(&config).await,
        Command::Teardown { print, login, .. } => {
            teardown::teardown(&config, print, login.as_deref()).await
        }
        Command::Explain(arguments) => explain::command::explain(&config, &arguments).await,
        Command::Sweep { patterns, dry_run, force, target } => {
            let target = target.as_deref();
            sweep::sweep(&config, &patterns, (dry_run, force), target).await
        }
        Command::Coverage { json } => coverage::coverage(&config, json).await,
        Command::Probe { timeout, json } => Box::pin(probe::probe(&config, timeout, json)).await,
        Command::Reload { pid } => reload::reload(&config, pid).await,
        Command::Status(asked) => status::status(&config, asked).await,
        Command::Why { key, json } => why::why(&config, &key, json).await,
        Command::Demo { keep } => demo::demo(keep).await,
        Command::Completions { shell } => pages::completions(shell),
        Command::Man(arguments) => pages::man(&arguments),
    }
}

/// The one place where an error becomes text for a person. A closed standard error cannot be told.
fn report(failure: &Failure) -> ExitCode {
    if !failure.is_said {
        drop(writeln!(stderr(), "{failure}"));
    }
    failure.status.into()
}
