//! One address behind which keys are on several real Redis servers, by their slots or by another
//! hash: what Envoy, a proxy of another kind or a managed serverless Redis is to its clients. It
//! takes no password.
//!
//! It runs on a thread of its own. What it does with commands may be switched at any time and holds
//! for every command that comes after.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use walsweep_stage::throwaway::free_port;

/// The treatment of commands with several keys: UNLINK, DEL and EXISTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// Split among the servers, as Envoy does.
    Split,
    /// Refused if they have several slots, as a serverless Redis does.
    OfOneSlot,
}

/// The treatment of SCAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    /// One server after the other, with numbers as cursors.
    Numbers,
    /// One server after the other, with cursors that are no numbers.
    Texts,
    /// The first server alone.
    First,
    /// Not there.
    Missing,
}

/// The treatment of EVAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eval {
    /// Run where the first key is, as Envoy does.
    AtFirstKey,
    /// Refused if its keys have several slots.
    OfOneSlot,
    /// Refused unless it has one key.
    OfOneKey,
    /// Not there.
    Missing,
}

/// The way keys are spread among servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spread {
    /// By slots: each server has a part of them, and hash tags count.
    Slots,
    /// By the remainder of CRC-32 of the whole name: its last bit is the parity of some bits of the
    /// name.
    Crc32,
    /// By the remainder of FNV-1a of the whole name: its last bit is the parity of all last bits.
    Fnv1a,
    /// By the remainder of the sum of all bytes.
    Sum,
}

/// Everything that may be switched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tricks {
    pub(crate) keys: Keys,
    pub(crate) scan: Scan,
    pub(crate) eval: Eval,
    /// Whether INFO is there; any of the servers answers it.
    pub(crate) info: bool,
    /// Whether CLIENT is there.
    pub(crate) client: bool,
    /// Whether HELLO is there. Then CLIENT TRACKING may be turned on, and of nothing is told.
    pub(crate) hello: bool,
    pub(crate) spread: Spread,
}

impl Tricks {
    /// As Envoy.
    pub(crate) const ENVOY: Tricks = Tricks {
        keys: Keys::Split,
        scan: Scan::Numbers,
        eval: Eval::AtFirstKey,
        info: false,
        client: false,
        hello: false,
        spread: Spread::Slots,
    };

    /// As a managed serverless Redis.
    pub(crate) const SERVERLESS: Tricks = Tricks {
        keys: Keys::OfOneSlot,
        scan: Scan::Texts,
        eval: Eval::OfOneSlot,
        info: true,
        client: true,
        hello: false,
        spread: Spread::Slots,
    };
}

/// The state that all connections share.
#[derive(Debug)]
struct Shared {
    ports: Vec<u16>,
    tricks: Mutex<Tricks>,
    /// How many commands of each name came.
    calls: Mutex<BTreeMap<String, u64>>,
    /// The most keys that an UNLINK had.
    most: AtomicUsize,
    turn: AtomicUsize,
}

/// An address of its own; its thread ends with the test.
#[derive(Debug)]
pub(crate) struct Endpoint {
    port: u16,
    shared: Arc<Shared>,
    cuts: watch::Sender<u64>,
}

impl Endpoint {
    /// One in front of the servers on these ports of 127.0.0.1.
    pub(crate) fn start(ports: Vec<u16>, tricks: Tricks) -> Endpoint {
        let port = free_port().unwrap();
        let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let shared = Arc::new(Shared {
            ports,
            tricks: Mutex::new(tricks),
            calls: Mutex::default(),
            most: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
        });
        let cuts = watch::Sender::new(0);
        let (all, ends) = (Arc::clone(&shared), cuts.subscribe());
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                let mut over = ends.clone();
                loop {
                    tokio::select! {
                        client = listener.accept() => {
                            let client = client.unwrap().0;
                            drop(tokio::spawn(serve(client, Arc::clone(&all), ends.clone())));
                        }
                        // The test is over.
                        Err(_) = over.changed() => return,
                    }
                }
            });
        });
        super::least::has_no_users(port);
        Endpoint { port, shared, cuts }
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Does so from now on.
    pub(crate) fn switch(&self, change: impl FnOnce(&mut Tricks)) {
        change(&mut self.shared.tricks.lock().unwrap());
    }

    /// Ends every connection.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// How many commands of this name came, in upper case.
    pub(crate) fn calls(&self, name: &str) -> u64 {
        self.shared.calls.lock().unwrap().get(name).copied().unwrap_or_default()
    }

    /// The most keys that an UNLINK had since this was asked last.
    pub(crate) fn most_keys(&self) -> usize {
        self.shared.most.swap(0, Ordering::SeqCst)
    }

    /// The place of the server that has a key.
    pub(crate) fn place(&self, key: &[u8]) -> usize {
        self.shared.place(key)
    }
}

impl Shared {
    fn place(&self, key: &[u8]) -> usize {
        let hash = match self.tricks.lock().unwrap().spread {
            Spread::Slots => return usize::from(slot_of(key)) * self.ports.len() / 16_384,
            Spread::Crc32 => crc32(key),
            Spread::Fnv1a => key
                .iter()
                .fold(0x811C_9DC5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(16_777_619)),
            Spread::Sum => key.iter().map(|byte| u32::from(*byte)).sum(),
        };
        usize::try_from(hash).unwrap() % self.ports.len()
    }
}

