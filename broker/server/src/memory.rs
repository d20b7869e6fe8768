//! Gives memory that the allocator holds but nobody uses back to the system, after many connections have ended.
//!
//! glibc keeps freed memory as long as anything above it lives, which in a server is for ever.

/// Watches the process's memory from a thread of its own, as long as the process lives.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn watch() {
    // Without the thread the broker only stays larger than it need be.
    let _ = std::thread::Builder::new().name("memory".into()).stack_size(64 * 1024).spawn(glibc::watch);
}

/// Other allocators give memory back by themselves, or know no way to be asked.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn watch() {}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    use std::time::Duration;

    const INTERVAL: Duration = Duration::from_secs(1);
    /// More unused memory than this is given back, in bytes. Trimming takes about a millisecond for each.
    const SPARE: usize = 8 * 1024 * 1024;

    pub fn watch() {
        let mut usual = unused().unwrap_or_default();
        loop {
            std::thread::sleep(INTERVAL);
            let Some(now) = unused() else { return };
            if now > usual + SPARE {
                // SAFETY: malloc_trim may be called at any time, from any thread.
                unsafe { libc::malloc_trim(0) };
                usual = unused().unwrap_or_default();
            } else {
                usual = usual.min(now);
            }
        }
    }

    /// Resident bytes that are not in use by the program's data: its code, and what the allocator keeps.
    fn unused() -> Option<usize> {
        // SAFETY: mallinfo2 only reads the allocator's own counts, under its locks.
        let info = unsafe { libc::mallinfo2() };
        Some(resident()?.saturating_sub(info.uordblks + info.hblkhd))
    }

    /// proc(5), statm: the second number is the resident pages.
    fn resident() -> Option<usize> {
        let pages: usize = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
        // SAFETY: sysconf only reads a constant.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        pages.checked_mul(usize::try_from(page).ok()?)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn what_is_used_does_not_count_as_unused() {
            let before = unused().unwrap();
            let used = vec![1_u8; 64 << 20];
            assert!(unused().unwrap() < before + (32 << 20), "{} bytes are used", used.len());
        }
    }
}
