//! Threads as the scheduler of the system sees them: CPU affinity, CPU time, priority.
//!
//! Everything here is a request or a question. Where the system does not know it (not Linux, no right), the
//! answer is `None` or `false`, and nothing has changed.

use std::time::Duration;

pub use imp::{CpuSet, OsThread, current_cpu, lower_priority};

/// Keeps the calling thread on one CPU. Returns whether the system agreed.
pub fn pin_to(cpu: usize) -> bool {
    match (OsThread::current(), CpuSet::one(cpu)) {
        (Some(thread), Some(set)) => thread.allow(&set),
        _ => false,
    }
}

#[cfg(target_os = "linux")]
mod imp {
    use super::Duration;

    /// CPUs by their ids, all below [`libc::CPU_SETSIZE`].
    #[derive(Clone, Copy)]
    pub struct CpuSet(libc::cpu_set_t);

    impl PartialEq for CpuSet {
        fn eq(&self, other: &CpuSet) -> bool {
            // SAFETY: compares the bits of two sets.
            unsafe { libc::CPU_EQUAL(&self.0, &other.0) }
        }
    }

    impl Eq for CpuSet {}

    impl CpuSet {
        /// No CPU.
        fn empty() -> CpuSet {
            // SAFETY: cpu_set_t is plain bits; zero is the empty set.
            CpuSet(unsafe { std::mem::zeroed() })
        }

        /// The set of that CPU alone; `None` where no set can hold the id.
        pub fn one(cpu: usize) -> Option<CpuSet> {
            if cpu >= libc::CPU_SETSIZE as usize {
                return None;
            }
            let mut set = CpuSet::empty();
            // SAFETY: `cpu` is within the set.
            unsafe { libc::CPU_SET(cpu, &mut set.0) };
            Some(set)
        }

        /// Where `thread` may run.
        pub fn allowed(thread: OsThread) -> Option<CpuSet> {
            let mut set = CpuSet::empty();
            // SAFETY: the size given is that of the set.
            let got = unsafe { libc::sched_getaffinity(thread.id, size_of::<libc::cpu_set_t>(), &mut set.0) };
            (got == 0).then_some(set)
        }

        /// The set without `cpu`.
        #[must_use]
        pub fn without(mut self, cpu: usize) -> CpuSet {
            if cpu < libc::CPU_SETSIZE as usize {
                // SAFETY: `cpu` is within the set.
                unsafe { libc::CPU_CLR(cpu, &mut self.0) };
            }
            self
        }

        /// Number of CPUs.
        pub fn len(&self) -> usize {
            // SAFETY: counts the bits of the set.
            usize::try_from(unsafe { libc::CPU_COUNT(&self.0) }).unwrap_or(0)
        }

        /// Whether there is none.
        pub fn is_empty(&self) -> bool {
            self.len() == 0
        }

