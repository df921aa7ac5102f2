//! The configurations and the questions of the documents: each is one that walsweep takes, and is
//! answered as it stands there.

use std::fs;
use std::process::Command;

use walsweep::command::load::judge;

use super::root;

/// A fenced block of a document.
struct Block {
    /// The document, and the line that the block begins at.
    at: String,
    /// The language behind the fence.
    language: String,
    text: String,
}

/// All blocks of a document, also those that are indented.
fn blocks(name: &str, document: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut indent: Option<usize> = None;
    for (line, number) in document.lines().zip(1..) {
        let content = line.trim_start();
        match (content.strip_prefix("```"), indent) {
            (Some(language), None) => {
                indent = Some(line.len() - content.len());
                let (at, language) = (format!("{name}:{number}"), language.to_owned());
                blocks.push(Block { at, language, text: String::new() });
            }
            (Some(_), Some(_)) => indent = None,
            (None, Some(indent)) => {
                let block = blocks.last_mut().unwrap();
                block.text.push_str(line.get(indent..).unwrap_or_default());
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks
}

/// README and all pages beside it.
fn documents() -> Vec<(String, String)> {
    let mut names = vec!["README.md".to_owned()];
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        names.extend(Some(format!("docs/{name}")).filter(|name| name.ends_with(".md")));
    }
    names.sort();
    let read = |name: String| {
        let text = fs::read_to_string(root().join(&name)).unwrap();
        (name, text)
    };
    names.into_iter().map(read).collect()
}

/// A whole configuration of a part of one: where the servers are, and a rule that uses its lookups.
fn whole(part: &str) -> Result<String, String> {
    let mut config: toml::Table = part.parse().map_err(|error| format!("{error}"))?;
    let set = |section: &mut toml::Value, value: &str| {
        let section = section.as_table_mut().unwrap();
        section.entry("url").or_insert_with(|| toml::Value::String(value.to_owned()));
    };
    let empty = || toml::Value::Table(toml::Table::new());
    set(config.entry("postgres").or_insert_with(empty), "postgres://walsweep@127.0.0.1/app");
    match config.entry("redis").or_insert_with(empty) {
        toml::Value::Array(several) => {
            several.iter_mut().for_each(|one| set(one, "redis://127.0.0.1/0"));
        }
        one => set(one, "redis://127.0.0.1/0"),
    }
    let text = toml::to_string(&config).map_err(|error| error.to_string())?;
    let has_rule = config.contains_key("rule");
    // A target may ask for rules by their names.
    let rule = "\n[[rule]]\nname = \"user-any\"\ntable = \"any\"\nkeys = [\"any:{id}\"]\n";
    Ok(if has_rule { text } else { text + rule })
}

/// The problems of a part of a configuration; files that only its reader has are none.
fn problems(part: &str) -> Vec<String> {
    let text = match whole(part) {
        Ok(text) => text,
        Err(error) => return vec![error],
    };
    let variable = |name: &str| Some(format!("/{name}"));
    match judge(&text, &variable) {
        Ok(_) => Vec::new(),
        Err(problems) => {
            let problems = problems.iter().map(ToString::to_string);
            problems.filter(|problem| !problem.contains("No such file or directory")).collect()
        }
    }
}

#[test]
fn every_configuration_in_the_documents_is_one_that_walsweep_takes() {
    let mut count = 0;
    for (name, text) in documents() {
        for block in blocks(&name, &text).iter().filter(|block| block.language == "toml") {
            let problems = problems(&block.text);
            assert!(problems.is_empty(), "{}: {problems:#?}", block.at);
            count += 1;
        }
    }
    assert!(count > 20, "{count} configurations");
    assert!(problems("[sweep]\nindex = true\n").is_empty());
    for bad in ["[sweep]\nindices = true\n", "[[rule]]\nname = \"x\"\n", "[sweep\n"] {
        assert!(!problems(bad).is_empty(), "{bad}");
    }
}

/// Asks a `walsweep explain …` of a document of the configuration before it.
fn explained(config: &str, question: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    // As it stands there, if it is whole: answers name its lines.
    let is_whole = judge(config, &|_| None).is_ok();
    let text = if is_whole { config.to_owned() } else { whole(config).unwrap() };
    fs::write(folder.path().join("config.toml"), text).unwrap();
    for name in ["pg.password", "redis.password"] {
        fs::write(folder.path().join(name), "secret").unwrap();
    }
    let script = format!("{} {question}", env!("CARGO_BIN_EXE_walsweep"));
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).current_dir(&folder).env_remove("WALSWEEP_CONFIG");
    let output = shell.output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{question}: {said}");
    said
}

/// Lines that stand below a question and are not what walsweep answers, and how many questions
/// there were. They are about the configuration before them.
fn wrong_answers(name: &str, document: &str) -> (Vec<String>, usize) {
    let (mut config, mut wrong, mut count) = (String::new(), Vec::new(), 0);
    for block in blocks(name, document) {
        if block.language == "toml" {
            config = block.text;
            continue;
        }
        let text = block.text.replace("\\\n", " ");
        let mut said = String::new();
        let mut is_asked = false;
        for line in text.lines() {
            if let Some(command) = line.strip_prefix("$ walsweep ") {
                is_asked = command.starts_with("explain ");
                if is_asked {
                    said = explained(&config, command);
                    count += 1;
                }
            } else if is_asked && !line.is_empty() {
                let is_said = said.lines().any(|answer| answer.trim() == line.trim());
                let answer = || format!("{}: `{line}` is not in\n{said}", block.at);
                wrong.extend((!is_said).then(answer));
            }
        }
    }
    (wrong, count)
}

#[test]
fn every_question_is_answered_as_it_stands_there() {
    for (name, least) in [("docs/recipes.md", 10), ("docs/quickstart.md", 1)] {
        let (wrong, count) = wrong_answers(name, &fs::read_to_string(root().join(name)).unwrap());
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert!(count >= least, "{name}: {count} questions");
    }
    let page = "```toml\n[[rule]]\nname = \"a\"\ntable = \"a\"\nkeys = [\"a:{id}\"]\n```\n\
                ```console\n$ walsweep explain a --op insert --new '{\"id\": 1}' \\\n    \
                --offline\nKEY\n```\n";
    let right = page.replace("KEY", "key      a:1  from `a:{id}`");
    assert_eq!(wrong_answers("x", &right), (Vec::new(), 1));
    assert_eq!(wrong_answers("x", page).0.len(), 1);
}
