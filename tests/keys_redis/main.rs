//! The glob of the sweeper against the glob of a real Redis.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use walsweep::keys::Pattern;

/// A throwaway server, killed on drop.
struct Redis {
    server: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Redis {
    fn start() -> Redis {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("a listener has an address").port();
        drop(listener);
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let mut server = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "no"])
            .arg("--dir")
            .arg(folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("redis-server is installed");
        let output = BufReader::new(server.stdout.take().expect("the output is piped"));
        let ready =
            output.lines().map_while(Result::ok).any(|l| l.contains("Ready to accept connections"));
        assert!(ready, "redis-server did not start");
        Redis { server, port, _folder: folder }
    }

    fn connect(&self) -> Connection {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("redis listens");
        Connection(BufReader::new(stream))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.server.kill().expect("the server is ours");
        self.server.wait().expect("the server is ours");
    }
}

/// RESP2, as much of it as SET and SCAN answer with.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn send(&mut self, parts: &[&[u8]]) {
        let mut command = format!("*{}\r\n", parts.len()).into_bytes();
        for part in parts {
            command.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
            command.extend_from_slice(part);
            command.extend_from_slice(b"\r\n");
        }
        self.0.get_mut().write_all(&command).expect("redis reads");
    }

    /// The bulk strings of one answer, nested arrays made flat.
    fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).expect("redis answers");
        let number = || {
            std::str::from_utf8(&line[1..])
                .ok()
                .and_then(|text| text.trim().parse::<usize>().ok())
                .expect("redis sends lengths")
        };
        match line[0] {
            b'+' => Vec::new(),
            b'*' => (0..number()).flat_map(|_| self.receive()).collect(),
            b'$' => {
                let mut bytes = vec![0; number() + 2];
                std::io::Read::read_exact(&mut self.0, &mut bytes).expect("redis answers whole");
                bytes.truncate(bytes.len() - 2);
                vec![bytes]
            }
            _ => {
                assert_eq!(line.escape_ascii().to_string(), "", "an answer was expected");
                Vec::new()
            }
        }
    }
}

/// Mostly bytes that mean something in a glob, over few letters so that matches are common.
fn bytes(size: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    let meaningful = prop::sample::select(&b"aabb*?[]^-\\"[..]);
    let byte = prop_oneof![12 => meaningful, 1 => any::<u8>(), 1 => 0x7e..0x83u8];
    prop::collection::vec(byte, size)
}

#[test]
fn a_pattern_finds_the_keys_that_redis_finds() {
    let seed = std::env::var("SEED").map_or(1, |seed| seed.parse().unwrap());
    let config = Config { rng_seed: RngSeed::Fixed(seed), ..Config::default() };
    let mut runner = TestRunner::new(config);
    let mut sample =
        |strategy: &BoxedStrategy<Vec<u8>>| strategy.new_tree(&mut runner).unwrap().current();
    let (keys_of, patterns_of) = (bytes(0..9).boxed(), bytes(0..12).boxed());
    let mut keys: Vec<Vec<u8>> = (0..1_500).map(|_| sample(&keys_of)).collect();
    keys.extend((0..=255).map(|byte| vec![byte]));
    keys.push(Vec::new());
    keys.sort();
    keys.dedup();

    let redis = Redis::start();
    let mut connection = redis.connect();
    for key in &keys {
        connection.send(&[b"SET", key, b"1"]);
        connection.receive();
    }
    let fixed: [&[u8]; 12] = [
        b"",
        b"*",
        b"**",
        b"[",
        b"[^",
        b"[^]",
        b"[a-",
        b"[a-]",
        b"[\\",
        b"a\\",
        b"[\x80-a]",
        b"[^b-a]*",
    ];
    let (mut found_count, mut pattern_count) = (0, 0);
    let patterns = (0..6_000).map(|_| sample(&patterns_of));
    for bytes in fixed.into_iter().map(<[u8]>::to_vec).chain(patterns) {
        connection.send(&[b"SCAN", b"0", b"MATCH", &bytes, b"COUNT", b"1000000"]);
        let mut found = connection.receive();
        assert_eq!(found.remove(0), b"0", "one call scans all");
        found.sort();
        let pattern = Pattern::parse(&bytes);
        let expected: Vec<Vec<u8>> =
            keys.iter().filter(|key| pattern.matches(key)).cloned().collect();
        assert_eq!(found, expected, "{pattern:?}, SEED={seed}");
        let prefix = pattern.literal_prefix();
        assert!(found.iter().all(|key| key.starts_with(prefix)), "{pattern:?}, SEED={seed}");
        if let Some(literal) = pattern.as_literal() {
            assert!(found.iter().all(|key| *key == literal), "{pattern:?}, SEED={seed}");
        }
        pattern_count += 1;
        found_count += found.len();
    }
    assert!(found_count > 10 * pattern_count, "the patterns find too little to prove anything");
}
