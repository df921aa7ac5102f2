//! A password in a file, such as a mounted secret: read again at each login, so that one that is
//! changed there needs no restart.

use std::io;
use std::path::Path;

use secrecy::SecretString;

/// The content of a file that holds a password and nothing else, without the newline at its end.
///
/// # Errors
///
/// The file cannot be read, is empty, or is not UTF-8. No error quotes what is in it.
pub fn read(path: &Path) -> io::Result<SecretString> {
    let content = std::fs::read_to_string(path)?;
    match content.trim_end_matches(['\r', '\n']) {
        "" => Err(io::Error::other("the file is empty")),
        password => Ok(SecretString::from(password)),
    }
}
