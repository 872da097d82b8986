//! What a report says of the machine it ran on, and of a process on it.

use std::fs;
use std::thread;

use crate::http::BenchError;

/// CPU model and the number of CPUs this process may use.
pub(crate) fn describe() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(": "))
            .map(|(_, value)| value.to_owned())
    };
    let model = field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let n_cpus = thread::available_parallelism().map_or(1, usize::from);
    format!("{model}, {n_cpus} CPUs")
}

/// Resident memory of process `pid` in KiB (`VmRSS` of `/proc/PID/status`).
pub(crate) fn resident_kib(pid: u32) -> Result<u64, BenchError> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path)?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.ok_or(BenchError::Answer {
        field: "VmRSS",
        body: path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_resident() {
        assert!(resident_kib(std::process::id()).expect("Linux has /proc") > 100);
        assert!(describe().ends_with("CPUs"));
    }
}
