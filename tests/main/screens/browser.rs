//! A headless Chromium, spoken to over its `DevTools` protocol
//! (<https://chromedevtools.github.io/devtools-protocol/>).

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The names under which it is installed.
const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// A running browser with one page.
pub(crate) struct Browser {
    process: Child,
    _profile: TempDir,
    page: TcpStream,
    next: u64,
}

/// A way to look at the page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    pub(crate) width: u32,
    pub(crate) is_dark: bool,
}

impl Browser {
    /// Starts it; needs no display.
    pub(crate) async fn start() -> Browser {
        let profile = TempDir::new().unwrap();
        let folder = format!("--user-data-dir={}", profile.path().display());
        let spawn = |name: &str| {
            Command::new(name)
                .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", &folder])
                .args(["--remote-debugging-port=0", "about:blank"])
                .stderr(Stdio::piped())
                .stdout(Stdio::null())
                .process_group(0)
                .spawn()
        };
        let mut process =
            NAMES.iter().find_map(|name| spawn(name).ok()).expect("Chromium is installed");
        let mut lines =
            BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let found = lines.find_map(|line| {
            let address = line.split("ws://").nth(1)?;
            address.split('/').next().map(str::to_owned)
        });
        let address = found.expect("it says where it listens");
        // It stops if nobody reads what it says.
        std::thread::spawn(move || lines.for_each(drop));
        let pages: Value = serde_json::from_str(&get(&address, "/json").await).unwrap();
        let pages = pages.as_array().unwrap();
        let page = pages.iter().find(|page| page["type"] == "page").expect("it has a page");
        let url = page["webSocketDebuggerUrl"].as_str().unwrap();
        let path = &url[url.find("/devtools/").expect("the address of a page")..];
        let page = connect(&address, path).await;
        Browser { process, _profile: profile, page, next: 0 }
    }

    /// Opens an address, as seen on this screen.
    pub(crate) async fn open(&mut self, url: &str, screen: Screen) {
        let Screen { width, is_dark } = screen;
        let (height, scale) = (900, if width < 500 { 2 } else { 1 });
        let metrics = json!({
            "width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 500,
        });
        self.call("Emulation.setDeviceMetricsOverride", metrics).await;
        let scheme = if is_dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", media).await;
        self.call("Page.navigate", json!({"url": url})).await;
    }

    /// The value of an expression in the page.
    pub(crate) async fn value(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true});
        self.call("Runtime.evaluate", asked).await["result"]["value"].take()
    }

    /// A picture of the whole page, PNG.
    pub(crate) async fn picture(&mut self) -> Vec<u8> {
        let asked = json!({"format": "png", "captureBeyondViewport": true});
        let answer = self.call("Page.captureScreenshot", asked).await;
        BASE64_STANDARD.decode(answer["data"].as_str().expect("a picture")).unwrap()
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let text = json!({"id": self.next, "method": method, "params": params}).to_string();
        send(&mut self.page, text.as_bytes()).await;
        loop {
            let mut message: Value =
                serde_json::from_slice(&receive(&mut self.page).await).unwrap();
            if message["id"] == self.next {
                assert_eq!(message["error"], Value::Null, "{method}: {message}");
                return message["result"].take();
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its helpers outlive it: all of them are in its group.
        let group = format!("-{}", self.process.id());
        Command::new("kill").args(["-KILL", "--", &group]).status().unwrap();
        self.process.wait().unwrap();
    }
}

/// The body of a page of the browser, which does not end the connection by itself.
async fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = head(&mut stream).await.to_lowercase();
    let length = head.split("content-length:").nth(1).and_then(|rest| rest.lines().next());
    let mut body = vec![0; length.expect("its length").trim().parse().unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    String::from_utf8(body).unwrap()
}

async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// A WebSocket (RFC 6455).
async fn connect(address: &str, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    stream
}

/// One text, masked with zeros: as it is.
async fn send(stream: &mut TcpStream, text: &[u8]) {
    let length = u64::try_from(text.len()).unwrap();
    let mut frame = vec![0x81, 0x80 | 127];
    frame.extend(length.to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(text);
    stream.write_all(&frame).await.unwrap();
}

/// One message, of one frame or several.
async fn receive(stream: &mut TcpStream) -> Vec<u8> {
    let mut message = Vec::new();
    loop {
        let (first, second) = (stream.read_u8().await.unwrap(), stream.read_u8().await.unwrap());
        let length = match second & 0x7f {
            126 => stream.read_u16().await.unwrap().into(),
            127 => stream.read_u64().await.unwrap(),
            few => few.into(),
        };
        let mut part = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut part).await.unwrap();
        message.extend(part);
        if first & 0x80 != 0 {
            return message;
        }
    }
}
