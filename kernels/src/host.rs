//! What is needed of the operating system: big aligned memory, threads and their cores
//! ([`scheduling`]), and child processes that go with their parent.
//!
//! * A [`Buffer`] never moves, starts zeroed, and is aligned to [`LINE`]; large ones are anonymous mappings
//!   aligned to [`HUGE_PAGE`] with huge pages asked for. Memory of a file mapping could be reclaimed under
//!   the process, so weights never stay in one.
//! * Allocation fails with a value, never by aborting.

pub mod scheduling;

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::BackendError;

/// Bytes of a cache line, and the least alignment of a buffer.
pub const LINE: usize = 64;

/// Bytes of a huge page, the alignment of large buffers.
pub const HUGE_PAGE: usize = 2 << 20;

/// From this size a buffer is a mapping of its own with huge pages asked for.
const MAP_FROM: usize = 1 << 20;

/// Element types for which every bit pattern, zero included, is a value.
pub trait Plain: sealed::Plain + Copy + Send + Sync + 'static {}

mod sealed {
    pub trait Plain {}
}

macro_rules! plain {
    ($($t:ty),*) => { $(impl sealed::Plain for $t {} impl Plain for $t {})* };
}
plain!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

#[derive(Clone, Copy)]
enum Source {
    Empty,
    Heap(std::alloc::Layout),
    #[cfg(unix)]
    Mapping {
        start: *mut libc::c_void,
        bytes: usize,
    },
}

/// A zeroed, aligned array of fixed length.
pub struct Buffer<T: Plain> {
    start: NonNull<T>,
    len: usize,
    source: Source,
    owned: PhantomData<T>,
}

// SAFETY: the buffer owns its memory like a Vec does, and T is Send and Sync.
unsafe impl<T: Plain> Send for Buffer<T> {}
// SAFETY: shared access only reads.
unsafe impl<T: Plain> Sync for Buffer<T> {}

impl<T: Plain> Buffer<T> {
    /// `len` zeros. `what` names them in the error.
    pub fn zeroed(len: usize, what: &'static str) -> Result<Self, BackendError> {
        let refused = |bytes| BackendError::OutOfMemory { what, bytes };
        let bytes = len
            .checked_mul(size_of::<T>())
            .filter(|&bytes| bytes <= isize::MAX as usize - 2 * HUGE_PAGE)
            .ok_or(refused(usize::MAX))?;
        if bytes == 0 {
            return Ok(Buffer {
                start: NonNull::dangling(),
                len,
                source: Source::Empty,
                owned: PhantomData,
            });
        }
        let (start, source) = if bytes >= MAP_FROM {
            map(bytes)
        } else {
            heap(bytes)
        }
        .ok_or(refused(bytes))?;
        Ok(Buffer {
            start: start.cast(),
            len,
            source,
            owned: PhantomData,
        })
    }

    /// Writes to every page, so that the memory is really there and later writes cannot fail.
    pub fn touch(&mut self) {
        let bytes = self.len * size_of::<T>();
        let start = self.start.as_ptr().cast::<u8>();
        for offset in (0..bytes).step_by(4096) {
            // SAFETY: offset < bytes, and the byte written back is the byte read, so no value changes.
            unsafe {
                let byte = start.add(offset);
                byte.write_volatile(byte.read_volatile());
            }
        }
    }
}

impl<T: Plain> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `start` is aligned and valid for `len` elements, all initialised (zero is a value of T).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> Drop for Buffer<T> {
    fn drop(&mut self) {
        match self.source {
            Source::Empty => {}
            // SAFETY: `start` came from `alloc_zeroed` with this layout and is freed once.
            Source::Heap(layout) => unsafe { std::alloc::dealloc(self.start.as_ptr().cast(), layout) },
            #[cfg(unix)]
            // SAFETY: exactly the mapping that `map` made; nothing refers to it any more.
            Source::Mapping { start, bytes } => unsafe {
                libc::munmap(start, bytes);
            },
        }
    }
}

fn heap(bytes: usize) -> Option<(NonNull<u8>, Source)> {
    let layout = std::alloc::Layout::from_size_align(bytes, LINE).ok()?;
    // SAFETY: `bytes` is not zero.
    let start = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
    Some((start, Source::Heap(layout)))
}

