//! Commands as they are run, against real processes, and files with passwords.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{getpid, set_child_subreaper};
use secrecy::{ExposeSecret, SecretString};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::{COMMAND_TIMEOUT, Command, Failure, Source, Unread, read};

/// A command of the shell.
fn shell(script: &str) -> Source {
    let arguments = ["-c", script, "s3cret-argument"].map(str::to_owned).to_vec();
    Source::Command(Arc::new(Command::new("sh".to_owned(), arguments)))
}

/// The password that a source gives, or why it gives none, which is checked to quote nothing.
async fn given(source: &Source) -> Result<String, Failure> {
    match source.read().await {
        Ok(password) => Ok(password.unwrap().expose_secret().to_owned()),
        Err(error) => {
            let said = format!("{error} {error:?} {source:?} {}", error.told("postgres"));
            assert!(!said.contains("s3cret"), "{said}");
            let Unread::Command(failure) = error else { panic!("{said}") };
            Err(failure)
        }
    }
}

/// The processes of a group, zombies among them.
fn of_group(group: &str) -> Vec<String> {
    let folders = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let stats = folders.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    // "pid (name) state parent group …"
    let is_of = |stat: &String| {
        let rest = stat.rsplit(')').next().unwrap_or_default();
        rest.split_whitespace().nth(2) == Some(group)
    };
    stats.filter(is_of).collect()
}

/// Waits until a script has written its number, which is its group's.
async fn number(file: &Path) -> String {
    loop {
        match fs::read_to_string(file) {
            Ok(text) if text.ends_with('\n') => return text.trim().to_owned(),
            _ => sleep(Duration::from_millis(5)).await,
        }
    }
}

#[tokio::test]
async fn a_command_gives_what_it_prints_without_the_newline_at_the_end() {
    for (script, password) in [
        ("echo s3cret", "s3cret"),
        ("printf s3cret", "s3cret"),
        ("printf ' s3 cret \\r\\n'", " s3 cret "),
        ("echo s3cret-noise >&2; echo word", "word"),
        ("cat; echo no-input", "no-input"),
        ("head -c 65536 /dev/zero | tr '\\0' x", &"x".repeat(65536)),
    ] {
        assert_eq!(given(&shell(script)).await.as_deref(), Ok(password), "{script}");
    }
}

/// An argument is a text, whatever it holds.
#[tokio::test]
async fn no_shell_reads_a_command() {
    let arguments = ["$HOME; `id` *", "two"].map(str::to_owned).to_vec();
    let source = Source::Command(Arc::new(Command::new("echo".to_owned(), arguments)));
    assert_eq!(given(&source).await.as_deref(), Ok("$HOME; `id` * two"));
}

#[tokio::test]
async fn a_command_that_gives_no_password_says_why_and_never_what_it_printed() {
    for (script, said, needs_a_person) in [
        ("echo s3cret; exit 3", "`sh` failed with exit status 3", false),
        ("echo s3cret; kill -9 $$", "`sh` failed with signal 9 (SIGKILL)", false),
        ("echo", "`sh` printed nothing", false),
        ("echo s3cret >&2", "`sh` printed nothing", false),
        ("printf 's3cret\\377'", "`sh` printed what is not UTF-8", true),
        ("printf 's3cret\\0x'", "`sh` printed a NUL byte", true),
        ("head -c 65537 /dev/zero | tr '\\0' x", "`sh` printed more than 64 KiB", true),
        ("yes s3cret", "`sh` printed more than 64 KiB", true),
    ] {
        let failure = given(&shell(script)).await.unwrap_err();
        assert_eq!(failure.to_string(), said, "{script}");
        assert_eq!(failure.needs_a_person(), needs_a_person, "{script}");
        assert!(failure.hint().contains("by hand"), "{script}");
    }
    let none = Command::new("walsweep-no-such-program".to_owned(), Vec::new());
    let failure = given(&Source::Command(Arc::new(none))).await.unwrap_err();
    assert!(failure.to_string().starts_with("`walsweep-no-such-program` does not start"));
    assert!(failure.needs_a_person() && failure.hint().contains("PATH"), "{failure}");
    let folder = TempDir::new().unwrap();
    let program = folder.path().join("program");
    fs::write(&program, "no program").unwrap();
    let barred = Command::new(program.to_str().unwrap().to_owned(), Vec::new());
    let failure = given(&Source::Command(Arc::new(barred))).await.unwrap_err();
    assert!(failure.needs_a_person() && failure.hint().contains("execute"), "{failure}");
}

