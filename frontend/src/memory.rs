//! How much memory this process can still have: what the machine has free, within every cgroup limit above
//! us and the limits of the process itself.

use std::fs;
use std::path::Path;

/// Bytes available now; absent where the system does not say (it is not Linux).
pub fn available_bytes() -> Option<usize> {
    available_below(Path::new("/"))
}

fn available_below(root: &Path) -> Option<usize> {
    let machine = field(
        &fs::read_to_string(root.join("proc/meminfo")).ok()?,
        "MemAvailable:",
    )? * 1024;
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let groups = groups.lines().filter_map(|line| group_headroom(root, line));
    let own = OWN_LIMITS
        .into_iter()
        .filter_map(|limit| own_headroom(root, limit));
    Some(groups.chain(own).fold(machine, usize::min))
}

/// Limits that a process may have of its own (`ulimit -v`, `ulimit -d`): the name in `/proc/self/limits`, and
/// in `/proc/self/status` what counts against it.
const OWN_LIMITS: [(&str, &str); 2] = [("Max address space", "VmSize:"), ("Max data size", "VmData:")];

/// What a limit of the process leaves; nothing where it has none.
fn own_headroom(root: &Path, (name, used): (&str, &str)) -> Option<usize> {
    let limits = fs::read_to_string(root.join("proc/self/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    let limit: usize = line.split_whitespace().next()?.parse().ok()?;
    let status = fs::read_to_string(root.join("proc/self/status")).ok()?;
    Some(limit.saturating_sub(field(&status, used)? * 1024))
}

/// What the tightest group on the way from the one in `line` (of `/proc/self/cgroup`) to the top leaves us.
fn group_headroom(root: &Path, line: &str) -> Option<usize> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let (mount, limit_file, used_field) = match controllers {
        "" => ("sys/fs/cgroup", "memory.max", "anon"),
        c if c.split(',').any(|c| c == "memory") => {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "total_rss")
        }
        _ => return None,
    };
    // Inside a container the path may be the host's, which is not mounted here; its root then still is.
    let ancestors = Path::new(path.trim_start_matches('/')).ancestors();
    let headroom = |group: &Path| {
        let folder = root.join(mount).join(group);
        let limit: usize = fs::read_to_string(folder.join(limit_file))
            .ok()?
            .trim()
            .parse()
            .ok()?;
        let statistics = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        // File pages are given back under pressure: only anonymous memory is gone.
        Some(limit.saturating_sub(field(&statistics, used_field).unwrap_or(0)))
    };
    ancestors.filter_map(headroom).min()
}

/// The number after `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<usize> {
    let mut words = text.lines().map(str::split_whitespace);
    words.find_map(|mut line| (line.next()? == name).then(|| line.next()?.parse().ok())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary directory");
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("has one")).expect("writable");
            fs::write(path, content).expect("writable");
        }
        root
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n");

    #[test]
    fn without_limits_it_is_what_the_machine_has() {
        let root = machine(&[MEMINFO, ("proc/self/cgroup", "0::/\n")]);
        assert_eq!(available_below(root.path()), Some(8_192_000));
        assert_eq!(available_below(machine(&[]).path()), None);
    }

    #[test]
    fn the_tightest_group_of_version_2_counts_less_what_is_used() {
        let root = machine(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/memory.max", "1000000\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 300000\nfile 600000\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
        ]);
        assert_eq!(available_below(root.path()), Some(700_000));
    }

    #[test]
    fn limits_of_the_process_count_less_what_it_has() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max data size             unlimited            unlimited            bytes     \n\
                      Max address space         1000000              unlimited            bytes     \n";
        let root = machine(&[
            MEMINFO,
            ("proc/self/limits", limits),
            (
                "proc/self/status",
                "Name:\tarbora\nVmSize:\t     300 kB\nVmData:\t     100 kB\n",
            ),
        ]);
        assert_eq!(available_below(root.path()), Some(1_000_000 - 300 * 1024));
    }

    #[test]
    fn version_1_and_paths_of_the_host_work_too() {
        let root = machine(&[
            MEMINFO,
            ("proc/self/cgroup", "3:cpu:/x\n2:memory:/docker/abc\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "5000000\n"),
            ("sys/fs/cgroup/memory/memory.stat", "total_rss 1000000\n"),
        ]);
        assert_eq!(available_below(root.path()), Some(4_000_000));
    }
}