        /// Ids, ascending.
        pub fn ids(&self) -> impl Iterator<Item = usize> + '_ {
            // SAFETY: CPU_ISSET reads bit `cpu` of a set of CPU_SETSIZE bits.
            (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &self.0) })
        }
    }

    impl std::fmt::Debug for CpuSet {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_list().entries(self.ids()).finish()
        }
    }

    /// Handle of a thread of this process. It means nothing once the thread has ended.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct OsThread {
        id: libc::pid_t,
        clock: libc::clockid_t,
    }

    impl OsThread {
        /// The calling thread.
        pub fn current() -> Option<OsThread> {
            let mut clock = 0;
            // SAFETY: gettid always succeeds; the calling thread is alive, and `clock` is written to.
            let (id, error) = unsafe {
                (
                    libc::gettid(),
                    libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock),
                )
            };
            (error == 0).then_some(OsThread { id, clock })
        }

        /// The system's number of it.
        pub fn number(self) -> i32 {
            self.id
        }

        /// CPU time the thread used so far. It goes on while the thread runs on a CPU, and stands still while
        /// the thread sleeps or waits for one.
        pub fn cpu_time(self) -> Option<Duration> {
            // SAFETY: timespec is plain numbers.
            let mut time: libc::timespec = unsafe { std::mem::zeroed() };
            // SAFETY: `time` is written to. The clock of a thread that has ended is an error.
            let got = unsafe { libc::clock_gettime(self.clock, &mut time) };
            let seconds = u64::try_from(time.tv_sec).ok()?;
            (got == 0).then(|| Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0)))
        }

        /// Lets the thread run on `cpus` only, and moves it there at once where it runs or waits elsewhere.
        /// Returns whether the system agreed.
        pub fn allow(self, cpus: &CpuSet) -> bool {
            // SAFETY: the size given is that of the set.
            unsafe { libc::sched_setaffinity(self.id, size_of::<libc::cpu_set_t>(), &cpus.0) == 0 }
        }
    }

    /// CPU the calling thread runs on right now.
    pub fn current_cpu() -> Option<usize> {
        // SAFETY: the call has no obligations.
        usize::try_from(unsafe { libc::sched_getcpu() }).ok()
    }

    /// Lowers the priority of the calling thread by `steps` of niceness, of which there are 19: beside a
    /// thread of ordinary priority on the same core, 5 steps leave it a quarter of the time. Returns whether
    /// the system agreed.
    pub fn lower_priority(steps: u8) -> bool {
        // SAFETY: on Linux the calls concern the calling thread only, and have no obligations.
        unsafe {
            let before = libc::getpriority(libc::PRIO_PROCESS, 0);
            libc::setpriority(libc::PRIO_PROCESS, 0, before + libc::c_int::from(steps)) == 0
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use super::Duration;

    /// CPUs by their ids. There is no such set on this system.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum CpuSet {}

    impl CpuSet {
        /// The set of that CPU alone.
        pub fn one(_cpu: usize) -> Option<CpuSet> {
            None
        }

        /// Where `thread` may run.
        pub fn allowed(thread: OsThread) -> Option<CpuSet> {
            match thread {}
        }

        /// The set without `cpu`.
        #[must_use]
        pub fn without(self, _cpu: usize) -> CpuSet {
            match self {}
        }

        /// Number of CPUs.
        pub fn len(&self) -> usize {
            match *self {}
        }

        /// Whether there is none.
        pub fn is_empty(&self) -> bool {
            match *self {}
        }

        /// Ids, ascending.
        pub fn ids(&self) -> std::iter::Empty<usize> {
            match *self {}
        }
    }

    /// Handle of a thread. There is none on this system.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum OsThread {}

    impl OsThread {
        /// The calling thread.
        pub fn current() -> Option<OsThread> {
            None
        }

        /// The system's number of it.
        pub fn number(self) -> i32 {
            match self {}
        }

        /// CPU time the thread used so far.
        pub fn cpu_time(self) -> Option<Duration> {
            match self {}
        }

        /// Lets the thread run on `cpus` only. Returns whether the system agreed.
        pub fn allow(self, _cpus: &CpuSet) -> bool {
            match self {}
        }
    }

    /// CPU the calling thread runs on.
    pub fn current_cpu() -> Option<usize> {
        None
    }

    /// Lowers the priority of the calling thread. Returns whether the system agreed.
    pub fn lower_priority(_steps: u8) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_not_pinned_to_a_cpu_that_no_set_can_hold() {
        assert!(!pin_to(usize::MAX));
    }

    #[cfg(target_os = "linux")]
    mod linux {
        use std::sync::atomic::{AtomicBool, Ordering};
        use std::sync::mpsc::sync_channel;

        use super::*;

        fn own_cpus() -> CpuSet {
            let this = OsThread::current().expect("Linux knows threads");
            CpuSet::allowed(this).expect("it lives")
        }

        #[test]
        fn a_thread_can_be_pinned_to_an_allowed_cpu() {
            let cpu = own_cpus().ids().last().expect("it runs somewhere");
            std::thread::spawn(move || {
                assert!(pin_to(cpu));
                assert_eq!(Some(own_cpus()), CpuSet::one(cpu));
                assert_eq!(current_cpu(), Some(cpu));
            })
            .join()
            .expect("the pinned thread ends");
        }

        #[test]
        fn another_thread_can_be_moved() {
            let (tell, told) = sync_channel(1);
            let (wake, woken) = sync_channel::<()>(0);
            let thread = std::thread::spawn(move || {
                tell.send(OsThread::current().expect("Linux knows threads"))
                    .expect("somebody listens");
                woken.recv().expect("it is woken");
                own_cpus()
            });
            let other = told.recv().expect("it says who it is");
            let last = CpuSet::one(own_cpus().ids().last().expect("it runs somewhere")).expect("it is a CPU");
            assert!(other.allow(&last));
            wake.send(()).expect("it waits");
            assert_eq!(thread.join().expect("it ends"), last);
        }

        #[test]
        fn a_set_is_its_ids() {
            let set = CpuSet::one(7).expect("sets have 1024 bits");
            assert_eq!((set.len(), set.ids().collect::<Vec<_>>()), (1, vec![7]));
            assert!(set.without(7).is_empty());
            assert_eq!(set.without(8).without(usize::MAX), set);
            assert_eq!(CpuSet::one(1 << 20), None);
        }

        #[test]
        fn cpu_time_stands_still_while_a_thread_sleeps_and_goes_on_while_it_runs() {
            let (tell, told) = sync_channel(1);
            let stop = std::sync::Arc::new(AtomicBool::new(false));
            let stopped = std::sync::Arc::clone(&stop);
            let (wake, woken) = sync_channel::<()>(0);
            let thread = std::thread::spawn(move || {
                tell.send(OsThread::current().expect("Linux knows threads"))
                    .expect("somebody listens");
                woken.recv().expect("it is woken");
                while !stopped.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            let other = told.recv().expect("it says who it is");
            // Until it sleeps, its time goes on.
            let mut before = other.cpu_time().expect("it lives");
            loop {
                std::thread::yield_now();
                let now = other.cpu_time().expect("it lives");
                if now == before {
                    break;
                }
                before = now;
            }
            wake.send(()).expect("it waits");
            while other.cpu_time().expect("it lives") == before {
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
            thread.join().expect("it ends");
        }

        #[test]
        fn a_priority_is_lowered_for_one_thread_only() {
            let nice = |id: OsThread| -> i32 {
                let path = format!("/proc/self/task/{}/stat", id.number());
                let stat = std::fs::read_to_string(path).expect("it lives");
                let fields = stat.rsplit_once(") ").expect("the name is in parentheses").1;
                fields
                    .split(' ')
                    .nth(16)
                    .expect("field 19")
                    .parse()
                    .expect("a number")
            };
            let this = OsThread::current().expect("Linux knows threads");
            let before = nice(this);
            std::thread::spawn(move || {
                assert!(lower_priority(3));
                let lowered = nice(OsThread::current().expect("Linux knows threads"));
                assert_eq!(lowered, (before + 3).min(19));
            })
            .join()
            .expect("it ends");
            assert_eq!(nice(this), before);
        }
    }
}