/// CRC-32, as zlib has it.
fn crc32(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 0 { crc >> 1 } else { (crc >> 1) ^ 0xEDB8_8320 }
        })
    });
    !crc
}

/// The slot of a key, as a cluster has it.
fn slot_of(key: &[u8]) -> u16 {
    let open = key.iter().position(|byte| *byte == b'{');
    let tag = open.and_then(|open| {
        let rest = &key[open + 1..];
        rest.iter().position(|byte| *byte == b'}').map(|end| &rest[..end])
    });
    let text = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    let crc = text.iter().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    });
    crc % 16_384
}

type Words = Vec<Vec<u8>>;

/// One connection, until either end closes it.
async fn serve(client: TcpStream, shared: Arc<Shared>, mut cuts: watch::Receiver<u64>) {
    client.set_nodelay(true).unwrap();
    cuts.mark_unchanged();
    let mut behind = Behind { shared, servers: BTreeMap::new() };
    let mut client = Buffered::new(client);
    let talk = async {
        while let Ok(words) = client.request().await {
            let reply = behind.answer(words).await;
            if client.stream.write_all(&reply).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = talk => {}
        _ = cuts.changed() => {}
    }
}

/// The servers behind one connection.
struct Behind {
    shared: Arc<Shared>,
    servers: BTreeMap<usize, Buffered>,
}

impl Behind {
    /// The reply to a command.
    async fn answer(&mut self, words: Words) -> Vec<u8> {
        let name = String::from_utf8(words[0].to_ascii_uppercase()).unwrap();
        *self.shared.calls.lock().unwrap().entry(name.clone()).or_default() += 1;
        let tricks = *self.shared.tricks.lock().unwrap();
        let unknown = format!("-ERR unknown command '{name}', with args beginning with: \r\n");
        let cross = b"-CROSSSLOT Keys in request don't hash to the same slot\r\n".to_vec();
        match name.as_str() {
            "PING" => b"+PONG\r\n".to_vec(),
            "INFO" if tricks.info => {
                let turn = self.shared.turn.fetch_add(1, Ordering::SeqCst);
                self.ask(turn % self.shared.ports.len(), &words).await
            }
            "HELLO" if tricks.hello => b"%2\r\n+version\r\n+7.2.0\r\n+proto\r\n:3\r\n".to_vec(),
            "CLIENT" if tricks.client => b"+OK\r\n".to_vec(),
            "UNLINK" | "DEL" | "EXISTS" => {
                if name == "UNLINK" {
                    self.shared.most.fetch_max(words.len() - 1, Ordering::SeqCst);
                }
                match tricks.keys {
                    Keys::OfOneSlot if !is_of_one_slot(&words[1..]) => cross,
                    Keys::OfOneSlot | Keys::Split => self.split(&words).await,
                }
            }
            "EVAL" if tricks.eval != Eval::Missing => {
                let count: usize = std::str::from_utf8(&words[2]).unwrap().parse().unwrap();
                let keys = &words[3..3 + count];
                match (tricks.eval, keys) {
                    (_, []) => b"-ERR EVAL needs a key\r\n".to_vec(),
                    (Eval::OfOneKey, [_, _, ..]) => b"-ERR EVAL takes one key\r\n".to_vec(),
                    (Eval::OfOneSlot, keys) if !is_of_one_slot(keys) => cross,
                    (_, [first, ..]) => self.ask(self.shared.place(first), &words).await,
                }
            }
            "SCAN" if tricks.scan != Scan::Missing => self.scan(tricks.scan, words).await,
            "SET" | "GET" | "GETRANGE" | "INCR" => {
                self.ask(self.shared.place(&words[1]), &words).await
            }
            _ => unknown.into_bytes(),
        }
    }

    /// Each key where it is; the sum of the counts.
    async fn split(&mut self, words: &[Vec<u8>]) -> Vec<u8> {
        let mut of_server = BTreeMap::<usize, Words>::new();
        for key in &words[1..] {
            let place = self.shared.place(key);
            of_server.entry(place).or_insert_with(|| vec![words[0].clone()]).push(key.clone());
        }
        let is_one = of_server.len() == 1;
        let (mut sum, mut errors) = (0, 0);
        for (place, words) in of_server {
            let reply = self.ask(place, &words).await;
            match reply.strip_prefix(b":") {
                Some(count) => {
                    sum += std::str::from_utf8(count).unwrap().trim_end().parse::<u64>().unwrap();
                }
                None if is_one => return reply,
                None => errors += 1,
            }
        }
        match errors {
            0 => format!(":{sum}\r\n").into_bytes(),
            _ => format!("-finished with {errors} error(s)\r\n").into_bytes(),
        }
    }

    /// A page of one server, and the cursor that leads on.
    async fn scan(&mut self, scan: Scan, mut words: Words) -> Vec<u8> {
        if scan == Scan::First {
            return self.ask(0, &words).await;
        }
        let cursor = String::from_utf8(words[1].clone()).unwrap();
        let count = self.shared.ports.len();
        let (place, inner) = match (scan, cursor.split_once('-')) {
            (_, None) if cursor == "0" => (0, 0),
            (Scan::Texts, Some((place, inner))) => {
                (place[1..].parse().unwrap(), inner.parse::<u64>().unwrap())
            }
            _ => {
                let number: u64 = cursor.parse().unwrap();
                let count = u64::try_from(count).unwrap();
                (usize::try_from(number % count).unwrap(), number / count)
            }
        };
        words[1] = inner.to_string().into_bytes();
        let reply = self.ask(place, &words).await;
        let Some(rest) = reply.strip_prefix(b"*2\r\n") else { return reply };
        let text = rest.split(|byte| *byte == b'\n').nth(1).unwrap();
        let next: u64 = std::str::from_utf8(text).unwrap().trim_end().parse().unwrap();
        let names = &rest[string_length(rest)..];
        let (place, inner) = if next == 0 { (place + 1, 0) } else { (place, next) };
        let cursor = match scan {
            _ if place == count => "0".to_owned(),
            Scan::Texts => format!("s{place}-{inner}"),
            _ => {
                (inner * u64::try_from(count).unwrap() + u64::try_from(place).unwrap()).to_string()
            }
        };
        let mut reply = format!("*2\r\n${}\r\n{cursor}\r\n", cursor.len()).into_bytes();
        reply.extend_from_slice(names);
        reply
    }

    /// The reply of one server as it is; what Envoy says where it is away.
    async fn ask(&mut self, place: usize, words: &[Vec<u8>]) -> Vec<u8> {
        match self.try_ask(place, words).await {
            Ok(reply) => reply,
            Err(_gone) => {
                self.servers.remove(&place);
                b"-upstream failure\r\n".to_vec()
            }
        }
    }

    async fn try_ask(&mut self, place: usize, words: &[Vec<u8>]) -> io::Result<Vec<u8>> {
        if !self.servers.contains_key(&place) {
            let stream = TcpStream::connect(("127.0.0.1", self.shared.ports[place])).await?;
            stream.set_nodelay(true)?;
            self.servers.insert(place, Buffered::new(stream));
        }
        let server = self.servers.get_mut(&place).expect("it was inserted");
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend(format!("${}\r\n", word.len()).into_bytes());
            request.extend_from_slice(word);
            request.extend(b"\r\n");
        }
        server.stream.write_all(&request).await?;
        server.reply().await
    }
}