/// An anonymous mapping, one huge page larger than needed so that an aligned start lies in it. The surplus is
/// never touched and so costs nothing.
#[cfg(unix)]
fn map(bytes: usize) -> Option<(NonNull<u8>, Source)> {
    let mapped = bytes.next_multiple_of(HUGE_PAGE) + HUGE_PAGE;
    // SAFETY: a fresh private anonymous mapping touches no existing memory.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            mapped,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return None;
    }
    let first = start.cast::<u8>();
    let aligned = first.wrapping_add(first.align_offset(HUGE_PAGE));
    #[cfg(target_os = "linux")]
    // SAFETY: the range lies in the mapping. The call is advice: where it fails, small pages serve as well.
    unsafe {
        libc::madvise(
            aligned.cast(),
            bytes.next_multiple_of(HUGE_PAGE),
            libc::MADV_HUGEPAGE,
        );
    }
    Some((NonNull::new(aligned)?, Source::Mapping { start, bytes: mapped }))
}

#[cfg(not(unix))]
fn map(bytes: usize) -> Option<(NonNull<u8>, Source)> {
    heap(bytes)
}

/// Has `command` start in a process group of its own, for [`kill_group`], and be killed when the thread that
/// starts it ends, however that ends.
#[cfg(target_os = "linux")]
pub fn tie_to_this_thread(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;

    let parent = std::process::id();
    let tie = move || {
        // SAFETY: both calls are async-signal-safe and take no memory of ours.
        let (tied, now) = unsafe {
            (
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong),
                libc::getppid(),
            )
        };
        if tied != 0 {
            return Err(std::io::Error::last_os_error());
        }
        // A parent that ended before the call is not heard of any more.
        match u32::try_from(now) == Ok(parent) {
            true => Ok(()),
            false => Err(std::io::ErrorKind::Interrupted.into()),
        }
    };
    command.process_group(0);
    // SAFETY: between fork and exec `tie` calls nothing but prctl and getppid, and makes errors that take no
    // memory from the heap.
    unsafe {
        command.pre_exec(tie);
    }
}

/// Has `command` start in a process group of its own, for [`kill_group`].
#[cfg(all(unix, not(target_os = "linux")))]
pub fn tie_to_this_thread(command: &mut std::process::Command) {
    std::os::unix::process::CommandExt::process_group(command, 0);
}

/// Kills `child` and the processes it started, where it leads a process group of its own. The caller has not
/// waited for it yet, or another process might have its number.
#[cfg(unix)]
pub fn kill_group(child: &std::process::Child) {
    if let Ok(id) = libc::pid_t::try_from(child.id())
        && id > 1
    {
        // SAFETY: the call takes no memory. It can fail only where the whole group has ended.
        unsafe {
            libc::kill(-id, libc::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_any_size_are_zeroed_aligned_and_writable() {
        for len in [
            0,
            1,
            15,
            64,
            1000,
            MAP_FROM / 4 - 1,
            MAP_FROM / 4,
            MAP_FROM,
            HUGE_PAGE + 3,
        ] {
            let mut buffer = Buffer::<f32>::zeroed(len, "test").expect("a few MiB are there");
            assert_eq!(buffer.len(), len);
            assert!(buffer.iter().all(|&x| x == 0.0));
            if len > 0 {
                assert_eq!(buffer.as_ptr().align_offset(LINE), 0);
            }
            if len * 4 >= MAP_FROM && cfg!(unix) {
                assert_eq!(buffer.as_ptr().align_offset(HUGE_PAGE), 0);
            }
            buffer.fill(1.5);
            buffer.touch();
            assert!(buffer.iter().all(|&x| x == 1.5));
        }
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        for len in [usize::MAX, usize::MAX / 4, isize::MAX as usize / 4 - 1, 1 << 58] {
            let error = Buffer::<f32>::zeroed(len, "test")
                .err()
                .expect("no machine has this much");
            assert!(
                matches!(error, BackendError::OutOfMemory { what: "test", .. }),
                "{error}"
            );
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_child_and_what_it_started_are_killed_together() {
        use std::io::Read;

        let mut command = std::process::Command::new("sh");
        command.args(["-c", "sleep 1000 & sleep 1000"]);
        command.stdout(std::process::Stdio::piped());
        tie_to_this_thread(&mut command);
        let mut child = command.spawn().expect("there is a shell");
        kill_group(&child);
        child.wait().expect("it ends");
        // The pipe ends only when nobody holds it.
        let mut said = String::new();
        child
            .stdout
            .take()
            .expect("piped")
            .read_to_string(&mut said)
            .expect("readable");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_child_goes_with_the_thread_that_started_it() {
        let started = std::thread::spawn(|| {
            let mut command = std::process::Command::new("sleep");
            command.arg("1000");
            tie_to_this_thread(&mut command);
            command.spawn().expect("there is a sleep")
        });
        let mut child = started.join().expect("no panic");
        let status = child.wait().expect("it ends");
        assert!(!status.success(), "{status}");
    }
}
