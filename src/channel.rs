//! Channels between the stages, bounded by number and by bytes.
//!
//! Why not by number alone: a transaction may hold a few bytes of keys or several megabytes, and a
//! thousand of the latter would fill the machine while Redis is away (I6). What does not fit waits
//! in Postgres, which has a disk.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::budget::CHANNEL as BYTES_MAX;

/// The unit of the bound, bytes: a finer one would not fit a semaphore's permits on all targets.
const UNIT: usize = 1024;

/// Something whose memory counts.
pub trait Weight {
    /// Memory held, in bytes.
    fn bytes(&self) -> usize;
}

/// The sending half.
#[derive(Debug)]
pub struct Sender<T> {
    queue: mpsc::Sender<(T, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
    /// How many there are when nothing is held.
    units: usize,
}

/// The receiving half.
#[derive(Debug)]
pub struct Receiver<T> {
    queue: mpsc::Receiver<(T, OwnedSemaphorePermit)>,
}

/// Nobody receives any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

/// Room for one thing.
#[derive(Debug)]
pub struct Room<'a, T> {
    place: mpsc::Permit<'a, (T, OwnedSemaphorePermit)>,
    bytes: OwnedSemaphorePermit,
}

/// A channel for at most `length` things, that together hold at most [`BYTES_MAX`]. A single one
/// that is larger goes when it is alone.
#[must_use]
pub fn channel<T: Weight>(length: usize) -> (Sender<T>, Receiver<T>) {
    channel_of(length, BYTES_MAX)
}

/// Gives a channel as [`channel`] does, for at most so many bytes.
#[must_use]
pub fn channel_of<T: Weight>(length: usize, bytes: usize) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = mpsc::channel(length);
    let units = (bytes / UNIT).max(1);
    (
        Sender { queue: sender, room: Arc::new(Semaphore::new(units)), units },
        Receiver { queue: receiver },
    )
}

impl<T: Weight> Sender<T> {
    fn permits(&self, value: &T) -> u32 {
        let units = (value.bytes() / UNIT).clamp(1, self.units);
        u32::try_from(units).unwrap_or(u32::MAX)
    }

    /// Sends at once.
    ///
    /// # Errors
    ///
    /// The value, when there is no room for it or nobody receives any more.
    pub fn try_send(&self, value: T) -> Result<(), T> {
        match Arc::clone(&self.room).try_acquire_many_owned(self.permits(&value)) {
            Ok(bytes) => self.queue.try_send((value, bytes)).map_err(|refused| {
                let (mpsc::error::TrySendError::Full((value, _))
                | mpsc::error::TrySendError::Closed((value, _))) = refused;
                value
            }),
            Err(_) => Err(value),
        }
    }

    /// Waits for room for `value`. May be cancelled.
    ///
    /// # Errors
    ///
    /// [`Closed`].
    pub async fn room_for(&self, value: &T) -> Result<Room<'_, T>, Closed> {
        let place = self.queue.reserve().await.map_err(|_closed| Closed)?;
        let room = Arc::clone(&self.room);
        tokio::select! {
            biased;
            // First: a receiver that goes lets go of what it held, which makes room.
            () = self.queue.closed() => Err(Closed),
            bytes = room.acquire_many_owned(self.permits(value)) => {
                Ok(Room { place, bytes: bytes.map_err(|_closed| Closed)? })
            }
        }
    }

    /// Sends when there is room.
    ///
    /// # Errors
    ///
    /// [`Closed`]; the value is dropped.
    pub async fn send(&self, value: T) -> Result<(), Closed> {
        self.room_for(&value).await?.send(value);
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        Sender { queue: self.queue.clone(), room: Arc::clone(&self.room), units: self.units }
    }
}

impl<T> Room<'_, T> {
    /// Sends what the room was made for.
    pub fn send(self, value: T) {
        self.place.send((value, self.bytes));
    }
}

impl<T> Receiver<T> {
    /// The next one; `None` when there will be none. May be cancelled.
    pub async fn recv(&mut self) -> Option<T> {
        self.queue.recv().await.map(|(value, _)| value)
    }

    /// The next one, if it is there.
    pub fn try_recv(&mut self) -> Option<T> {
        self.queue.try_recv().ok().map(|(value, _)| value)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::{BYTES_MAX, Closed, Weight, channel};

    #[derive(Debug, PartialEq)]
    struct Load(usize);

    impl Weight for Load {
        fn bytes(&self) -> usize {
            self.0
        }
    }

    #[test]
    fn bytes_and_number_are_bounded() {
        let (sender, mut receiver) = channel(3);
        assert_eq!(sender.try_send(Load(BYTES_MAX / 2)), Ok(()));
        assert_eq!(sender.try_send(Load(BYTES_MAX)), Err(Load(BYTES_MAX)));
        assert!(sender.send(Load(BYTES_MAX)).now_or_never().is_none());
        assert_eq!(sender.try_send(Load(0)), Ok(()));
        assert_eq!(sender.try_send(Load(0)), Ok(()));
        assert_eq!(sender.try_send(Load(0)), Err(Load(0)));
        assert_eq!(receiver.try_recv(), Some(Load(BYTES_MAX / 2)));
        assert_eq!(sender.try_send(Load(BYTES_MAX / 2)), Ok(()));
    }

    #[test]
    fn what_is_larger_than_the_channel_goes_alone() {
        let (sender, mut receiver) = channel(3);
        assert_eq!(sender.try_send(Load(10 * BYTES_MAX)), Ok(()));
        assert_eq!(sender.try_send(Load(1)), Err(Load(1)));
        assert_eq!(receiver.try_recv(), Some(Load(10 * BYTES_MAX)));
        assert_eq!(sender.try_send(Load(1)), Ok(()));
    }

    #[test]
    fn a_sender_that_waits_hears_of_the_end() {
        let (sender, receiver) = channel(3);
        assert_eq!(sender.try_send(Load(BYTES_MAX)), Ok(()));
        let mut waiting = Box::pin(sender.send(Load(1)));
        assert!((&mut waiting).now_or_never().is_none());
        drop(receiver);
        assert_eq!(waiting.now_or_never(), Some(Err(Closed)));
    }
}