fn is_of_one_slot(keys: &[Vec<u8>]) -> bool {
    keys.windows(2).all(|two| slot_of(&two[0]) == slot_of(&two[1]))
}

/// The length of the bulk string at the beginning, with its head and its end.
fn string_length(bytes: &[u8]) -> usize {
    let head = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let length: usize = std::str::from_utf8(&bytes[1..head]).unwrap().trim_end().parse().unwrap();
    head + length + 2
}

/// A stream with what was read of it and not yet used.
struct Buffered {
    stream: TcpStream,
    bytes: Vec<u8>,
    at: usize,
}

impl Buffered {
    fn new(stream: TcpStream) -> Buffered {
        Buffered { stream, bytes: Vec::new(), at: 0 }
    }

    async fn more(&mut self) -> io::Result<()> {
        let count = self.stream.read_buf(&mut self.bytes).await?;
        if count == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// A line without its end.
    async fn line(&mut self) -> io::Result<String> {
        loop {
            let rest = &self.bytes[self.at..];
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8(rest[..end].to_vec()).unwrap();
                self.at += end + 1;
                return Ok(line.trim_end().to_owned());
            }
            self.more().await?;
        }
    }

    async fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.bytes.len() < self.at + count {
            self.more().await?;
        }
        self.at += count;
        Ok(self.bytes[self.at - count..self.at].to_vec())
    }

    /// Begins something new: what was used is let go.
    fn begin(&mut self) {
        self.bytes.drain(..self.at);
        self.at = 0;
    }

    /// A command, as clients send it.
    async fn request(&mut self) -> io::Result<Words> {
        self.begin();
        let count: usize = self.line().await?[1..].parse().unwrap();
        let mut words = Vec::with_capacity(count);
        for _ in 0..count {
            let length: usize = self.line().await?[1..].parse().unwrap();
            let word = self.take(length + 2).await?;
            words.push(word[..length].to_vec());
        }
        Ok(words)
    }

    /// A whole reply, as it came.
    async fn reply(&mut self) -> io::Result<Vec<u8>> {
        self.begin();
        let mut parts = 1;
        while parts > 0 {
            let line = self.line().await?;
            let count = || line[1..].parse::<usize>().unwrap_or(0);
            parts -= 1;
            match line.as_bytes()[0] {
                b'*' => parts += count(),
                b'$' if line != "$-1" => drop(self.take(count() + 2).await?),
                _ => {}
            }
        }
        Ok(self.bytes[..self.at].to_vec())
    }
}
