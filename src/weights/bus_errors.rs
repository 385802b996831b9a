//! Keeps a read past the end of a mapped file from ending the process.
//!
//! A file can become shorter while it is mapped, and a disk or a network can fail. A read of such a page raises SIGBUS,
//! whose default action ends the process, with the models of everybody. The handler here puts a page of zeros in the
//! place of the page and marks the map as lost. Who uses the map asks for the mark before results are used: after a load
//! and after each step.
//!
//! Signals outside of the maps go to the handler of before.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use diffusion_core::{Error, Result};

/// Most maps at one time: one for each file of weights.
const MAX_MAPS: usize = 4096;

/// The addresses of a map, read by the handler, which must not take locks.
struct Slot {
    /// 0 for a slot that is free.
    start: AtomicUsize,
    end: AtomicUsize,
    lost: AtomicBool,
}

static SLOTS: [Slot; MAX_MAPS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        lost: AtomicBool::new(false),
    }
}; MAX_MAPS];

/// The handler of before, and whether the handler here is installed. Also held while a slot is taken.
static BEFORE: Mutex<Option<libc::sigaction>> = Mutex::new(None);

/// The handler of before, for the handler here: its address, and whether it takes three arguments.
static BEFORE_ADDRESS: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);
static BEFORE_HAS_INFO: AtomicBool = AtomicBool::new(false);

/// The page size, for the handler.
static PAGE_SIZE: AtomicUsize = AtomicUsize::new(0);

/// A map that the handler guards until this value is dropped, which must be before the map is.
pub struct GuardedMap {
    slot: &'static Slot,
}

impl GuardedMap {
    /// Guards the pages of a private or read-only map of a file.
    ///
    /// # Errors
    /// `OutOfMemory` with too many maps; `Internal` if the system refuses the handler.
    pub fn new(map: &[u8]) -> Result<Self> {
        let mut before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
        if before.is_none() {
            *before = Some(install()?);
        }
        let slot = SLOTS.iter().find(|slot| slot.start.load(Ordering::Relaxed) == 0);
        let slot = slot.ok_or_else(|| Error::out_of_memory(format!("more than {MAX_MAPS} files are mapped")))?;
        let Range { start, end } = map.as_ptr_range();
        slot.lost.store(false, Ordering::Relaxed);
        slot.end.store(end.addr(), Ordering::Relaxed);
        slot.start.store(start.addr(), Ordering::Release);
        Ok(Self { slot })
    }

    /// Returns whether a page could not be read, so that the map has zeros in its place.
    pub fn is_lost(&self) -> bool {
        self.slot.lost.load(Ordering::Acquire)
    }
}

impl Drop for GuardedMap {
    fn drop(&mut self) {
        self.slot.start.store(0, Ordering::Release);
    }
}

/// Puts the handler of before back. Called before the library that has the handler may be unloaded.
pub fn uninstall() {
    let mut before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(before) = before.take() {
        // SAFETY: `before` is the action that the system returned.
        unsafe { libc::sigaction(libc::SIGBUS, &before, std::ptr::null_mut()) };
    }
}

fn install() -> Result<libc::sigaction> {
    // SAFETY: passes a number.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) });
    PAGE_SIZE.store(page.unwrap_or(4096), Ordering::Relaxed);
    let mut before = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a zeroed `sigaction` is valid: no flags and an empty mask. The handler has the signature of SA_SIGINFO and
    // calls only what signal-safety(7) allows, and mmap, which is a system call alone. A call that succeeds writes
    // `before`.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        if libc::sigaction(libc::SIGBUS, &action, before.as_mut_ptr()) != 0 {
            return Err(Error::internal("the system refuses a handler for SIGBUS"));
        }
        let before = before.assume_init();
        BEFORE_HAS_INFO.store(before.sa_flags & libc::SA_SIGINFO != 0, Ordering::Relaxed);
        BEFORE_ADDRESS.store(before.sa_sigaction, Ordering::Release);
        Ok(before)
    }
}

/// The handler. It runs on the thread that read the page, and the read is repeated when it returns.
unsafe extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the system passes valid pointers to a handler with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() }.addr();
    let inside = |slot: &&Slot| {
        let start = slot.start.load(Ordering::Acquire);
        start != 0 && start <= address && address < slot.end.load(Ordering::Relaxed)
    };
    if let Some(slot) = SLOTS.iter().find(inside) {
        slot.lost.store(true, Ordering::Release);
        let size = PAGE_SIZE.load(Ordering::Relaxed);
        let page = std::ptr::without_provenance_mut(address - address % size);
        // SAFETY: the page is in a map of a file that is only read, and its owner has not dropped the map: a thread reads it
        // now. The new page is readable, and the map's length stays as it is.
        let placed = unsafe {
            libc::mmap(
                page,
                size,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        if placed != libc::MAP_FAILED {
            return;
        }
    }
    // SAFETY: the handler of before was installed with these flags, or the default action follows: the signal is raised
    // again when this handler returns.
    unsafe {
        match BEFORE_ADDRESS.load(Ordering::Acquire) {
            libc::SIG_DFL | libc::SIG_IGN => {
                libc::signal(signal, libc::SIG_DFL);
            }
            before if BEFORE_HAS_INFO.load(Ordering::Relaxed) => {
                let before: unsafe extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    std::mem::transmute(before);
                before(signal, info, context);
            }
            before => {
                let before: unsafe extern "C" fn(libc::c_int) = std::mem::transmute(before);
                before(signal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use std::io::Write;

    use memmap2::Mmap;

    use super::*;

    #[test]
    fn page_past_the_end_of_a_file_reads_as_zeros_and_is_lost() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 3 << 20]).unwrap();
        // SAFETY: the file is cut below, and the guard turns a read past its end into zeros.
        let map = unsafe { Mmap::map(&file) }.unwrap();
        // SAFETY: as above.
        let other = unsafe { Mmap::map(&file) }.unwrap();
        let guard = GuardedMap::new(&map).unwrap();
        let other_guard = GuardedMap::new(&other[..100]).unwrap();
        assert!(map.iter().all(|&byte| byte == 7));
        assert!(!guard.is_lost());
        file.set_len(1 << 20).unwrap();
        let cut = map.iter().map(|&byte| u64::from(byte)).sum::<u64>();
        assert_eq!(cut, 7 << 20);
        assert!(guard.is_lost());
        assert!(!other_guard.is_lost());
    }
}
