//! `[redis]`, or several `[[redis]]`: the targets, and which rules' keys go to which.

use std::collections::BTreeSet;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeValue;
use wildmatch::WildMatch;

use super::reader::{Reader, Section, nearest};
use super::redis_mode::{Mode, Options, is_same_place};
use super::redis_url::split_password;
use super::secret::{Secret, secret};
use super::{Located, Redis, Rule, TargetId, Targets};
use crate::file;
use crate::password::Source;

/// The name of a target that has none: it is the only one.
pub(super) const NAME: &str = "redis";

/// A target's section.
pub(super) struct OfTarget {
    /// The target, if nothing that it needs is wrong.
    pub(super) redis: Option<Redis>,
    /// Names and globs of the rules whose keys go there; `None` for all.
    rules: Option<Vec<Located<String>>>,
}

/// The targets, in the order of the file.
pub(super) fn targets(reader: &mut Reader<'_>, root: &mut Section<'_, '_>) -> Vec<OfTarget> {
    let Some(list) = root.take("redis").filter(|value| value.get_ref().is_array()) else {
        let mut section = reader.section(root, "redis");
        return vec![target(reader, &mut section, (TargetId::FIRST, true))];
    };
    let mut sections = sections(reader, list);
    let is_alone = sections.len() == 1;
    let of_each = TargetId::first(sections.len()).zip(&mut sections);
    let mut targets: Vec<OfTarget> =
        of_each.map(|(id, section)| target(reader, section, (id, is_alone))).collect();
    told_apart(reader, &sections, &targets);
    let redis = || targets.iter().filter_map(|target| target.redis.as_ref());
    let prefixes: Vec<String> = redis().map(|redis| redis.prefix.clone()).collect();
    for redis in targets.iter_mut().filter_map(|target| target.redis.as_mut()) {
        redis.prefixes.clone_from(&prefixes);
    }
    targets
}

/// The tables of `[[redis]]`.
fn sections<'t, 'i>(
    reader: &mut Reader<'_>,
    list: &'t Spanned<DeValue<'i>>,
) -> Vec<Section<'t, 'i>> {
    let items = list.get_ref().as_array().into_iter().flatten().enumerate();
    let mut sections = Vec::new();
    for (index, item) in items {
        let path = format!("redis.{index}");
        match item.get_ref().as_table() {
            Some(table) => sections.push(Section::new(table, item.span(), path)),
            None => reader.wrong_type(item, &path, "a table"),
        }
    }
    if sections.is_empty() {
        let at = reader.location(list.span().start, "redis");
        reader.problem(at, "there is no redis".to_owned(), Some("write one `[redis]`"));
    }
    if let Some(section) = sections.get(Targets::COUNT_MAX) {
        let at = reader.location(section.start(), "redis");
        let message = format!("there are more than {} targets", Targets::COUNT_MAX);
        let hint = "run another walsweep, with a slot of its own, for the others";
        reader.problem(at, message, Some(hint));
        sections.truncate(Targets::COUNT_MAX);
    }
    sections
}

/// Each target has a name and a place of its own.
fn told_apart(reader: &mut Reader<'_>, sections: &[Section<'_, '_>], targets: &[OfTarget]) {
    let (mut names, mut others) = (BTreeSet::new(), Vec::new());
    for (section, target) in sections.iter().zip(targets) {
        let Some(redis) = &target.redis else { continue };
        if !names.insert(&redis.name) {
            let at = reader.location(section.start(), &section.key("name"));
            let message = format!("another target is called `{}`", redis.name);
            reader.problem(at, message, Some("give each its own name: it is a label of metrics"));
        }
        let is_there = others.iter().any(|other: &&Redis| is_same_place(redis, other));
        others.push(redis);
        if is_there {
            let at = reader.location(section.start(), &section.key("url"));
            let message = "another target has this database and `prefix`".to_owned();
            let hint = "keep one of them, with the `rules` of both: each keeps a note of its own \
                        there, under the same name";
            reader.problem(at, message, Some(hint));
        }
    }
}

fn target(
    reader: &mut Reader<'_>,
    section: &mut Section<'_, '_>,
    (id, is_alone): (TargetId, bool),
) -> OfTarget {
    let name = name(reader, section, is_alone);
    let rules = reader.filled_texts(section, "rules", "leave it out for every rule");
    let prefix = reader.text(section, "prefix");
    let wait_replicas = reader.count(section, "wait_replicas");
    let publish = reader.filled_text(section, "publish").map(|channel| channel.value);
    let server = server(reader, section);
    let is_cluster = server.as_ref().is_some_and(|one| matches!(one.mode, Mode::Cluster { .. }));
    if let Some(prefix) = prefix.as_ref().filter(|one| is_cluster && one.value.contains('{')) {
        let message = "has a `{`, which would begin a hash tag: in a cluster all keys would have \
                       one slot, and each primary needs a key of walsweep's";
        let hint = "leave braces out of `prefix`, and write them in the `keys` of the rules";
        reader.problem(prefix.at.clone(), message.to_owned(), Some(hint));
    }
    let prefix = prefix.map(|prefix| prefix.value).unwrap_or_default();
    reader.finish(section);
    let redis = server.map(|server| Redis {
        id,
        name,
        is_alone,
        prefixes: vec![prefix.clone()],
        prefix,
        mode: server.mode,
        url: server.url,
        password: server.password,
        ca_file: server.ca_file,
        client_certificate: server.client_certificate,
        wait_replicas,
        publish,
    });
    OfTarget { redis, rules }
}

