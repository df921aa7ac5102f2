//! Passfiles: which line counts, and which files are refused.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use secrecy::ExposeSecret;

use super::PassfileError;
use crate::postgres::Endpoint;

fn write(path: &Path, text: &str) {
    let mut file = fs::File::create(path).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn load(url: &str, passfile: &str) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pass");
    write(&path, passfile);
    let mut endpoint = Endpoint::parse(url).unwrap();
    endpoint.load_password_from(None, Some(path.into_os_string()), None).unwrap();
    endpoint.password.given().map(|password| password.expose_secret().to_owned())
}

#[test]
fn the_first_line_that_matches_gives_the_password() {
    let check = |url: &str, passfile: &str, expected: Option<&str>| {
        assert_eq!(load(url, passfile).as_deref(), expected, "{url} {passfile}");
    };
    check("postgres://u@h/d", "h:5432:d:u:one\nh:5432:d:u:two\n", Some("one"));
    check("postgres://u@h/d", "#h:5432:d:u:one\nx:5432:d:u:x\n*:*:*:u:two", Some("two"));
    check("postgres://u@h/d", "h:5433:d:u:p", None);
    check("postgres://u@h/d", "h:5432:e:u:p", None);
    check("postgres://u@h/d", "h:5432:d:v:p", None);
    check("postgres://u@h/d", "h:5432:d:u", None);
    check("postgres://u@h/d", "h:5432:d:u:", None);
    check("postgres://u@h/d", "h:5432:d:u:p\r\n", Some("p"));
    check("postgres://u@h/d", r"h:5432:d:u:a\:b\\c", Some(r"a:b\c"));
    check("postgres://u@h/d", "h:5432:d:u:a:b", Some("a"));
    check("postgres://u@h/%2A", r"h:5432:\*:u:p", Some("p"));
    check("postgres://u@h/d", r"h:5432:\*:u:p", None);
    check("postgres://u@[::1]/d", r"\:\:1:5432:d:u:p", Some("p"));
    check("postgres://u@%2Frun/d", "/run:5432:d:u:p", Some("p"));
    check("postgres://u@%2Frun/d", "localhost:5432:d:u:p", Some("p"));
    check("postgres://u@h/d", "localhost:5432:d:u:p", None);
    check("postgres://u:mine@h/d", "h:5432:d:u:theirs", Some("mine"));
}

#[test]
fn the_url_names_the_file_before_the_environment_and_the_home_folder() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["url", "environment", ".pgpass"] {
        write(&folder.path().join(name), &format!("*:*:*:*:{name}"));
    }
    let in_folder = |name: &str| folder.path().join(name);
    let load = |passfile: Option<&str>, environment: Option<&str>| {
        let mut endpoint = Endpoint::parse("postgres://u@h").unwrap();
        endpoint.passfile = passfile.map(in_folder);
        let environment = environment.map(|name| in_folder(name).into_os_string());
        endpoint.load_password_from(
            None,
            environment,
            Some(folder.path().as_os_str().to_owned()),
        )?;
        let found = endpoint.password.given().map(|text| text.expose_secret().to_owned());
        Ok::<_, PassfileError>(found)
    };
    assert_eq!(load(Some("url"), Some("environment")).unwrap().as_deref(), Some("url"));
    assert_eq!(load(None, Some("environment")).unwrap().as_deref(), Some("environment"));
    assert_eq!(load(None, None).unwrap().as_deref(), Some(".pgpass"));
    assert_eq!(load(None, Some("absent")).unwrap(), None);
    assert!(matches!(load(Some("absent"), None), Err(PassfileError::Read { .. })));
}

#[test]
fn a_chosen_file_that_others_may_read_is_refused_with_its_cure() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pass");
    write(&path, "*:*:*:*:p");
    for mode in [0o640, 0o604, 0o620] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let mut endpoint = Endpoint::parse("postgres://u@h").unwrap();
        let result = endpoint.load_password_from(None, Some(path.clone().into_os_string()), None);
        let error = result.unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{mode:o}: {error}");
        assert!(error.contains("`chmod 600 /"), "{mode:o}: {error}");
        assert!(!endpoint.password.is_some());
    }
}

#[test]
fn a_file_in_the_home_folder_that_cannot_be_used_is_remembered_and_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(".pgpass");
    write(&path, "*:*:*:*:p");
    let home = || Some(folder.path().as_os_str().to_owned());
    let load =
        |mut endpoint: Endpoint| endpoint.load_password_from(None, None, home()).map(|()| endpoint);
    let plain = || Endpoint::parse("postgres://u@h").unwrap();
    assert!(load(plain()).unwrap().ignored_passfile.is_none());

    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let endpoint = load(plain()).unwrap();
    assert!(!endpoint.password.is_some());
    let ignored = endpoint.ignored_passfile.unwrap();
    assert!(matches!(&*ignored, PassfileError::Permissions { path: seen, .. } if *seen == path));

    let named = Endpoint { passfile: Some(path), ..plain() };
    assert!(matches!(load(named), Err(PassfileError::Permissions { .. })));
}

/// A password goes to no other host than the one that its line names.
#[test]
fn each_of_several_hosts_has_its_own_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pass");
    write(&path, "a:1:d:u:of a\nb:2:d:u:of b\n");
    let passfile = format!("passfile={}", path.display());
    let endpoint = Endpoint::parse(&format!("postgres://u@a:1,b:2,c:3/d?{passfile}")).unwrap();
    let found = endpoint.each().map(|one| {
        let password = one.with_own_password().unwrap().password;
        password.given().map(|password| password.expose_secret().to_owned())
    });
    let expected = [Some("of a".to_owned()), Some("of b".to_owned()), None];
    assert_eq!(found.collect::<Vec<_>>(), expected);
}
