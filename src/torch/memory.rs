//! Available memory, and the return of freed memory to the system.

use std::path::Path;

/// Returns freed memory to the system. The C library keeps it otherwise: several hundred megabytes after many tensors
/// of middle size.
#[cfg(target_env = "gnu")]
pub fn trim() {
    // SAFETY: passes no pointer, and may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Size of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Asks the system to back new memory by huge pages, before it is first written: a gigabyte then needs 512 page faults
/// instead of 262,144, which would take longer than reading the weights. Does nothing if the system has none.
pub fn prefer_huge_pages(data: *mut u8, bytes: usize) {
    let offset = data.align_offset(HUGE_PAGE);
    let Some(rest) = bytes.checked_sub(offset) else {
        return;
    };
    let length = rest - rest % HUGE_PAGE;
    if length == 0 {
        return;
    }
    // SAFETY: the range is whole pages inside the caller's memory; MADV_HUGEPAGE changes neither contents nor validity,
    // and a kernel that does not know it answers with an error.
    unsafe {
        libc::madvise(data.wrapping_add(offset).cast(), length, libc::MADV_HUGEPAGE);
    }
}

/// Does nothing: only the GNU C library keeps freed memory.
#[cfg(not(target_env = "gnu"))]
pub fn trim() {}

/// Returns the available memory of the host in bytes; `None` if it is unknown.
///
/// It is the minimum of what the system, the control groups of this process (of a container, or of a service) and the limit
/// of the address space (`ulimit -v`) leave; page cache that is not mapped counts as free. `mapped` bytes of the memory that will
/// be used are in maps of this process, and need no more of its address space.
pub fn available(mapped: u64) -> Option<u64> {
    let address_space = address_space().map(|left| left.saturating_add(mapped));
    [physical(), address_space].into_iter().flatten().min()
}

/// Returns what [`available`] returns without the limit of the address space: memory whose use is not refused, but ends the
/// process if there is too little.
pub fn physical() -> Option<u64> {
    let groups = control_groups(Path::new("/sys/fs/cgroup"), &own_groups());
    [system(), groups].into_iter().flatten().min()
}

fn system() -> Option<u64> {
    system_available(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// Reads the text of `/proc/meminfo` (proc_meminfo(5)): `MemAvailable` without `Mapped`. The system counts page cache as
/// available, but mapped pages are in use: the weights of loaded models are mapped.
fn system_available(text: &str) -> Option<u64> {
    let bytes = |key: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kibibytes.saturating_mul(1024))
    };
    Some(bytes("MemAvailable:")?.saturating_sub(bytes("Mapped:").unwrap_or(0)))
}

/// Returns what `RLIMIT_AS` leaves, if there is such a limit; the address space in use is the first number of
/// `/proc/self/statm`, in pages.
fn address_space() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` has room for the answer.
    let failed = unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) } != 0;
    if failed || limit.rlim_cur == libc::RLIM_INFINITY {
        return None;
    }
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().next()?.parse().ok()?;
    // SAFETY: passes a number.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    Some(limit.rlim_cur.saturating_sub(pages.saturating_mul(page)))
}

/// Returns the text of `/proc/self/cgroup` (cgroups(7)).
fn own_groups() -> String {
    std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

/// Returns the least of what the limits of a process's control group and of the groups around it leave. `groups` is its
/// `/proc/self/cgroup`. In a container the group may have another path, or be the root of what is mounted.
fn control_groups(root: &Path, groups: &str) -> Option<u64> {
    let mut found = vec![root.to_path_buf(), root.join("memory")];
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let hierarchy = match controllers {
            "" => root.to_path_buf(),
            _ if controllers.split(',').any(|controller| controller == "memory") => root.join("memory"),
            _ => continue,
        };
        let path = Path::new(path.trim_start_matches('/'));
        found.extend(path.ancestors().map(|ancestor| hierarchy.join(ancestor)));
    }
    found.iter().filter_map(|group| control_group(group)).min()
}

/// Returns what the limit of one control group leaves (Linux, `Documentation/admin-guide/cgroup-v2.rst`, and
/// `cgroup-v1/memory.rst`).
fn control_group(root: &Path) -> Option<u64> {
    let number = |path: &str| -> Option<u64> { std::fs::read_to_string(root.join(path)).ok()?.trim().parse().ok() };
    let figure = |path: &str, key: &str| -> u64 {
        let text = std::fs::read_to_string(root.join(path)).unwrap_or_default();
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
            .unwrap_or(0)
    };
    // Mapped cache is in use: the weights of loaded models are mapped.
    let cache = |path: &str, prefix: &str, mapped: &str| -> u64 {
        let figure = |name: &str| figure(path, &format!("{prefix}{name} "));
        (figure("inactive_file") + figure("active_file")).saturating_sub(figure(mapped))
    };
    // "max" is not a number: there is no limit.
    let (limit, used, cache) = if let Some(limit) = number("memory.max") {
        let cache = cache("memory.stat", "", "file_mapped");
        (limit, number("memory.current")?, cache)
    } else {
        (
            number("memory.limit_in_bytes")?,
            number("memory.usage_in_bytes")?,
            cache("memory.stat", "total_", "mapped_file"),
        )
    };
    Some(limit.saturating_sub(used.saturating_sub(cache)))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn group(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn system_counts_mapped_page_cache_as_used() {
        let text = "MemTotal:  9000 kB\nMemAvailable:    8000 kB\nActive(file): 6000 kB\nMapped:   5000 kB\n";
        assert_eq!(system_available(text), Some(3000 * 1024));
        assert_eq!(system_available("MemAvailable: 80 kB\n"), Some(80 * 1024));
        assert_eq!(system_available("MemTotal: 80 kB\n"), None);
        assert!(system().is_some());
    }

    #[test]
    fn control_group_counts_unmapped_page_cache_as_free() {
        let two = group(&[
            ("memory.max", "1000\n"),
            ("memory.current", "700\n"),
            (
                "memory.stat",
                "anon 1\nfile_mapped 50\ninactive_file 200\nactive_file 100\n",
            ),
        ]);
        assert_eq!(control_groups(two.path(), "0::/\n"), Some(550));
        let one = group(&[
            ("memory/memory.limit_in_bytes", "1000"),
            ("memory/memory.usage_in_bytes", "400"),
            (
                "memory/memory.stat",
                "total_mapped_file 50\ntotal_inactive_file 100\ntotal_active_file 10\n",
            ),
        ]);
        assert_eq!(control_groups(one.path(), "4:memory:/\n"), Some(660));
        let none = group(&[("memory.max", "max\n")]);
        assert_eq!(control_groups(none.path(), "0::/\n"), None);
    }

    #[test]
    fn control_groups_around_the_own_one_count_too() {
        let two = group(&[
            ("a.slice/memory.max", "500"),
            ("a.slice/memory.current", "100"),
            ("a.slice/b.scope/memory.max", "max"),
            ("a.slice/b.scope/memory.current", "50"),
            ("other/memory.max", "1"),
            ("other/memory.current", "1"),
        ]);
        assert_eq!(control_groups(two.path(), "0::/a.slice/b.scope\n"), Some(400));
        assert_eq!(control_groups(two.path(), "0::/elsewhere\n"), None);
        let one = group(&[
            ("memory/memory.limit_in_bytes", "900"),
            ("memory/memory.usage_in_bytes", "100"),
            ("memory/a/memory.limit_in_bytes", "300"),
            ("memory/a/memory.usage_in_bytes", "100"),
            ("cpu/a/memory.limit_in_bytes", "1"),
        ]);
        assert_eq!(control_groups(one.path(), "5:cpu,cpuacct:/a\n4:memory:/a\n"), Some(200));
        assert_eq!(control_groups(one.path(), "4:memory:/docker/0123\n"), Some(800));
    }

    #[test]
    fn available_on_the_host_is_known() {
        assert!(available(0).unwrap() > 1 << 20);
    }
}