/// `name`, which only one alone may leave out.
fn name(reader: &mut Reader<'_>, section: &mut Section<'_, '_>, is_alone: bool) -> String {
    let hint = "give each of several `[[redis]]` a name: it is a label of metrics";
    let name = match is_alone {
        true => reader.text(section, "name"),
        false => reader.required_text(section, "name", hint),
    };
    let Some(name) = name else { return NAME.to_owned() };
    let is_label =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
    if !(1..=64).contains(&name.value.len()) || !name.value.bytes().all(is_label) {
        let message = format!("`{}` is not a name of a target", name.value);
        let hint = "use 1 to 64 of `a` to `z`, digits, `_` and `-`";
        reader.problem(name.at, message, Some(hint));
    }
    name.value
}

/// Where a target is, and how it is logged into.
struct Server {
    mode: Mode,
    url: String,
    password: Source,
    ca_file: Option<PathBuf>,
    client_certificate: Option<(PathBuf, PathBuf)>,
}

fn server(reader: &mut Reader<'_>, section: &mut Section<'_, '_>) -> Option<Server> {
    let options = Options::read(reader, section);
    let url = reader.required_text(section, "url", options.url_hint());
    let Secret { source, is_wrong } = secret(reader, section);
    let ca_file = reader.filled_text(section, "ca_file");
    if let Some(path) = &ca_file
        && let Err(error) = file::read(&reader.beside(&path.value), file::CERTIFICATES_MAX)
    {
        let message = format!("read `{}`: {error}", reader.beside(&path.value).display());
        let hint = Some("name a PEM file of certificate authorities");
        reader.problem(path.at.clone(), message, hint);
    }
    let client_certificate = client_certificate(reader, section);
    let url = url?;
    let (plain, url_password) = match split_password(&url.value) {
        Ok(parts) => parts,
        Err(error) => {
            reader.problem(url.at, error.to_string(), Some(options.url_hint()));
            return None;
        }
    };
    options.hold(reader, &url, &plain);
    if let (Some(source), Some(_)) = (&source, &url_password) {
        let message = format!("`{}` has a password, too", url.at.key);
        reader.problem(source.at.clone(), message, Some("keep one of the two"));
    }
    let certificate = client_certificate.as_ref().map(|(certificate, _)| certificate);
    for file in ca_file.iter().chain(certificate).filter(|_| !options.asks_for_tls(&plain)) {
        let message = format!("`{}` does not ask for TLS", url.at.key);
        reader.problem(file.at.clone(), message, Some("write `rediss://`, or leave this out"));
    }
    // The client library would go on as the default user.
    let has_user =
        !plain.username().is_empty() || plain.query_pairs().any(|(one, _)| one == "user");
    if has_user && url_password.is_none() && source.is_none() && !is_wrong {
        let message = "names a user and no password".to_owned();
        let hint = "a password alone is written `redis://:password@host`; `password_file` names a \
                    file with it, `password_command` a program that prints it";
        reader.problem(url.at, message, Some(hint));
    }
    Some(Server {
        mode: options.mode(&plain),
        url: plain.to_string(),
        password: match source {
            Some(source) => source.value,
            None => url_password.map_or(Source::None, Source::Given),
        },
        ca_file: ca_file.map(|path| reader.beside(&path.value)),
        client_certificate: client_certificate
            .map(|(one, key)| (reader.beside(&one.value), reader.beside(&key.value))),
    })
}

/// `cert_file` and `key_file`, which go together.
fn client_certificate(
    reader: &mut Reader<'_>,
    section: &mut Section<'_, '_>,
) -> Option<(Located<String>, Located<String>)> {
    let files = ["cert_file", "key_file"].map(|key| reader.filled_text(section, key));
    for file in files.iter().flatten() {
        let path = reader.beside(&file.value);
        if let Err(error) = file::read(&path, file::CERTIFICATES_MAX) {
            let message = format!("read `{}`: {error}", path.display());
            reader.problem(file.at.clone(), message, Some("name a PEM file"));
        }
    }
    match files {
        [Some(certificate), Some(key)] => Some((certificate, key)),
        [Some(file), None] | [None, Some(file)] => {
            let hint = "give `cert_file` and `key_file`, or neither";
            reader.problem(file.at, "one goes with the other".to_owned(), Some(hint));
            None
        }
        [None, None] => None,
    }
}

/// Lets the keys of each rule go to the targets whose `rules` name it.
pub(super) fn assign(reader: &mut Reader<'_>, targets: &[OfTarget], rules: &mut [Rule]) {
    if rules.is_empty() {
        return;
    }
    for (id, target) in TargetId::first(targets.len()).zip(targets) {
        let Some(globs) = &target.rules else {
            rules.iter_mut().for_each(|rule| rule.targets = rule.targets.with(id));
            continue;
        };
        for glob in globs {
            let (matches, mut is_used) = (WildMatch::new(&glob.value), false);
            for rule in rules.iter_mut().filter(|rule| matches.matches(&rule.name)) {
                rule.targets = rule.targets.with(id);
                is_used = true;
            }
            if !is_used {
                let message = format!("no rule is called `{}`", glob.value);
                let names = rules.iter().map(|rule| rule.name.as_str());
                let hint = match nearest(&glob.value, names) {
                    Some(name) => format!("did you mean `{name}`?"),
                    None => "name a rule of this file; `*` stands for any letters, `?` for one"
                        .to_owned(),
                };
                reader.problem(glob.at.clone(), message, Some(&hint));
            }
        }
    }
    for rule in rules.iter().filter(|rule| rule.targets == Targets::NONE) {
        let message = format!("the keys of rule `{}` go to no redis", rule.name);
        let hint = "name the rule in the `rules` of one";
        reader.problem(rule.at.clone(), message, Some(hint));
    }
}
