//! Server-sent events: the [`Status`], once a second, for as long as somebody listens
//! (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).
//!
//! However many listen, one text is made for all of them, and there are never more than a few.
//! Nothing is queued for anybody: who reads slowly misses what came meanwhile, and who reads
//! nothing for as long as an answer may take is let go ([`Taken`]).

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::unfold;
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use super::status::Status;

/// Listeners at a time.
pub(super) const LISTENERS_MAX: usize = 16;

/// How far apart two events are.
const INTERVAL: Duration = Duration::from_secs(1);

/// The body of the answer to one listener.
pub(super) type Events = StreamBody<Pin<Box<dyn Stream<Item = Event> + Send>>>;

type Event = Result<Frame<Bytes>, Infallible>;

/// Notes when a listener took an event for the last time. Its connection takes none as long as the
/// system holds back what it was given before.
#[derive(Debug, Default)]
pub(super) struct Taken(Mutex<Option<Instant>>);

impl Taken {
    /// Gives when an event was taken; `None` if this connection never listened.
    pub(super) fn at(&self) -> Option<Instant> {
        *self.0.lock().expect("no code panics while it holds this lock")
    }

    fn now(&self) {
        *self.0.lock().expect("no code panics while it holds this lock") = Some(Instant::now());
    }
}

/// Gives the state to all who listen.
#[derive(Debug)]
pub(super) struct Teller {
    latest: watch::Sender<Bytes>,
    /// Somebody listens.
    woken: Notify,
    listeners_max: usize,
}

impl Teller {
    /// Nobody listens, and so many may, or as many as any may.
    pub(super) fn new(listeners_max: usize) -> Teller {
        let latest = watch::Sender::new(Bytes::new());
        let listeners_max = listeners_max.clamp(1, LISTENERS_MAX);
        Teller { latest, woken: Notify::new(), listeners_max }
    }

    /// Gives the events for one more listener, from now on; `None` if there are enough.
    pub(super) fn listen(&self, taken: Arc<Taken>) -> Option<Events> {
        if self.latest.receiver_count() >= self.listeners_max {
            return None;
        }
        let mut latest = self.latest.subscribe();
        // What others have got already is new to this one.
        latest.mark_changed();
        self.woken.notify_one();
        taken.now();
        let events = unfold((latest, taken), |(mut latest, taken)| async {
            loop {
                latest.changed().await.ok()?;
                let text = latest.borrow_and_update().clone();
                if !text.is_empty() {
                    taken.now();
                    return Some((Ok(Frame::data(text)), (latest, taken)));
                }
            }
        });
        Some(StreamBody::new(Box::pin(events)))
    }

    /// Tells the state once a second while somebody listens. Never ends.
    pub(super) async fn tell(&self, state: impl Fn() -> Status) {
        loop {
            while self.latest.receiver_count() == 0 {
                self.latest.send_replace(Bytes::new());
                self.woken.notified().await;
            }
            self.latest.send_replace(event(&state()));
            sleep(INTERVAL).await;
        }
    }
}

/// An event that tells the state; the listener is to connect again after two seconds.
fn event(status: &Status) -> Bytes {
    let json = serde_json::to_string(status).expect("it has no map whose keys are no texts");
    format!("retry: 2000\ndata: {json}\n\n").into()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;
    use std::time::Duration;

    use http_body_util::BodyExt;
    use tokio::time::{advance, timeout};

    use super::{LISTENERS_MAX, Status, Taken, Teller};

    /// One text a second for all listeners, and none when they have gone.
    #[tokio::test(start_paused = true)]
    async fn nothing_is_made_while_nobody_listens() {
        let (teller, made) = (Teller::new(LISTENERS_MAX), Cell::new(0));
        let tell = teller.tell(|| {
            made.set(made.get() + 1);
            Status { phase: made.get().to_string(), ..Status::default() }
        });
        let listening = async {
            advance(Duration::from_secs(60)).await;
            assert_eq!(made.get(), 0);
            let mut one = teller.listen(Arc::default()).unwrap();
            let mut other = teller.listen(Arc::default()).unwrap();
            for count in 1..=3 {
                for events in [&mut one, &mut other] {
                    let event = events.frame().await.unwrap().unwrap().into_data().unwrap();
                    let text = String::from_utf8(event.to_vec()).unwrap();
                    assert!(text.contains(&format!("\"phase\":\"{count}\"")), "{text}");
                    assert!(text.ends_with("}\n\n"), "{text}");
                }
            }
            assert_eq!(made.get(), 3);
            // A third one does not wait for the next second.
            let mut third = teller.listen(Arc::default()).unwrap();
            third.frame().await.unwrap().unwrap();
            assert_eq!(made.get(), 3);
            drop((one, other, third));
            advance(Duration::from_secs(60)).await;
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert!(made.get() <= 4, "{}", made.get());
        };
        tokio::select! {
            () = tell => {}
            () = listening => {}
        }
    }

    /// A slow one gets what is new, and not what it missed.
    #[tokio::test(start_paused = true)]
    async fn nothing_is_queued_for_a_listener_that_is_slow() {
        let (teller, made) = (Teller::new(LISTENERS_MAX), Cell::new(0));
        let tell = teller.tell(|| {
            made.set(made.get() + 1);
            Status { phase: made.get().to_string(), ..Status::default() }
        });
        let taken = Arc::<Taken>::default();
        let mut events = teller.listen(Arc::clone(&taken)).unwrap();
        assert!(timeout(Duration::from_millis(100_500), tell).await.is_err());
        let at = taken.at().unwrap();
        let event = events.frame().await.unwrap().unwrap().into_data().unwrap();
        let text = String::from_utf8(event.to_vec()).unwrap();
        assert!(text.contains(&format!("\"phase\":\"{}\"", made.get())), "{text}");
        assert!(made.get() > 100 && taken.at().unwrap() > at);
        assert!(timeout(Duration::from_secs(9), events.frame()).await.is_err(), "one more");
    }

    #[test]
    fn there_are_so_many_listeners_and_no_more() {
        for (asked, most) in [(0, 1), (3, 3), (1000, LISTENERS_MAX)] {
            let teller = Teller::new(asked);
            let mut all: Vec<_> = (0..most).map(|_| teller.listen(Arc::default())).collect();
            assert!(all.iter().all(Option::is_some), "{asked}");
            assert!(teller.listen(Arc::default()).is_none(), "{asked}");
            all.pop();
            assert!(teller.listen(Arc::default()).is_some(), "{asked}");
        }
    }
}
