//! Reloads under load: another configuration, the same one, an invalid one, one that is written
//! while it is read.

use std::path::Path;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::sleep;

use crate::World;
use crate::application::Shown;
use crate::faults::Planned;
use crate::servers::page;
use crate::support::text;

/// Stands before what a fault adds to the configuration.
const MARK: &str = "# added by a fault\n";

/// A rule that nothing in the cache is of: what is swept for it is empty.
const RULE: &str = "[[rule]]\nname = \"more\"\ntable = \"public.item\"\nkeys = [\"more:{id}\"]\n";

/// The rule `item` once more, with one of its templates: nothing is newly covered.
const TWIN: &str = "[[rule]]\nname = \"twin\"\ntable = \"public.item\"\nkeys = [\"item:{id}\"]\n";

/// Something that is added to the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Added {
    /// Nothing, and the first configuration is back.
    Nothing,
    Rule,
    Twin,
    /// Both, in another order: rules have other numbers then.
    Both,
    Comment,
    /// Something that is no configuration.
    Fault,
}

impl Added {
    const ALL: [Added; 6] =
        [Added::Rule, Added::Nothing, Added::Twin, Added::Both, Added::Comment, Added::Fault];

    fn text(self, before: &str) -> String {
        match self {
            Added::Nothing => before.to_owned(),
            Added::Rule => format!("{before}\n{MARK}{RULE}"),
            Added::Twin => format!("{before}\n{MARK}{TWIN}"),
            Added::Both => {
                let (head, rules) = before.split_once("[[rule]]").expect("there are rules");
                // The mark is behind what goes to the front, so that only that is cut out again.
                format!("{head}{MARK}{TWIN}{RULE}{MARK}[[rule]]{rules}")
            }
            Added::Comment => format!("{before}\n{MARK}# nothing else\n"),
            Added::Fault => format!("{before}\n{MARK}[[rule]]\nname = 7\n"),
        }
    }
}

/// The configuration as it was before any fault.
fn first(text: &str) -> String {
    let parts: Vec<&str> = text.split(MARK).collect();
    match parts.as_slice() {
        [head, _added, tail] => format!("{head}{tail}"),
        [head, ..] => head.trim_end().to_owned() + "\n",
        [] => String::new(),
    }
}

/// Reloads some times, in turn.
pub(crate) async fn reload(world: &World, planned: Planned) -> Shown {
    let file = world.invalidator.variable("CONFIG").to_owned();
    let from = usize::try_from(planned.choice).unwrap();
    for number in from..from + 4 {
        let added = Added::ALL[number % Added::ALL.len()];
        let before = page(world.servers.http_port, "/metrics").await.unwrap_or_default();
        write(Path::new(&file), added, number).await;
        let mut command = Command::new(env!("CARGO_BIN_EXE_walsweep"));
        let output = command.args(["reload", "--config", &file]).output().await.unwrap();
        let (status, said) = (output.status.code(), text(&output));
        world.count(&format!("(reloads with status {})", status.unwrap_or(-1)));
        if said.contains("ended before the reload did") {
            return Err(said);
        }
        let expected = if added == Added::Fault { 78 } else { 0 };
        if world.only_reloads {
            if status != Some(expected) {
                return Err(format!("{added:?} came to {status:?}: {said}"));
            }
            is_swept(world, &before, &said).await?;
        }
        sleep(planned.lasts / 8).await;
    }
    // Whatever comes next begins with a configuration that is one.
    write(Path::new(&file), Added::Nothing, 1).await;
    Ok(())
}

/// Writes the file: mostly by putting another in its place, now and then within it and in two
/// parts, the first of which may be a configuration by itself.
async fn write(file: &Path, added: Added, number: usize) {
    let text = added.text(&first(&std::fs::read_to_string(file).unwrap()));
    if number.is_multiple_of(5) {
        let half = text.rfind("[[rule]]").unwrap_or_default();
        std::fs::write(file, &text[..half]).unwrap();
        let (file, text) = (file.to_owned(), text.clone());
        tokio::spawn(async move {
            sleep(Duration::from_millis(30)).await;
            std::fs::write(file, text).unwrap();
        });
        // The command reads it, too, and is no part of what is tested here.
        sleep(Duration::from_millis(40)).await;
        return;
    }
    let new = file.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, file).unwrap();
}

/// Fails if more is swept than the reload brought: a rule that is new, or nothing.
async fn is_swept(world: &World, before: &str, said: &str) -> Shown {
    let is_new = said.contains("rule `more` added");
    let resyncs = |page: &str| -> u64 {
        let lines = page.lines().filter(|line| line.starts_with("walsweep_resyncs_total{"));
        let counts = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
        counts.sum()
    };
    // A session that begins tells of a sweep before it is ready.
    while !world.servers.is_ready().await {
        sleep(Duration::from_millis(10)).await;
    }
    let after = page(world.servers.http_port, "/metrics").await.unwrap_or_default();
    let (before, after) = (resyncs(before), resyncs(&after));
    if after == before + u64::from(is_new) {
        return Ok(());
    }
    Err(format!("{} sweeps for: {said}", after - before))
}
