//! Memory, processor time and threads of a process, from `/proc`.

/// Clock ticks per second: `USER_HZ`, which is 100 on every Linux platform in use.
const CLOCK_TICKS_PER_SECOND: f64 = 100.0;

/// What a process uses.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Usage {
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// Processor time in seconds, user and system.
    pub cpu_seconds: f64,
    /// Threads.
    pub threads: u64,
}

/// What a process uses now; `pid` = `None` means this process. `None` if there is no such process,
/// or no `/proc`.
pub fn usage(pid: Option<u32>) -> Option<Usage> {
    let dir = pid.map_or_else(|| "/proc/self".to_owned(), |p| format!("/proc/{p}"));
    let stat = std::fs::read_to_string(format!("{dir}/stat")).ok()?;
    let (cpu_seconds, threads) = parse_stat(&stat)?;
    let status = std::fs::read_to_string(format!("{dir}/status")).unwrap_or_default();
    Some(Usage { resident_bytes: parse_resident_bytes(&status), cpu_seconds, threads })
}

fn parse_stat(stat: &str) -> Option<(f64, u64)> {
    // A program's name may hold blanks and parentheses: fields are counted after the last one.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |i: usize| fields.get(i)?.parse::<u64>().ok();
    Some(((number(11)? + number(12)?) as f64 / CLOCK_TICKS_PER_SECOND, number(17)?))
}

fn parse_resident_bytes(status: &str) -> u64 {
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_names_with_parentheses() {
        let stat = "42 (a) b)) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 7 0 100 1000 200";
        assert_eq!(parse_stat(stat), Some((3.0, 7)));
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn this_process_uses_something() {
        let usage = usage(None).expect("tests run on Linux");
        assert!(usage.resident_bytes > 1 << 20 && usage.threads >= 1);
        assert_eq!(super::usage(Some(u32::MAX)), None);
    }
}
