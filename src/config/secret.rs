//! `password_file` and `password_command`: a secret that does not stand in the configuration.

use std::io::ErrorKind;
use std::sync::Arc;

use super::Located;
use super::reader::{Reader, Section};
use crate::password::{self, Command, Source};

/// The password of a section, as far as its URL has none.
pub(super) struct Secret {
    /// Where it comes from, and where that stands.
    pub(super) source: Option<Located<Source>>,
    /// Whether it is meant to be there and cannot be used, of which is told already.
    pub(super) is_wrong: bool,
}

/// Reads `password_file`, which has to be readable now, and `password_command`, of which one is
/// enough.
pub(super) fn secret(reader: &mut Reader<'_>, section: &mut Section<'_, '_>) -> Secret {
    let before = reader.problems.len();
    let file = password_file(reader, section);
    let command = password_command(reader, section);
    if let (Some(_), Some(command)) = (&file, &command) {
        let message = format!("`{}` is there, too", section.key("password_file"));
        reader.problem(command.at.clone(), message, Some("keep one of the two"));
    }
    Secret { is_wrong: reader.problems.len() > before, source: file.or(command) }
}

/// `password_file`, which can be read now.
fn password_file(
    reader: &mut Reader<'_>,
    section: &mut Section<'_, '_>,
) -> Option<Located<Source>> {
    let text = reader.filled_text(section, "password_file")?;
    let path = reader.beside(&text.value);
    match password::read(&path) {
        Ok(_) => Some(Located { value: Source::File(path), at: text.at }),
        Err(error) => {
            let message = format!("read `{}`: {error}", path.display());
            reader.problem(text.at, message, Some(without_password(error.kind())));
            None
        }
    }
}

/// Gives advice on what to do about a file that gives no password.
fn without_password(why: ErrorKind) -> &'static str {
    match why {
        ErrorKind::NotFound => {
            "write the password, and nothing else, into a file of this name, and `chmod 600` it; \
             a path that does not begin with `/` begins at the folder of this configuration"
        }
        ErrorKind::PermissionDenied => "let the user read it that walsweep runs as",
        _ => "name a file that holds the password, and nothing else",
    }
}

/// `password_command`: a program and its arguments. It is run at the logins alone, not now: a
/// service that gives tokens may be away for a while. Of a program that a path names it is seen
/// whether there is one.
fn password_command(
    reader: &mut Reader<'_>,
    section: &mut Section<'_, '_>,
) -> Option<Located<Source>> {
    let name = "password_command";
    let at = reader.location(section.take(name)?.span().start, &section.key(name));
    let words = reader.texts(section, name)?;
    let (program, arguments) = words.split_first()?;
    if program.value.is_empty() {
        let hint = "begin with a program: [\"/usr/local/bin/token\", \"argument\"]";
        reader.problem(program.at.clone(), "names no program".to_owned(), Some(hint));
        return None;
    }
    let mut path = program.value.clone();
    if path.contains('/') {
        let file = reader.beside(&path);
        if let Err(error) = std::fs::metadata(&file) {
            let message = format!("find `{}`: {error}", file.display());
            let hint = "a path that does not begin with `/` begins at the folder of this \
                        configuration; a name without `/` is looked for in PATH";
            reader.problem(program.at.clone(), message, Some(hint));
        }
        path = file.to_string_lossy().into_owned();
    }
    let arguments = arguments.iter().map(|argument| argument.value.clone()).collect();
    Some(Located { value: Source::Command(Arc::new(Command::new(path, arguments))), at })
}
