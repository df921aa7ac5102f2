//! Large blocks of memory go back to the system when they are freed.
//!
//! Takes: nothing. Gives: a setting of the C library's allocator. Never knows: who allocates.
//!
//! glibc takes blocks of 128 KiB and more from the system one by one, and gives each back when it
//! is freed. But with each that is freed it raises that threshold to its size, up to 32 MiB; blocks
//! below it then lie in the heap, between small ones that keep it from shrinking
//! (<https://man7.org/linux/man-pages/man3/mallopt.3.html>, `M_MMAP_THRESHOLD`). Key sets grow to
//! megabytes and are freed in any order: without this, half as much again stays resident.

/// Blocks of this size and more are the system's again once they are freed, bytes: the value with
/// which glibc starts.
pub const LARGE: u32 = 128 * 1024;

/// Keeps the threshold at [`LARGE`] for the whole process. Gives whether the allocator took it;
/// always, where there is another one than glibc's, which does not move its threshold.
pub fn return_large_blocks() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let Ok(large) = libc::c_int::try_from(LARGE) else { return false };
        #[allow(
            unsafe_code,
            reason = "the only way to set it but for variables of the environment"
        )]
        // SAFETY: it takes two numbers, touches no memory of ours and may be called at any time.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, large) == 1
        }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    true
}

#[cfg(test)]
mod tests {
    use super::{LARGE, return_large_blocks};

    /// Resident memory of this process, bytes.
    fn resident() -> usize {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    /// Small blocks between large ones keep a heap from shrinking.
    #[test]
    fn large_blocks_go_back_whatever_stays_between_them() {
        assert!(return_large_blocks());
        // What would raise the threshold.
        drop(std::hint::black_box(vec![1_u8; 16 << 20]));
        let before = resident();
        let size = LARGE as usize * 4;
        let mut blocks: Vec<(Vec<u8>, Box<u64>)> =
            (0..64).map(|number| (vec![1; size], Box::new(number))).collect();
        assert!(resident() > before + 60 * size, "they are there");
        blocks.iter_mut().for_each(|(large, _small)| *large = Vec::new());
        assert!(resident() < before + 4 * size, "{} and {before} bytes", resident());
    }
}
