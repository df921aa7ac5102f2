//! A task that ends with whoever holds it.

use tokio::task::{JoinHandle, spawn_local};

/// A task of this thread; dropped, it is aborted.
pub(super) struct Task<T>(pub(super) JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts a task.
pub(super) fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
    Task(spawn_local(future))
}