/// Waits until nothing is left of a group, not even a zombie.
async fn assert_gone(group: &str) {
    let gone = async {
        while !of_group(group).is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = timeout(Duration::from_secs(5), gone).await;
    assert!(waited.is_ok(), "{:?}", of_group(group));
}

/// It ends with all that it started, and no zombie is left, also where walsweep is the first
/// process of a container and so the parent of what lost its own.
#[tokio::test]
async fn a_command_that_hangs_or_leaves_its_output_open_is_ended_whole() {
    set_child_subreaper(Some(getpid())).unwrap();
    let folder = TempDir::new().unwrap();
    let ends = async |name: &str, rest: &str| {
        let file = folder.path().join(name);
        let source = shell(&format!("echo $$ >{}; {rest}", file.display()));
        let began = Instant::now();
        let failure = given(&source).await.unwrap_err();
        assert!(matches!(failure, Failure::Timeout { .. }), "{name}: {failure}");
        assert!(failure.to_string().contains("within 10 s"), "{failure}");
        assert!(!failure.needs_a_person());
        let took = began.elapsed();
        assert!(took >= COMMAND_TIMEOUT && took < COMMAND_TIMEOUT * 2, "{name}: {took:?}");
        assert_gone(&number(&file).await).await;
    };
    tokio::join!(
        ends("hangs", "sleep 1000; echo late"),
        ends("leaves", "echo s3cret; sleep 1000 & sleep 1001 & exit 0"),
        ends("ignores", "trap '' TERM INT HUP; sleep 1000 & wait; sleep 1000"),
    );
}

/// As one that goes on in the background, which some programs begin.
#[tokio::test]
async fn a_command_that_ends_takes_along_what_it_started() {
    set_child_subreaper(Some(getpid())).unwrap();
    let folder = TempDir::new().unwrap();
    for (name, end, is_well) in [("well", "echo s3cret", true), ("failing", "exit 3", false)] {
        let file = folder.path().join(name);
        let children = "sleep 1000 >/dev/null 2>&1 & sleep 0 >/dev/null 2>&1 &";
        let source = shell(&format!("echo $$ >{}; {children} {end}", file.display()));
        assert_eq!(given(&source).await.is_ok(), is_well, "{name}");
        assert_gone(&number(&file).await).await;
    }
}

#[tokio::test]
async fn a_command_is_ended_when_nobody_waits_for_it() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("number");
    let source = shell(&format!("echo $$ >{}; sleep 1000", file.display()));
    let wait = || {
        let source = source.clone();
        tokio::spawn(async move { source.read().await })
    };
    let waiting = wait();
    let group = number(&file).await;
    assert!(!of_group(&group).is_empty(), "it runs");
    waiting.abort();
    assert_gone(&group).await;
    // The next login is not told of the run that was given up.
    fs::remove_file(&file).unwrap();
    let again = wait();
    let another = number(&file).await;
    again.abort();
    assert_gone(&another).await;
}

/// A file with a line for each run, and a command that writes them, waits, and prints the number.
fn counting(folder: &TempDir, pause: &str) -> Source {
    let file = folder.path().join("runs");
    let file = file.display();
    shell(&format!("echo run >>{file}; n=$(wc -l <{file}); : >{file}.$n; sleep {pause}; echo $n"))
}

#[tokio::test]
async fn logins_share_a_run_while_it_lasts_and_nothing_is_kept_after_it() {
    let folder = TempDir::new().unwrap();
    let source = counting(&folder, "0.5");
    let mut logins = JoinSet::new();
    for _ in 0..8 {
        let source = source.clone();
        logins.spawn(async move { given(&source).await });
    }
    let told: Vec<_> = logins.join_all().await;
    assert_eq!(told, vec![Ok("1".to_owned()); 8]);
    assert_eq!(
        given(&source).await.as_deref(),
        Ok("2"),
        "each login after it has a run of its own"
    );
    assert_eq!(given(&source).await.as_deref(), Ok("3"));
}

/// A run that began before a refusal may print the password that was refused.
#[tokio::test]
async fn a_login_that_was_refused_gets_no_password_of_an_earlier_run() {
    let folder = TempDir::new().unwrap();
    let source = counting(&folder, "0.5");
    let earlier = tokio::spawn({
        let source = source.clone();
        async move { given(&source).await }
    });
    while !folder.path().join("runs.1").exists() {
        sleep(Duration::from_millis(5)).await;
    }
    let refused = Instant::now();
    let old = SecretString::from("0");
    let again = source.read_again(Some(&old), refused);
    let other = source.read_again(Some(&old), refused);
    let (again, other) = tokio::join!(again, other);
    assert_eq!(again.unwrap().expose_secret(), "2");
    assert_eq!(other.unwrap().expose_secret(), "2", "both began after the refusal");
    assert_eq!(earlier.await.unwrap().as_deref(), Ok("1"), "it goes on for who waits for it");
}

#[tokio::test]
async fn the_same_password_is_not_tried_again() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, "s3cret\n").unwrap();
    let old = SecretString::from("s3cret");
    for source in [Source::File(file.clone()), shell("echo s3cret"), Source::Given(old.clone())] {
        assert!(source.read_again(Some(&old), Instant::now()).await.is_none(), "{source:?}");
    }
    fs::write(&file, "other\n").unwrap();
    let again = Source::File(file).read_again(Some(&old), Instant::now()).await;
    assert_eq!(again.unwrap().expose_secret(), "other");
    assert!(shell("exit 1").read_again(Some(&old), Instant::now()).await.is_none());
}

#[test]
fn a_file_that_is_no_password_does_not_fill_the_memory_and_is_not_quoted() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("password");
    for (content, said) in [
        (&b"s3cret\xff"[..], "the file is not UTF-8"),
        (b"\r\n", "the file is empty"),
        (&[b'x'; 65537], "the file has more than 64 KiB"),
    ] {
        fs::write(&file, content).unwrap();
        assert_eq!(read(&file).unwrap_err().to_string(), said);
    }
    assert!(read(Path::new("/dev/zero")).is_err());
    fs::write(&file, [b'x'; 65536]).unwrap();
    assert_eq!(read(&file).unwrap().expose_secret().len(), 65536);
}
