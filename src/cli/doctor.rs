//! `tailwater doctor`: what this kernel and this host allow a server, each with its cause and its cure.
//!
//! Every check is two things: something that looks at the host, and a pure function that judges what was seen.
//! PASS is as good as it gets; WARN means that a server runs with a fallback, or runs into a limit early; FAIL
//! means that it does not run. Nothing is changed; one temporary file is made in the data folder and removed.

use std::fmt;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use indicatif::BinaryBytes;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::process::Resource;
use serde::Serialize;

use crate::config::{Config, Sources};
use crate::ring;

use super::failure::{ExitStatus, Failure};

/// The oldest kernel whose rings can be waited for with a timeout, and drop no completion.
const KERNEL_NEEDED: (u32, u32) = (5, 11);
/// The oldest kernel where completions interrupt nobody (DEFER_TASKRUN).
const KERNEL_WANTED: (u32, u32) = (6, 1);
/// Files that are open besides connections: rings, segments, listeners, the catalog.
const OPEN_FILES_RESERVE: u64 = 512;
/// What direct writes are aligned to.
const ALIGNMENT_BYTES: usize = 4096;
/// The smallest disk that the defaults work on, and one with room for more than a try.
const FREE_BYTES_NEEDED: u64 = 128 << 20;
const FREE_BYTES_WANTED: u64 = 1 << 30;
/// Connections that come in one burst and must wait for their accept.
const BACKLOG_WANTED: u64 = 1024;
/// One connection's buffer for 400 Mbit/s over a line of 80 ms.
const SOCKET_BUFFER_BYTES_WANTED: u64 = 4 << 20;
/// The capability to lock memory without a limit, as a bit in /proc/self/status.
const CAP_IPC_LOCK: u32 = 14;

/// Say what this host allows a server, and what to do about the rest
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// The data folder of the server; need not exist yet [default: as `tailwater serve` would take it]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// The configuration file of the server [env: TAILWATER_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Looks at the host and prints what was found.
///
/// # Errors
/// Where a server could not run.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let config = Config::resolve(&Sources {
        flags: arguments.data.map(|data| ("data", data)).into_iter().collect(),
        environment: std::env::vars_os().collect(),
        file: arguments.config,
    })?;
    let findings = examine(&config);

    let text = match arguments.json {
        true => serde_json::to_string_pretty(&findings).expect("findings are plain data") + "\n",
        false => findings.iter().map(Finding::to_string).collect(),
    };
    let _ = std::io::stdout().lock().write_all(text.as_bytes());

    let failed: Vec<_> = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Fail)
        .map(|finding| finding.check)
        .collect();
    match failed.as_slice() {
        [] => Ok(()),
        checks => {
            let message = format!("a server cannot run here because of: {}", checks.join(", "));
            Err(Failure::new(ExitStatus::Failed, message))
        }
    }
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
enum Verdict {
    Pass,
    Warn,
    Fail,
}

/// What a check found; where it is not a pass, with its cause and its cure.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
}

/// Why something is not as it should be, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// Why it is so, and what follows from it.
    pub cause: String,
    /// What to do about it.
    pub cure: String,
}

impl Finding {
    fn pass(check: &'static str, found: impl Into<String>) -> Finding {
        Finding { check, verdict: Verdict::Pass, found: found.into(), reason: None }
    }

    fn warn(check: &'static str, found: impl Into<String>, reason: Reason) -> Finding {
        Finding { check, verdict: Verdict::Warn, found: found.into(), reason: Some(reason) }
    }

    fn fail(check: &'static str, found: impl Into<String>, reason: Reason) -> Finding {
        Finding { check, verdict: Verdict::Fail, found: found.into(), reason: Some(reason) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Pass => "PASS",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        };
        writeln!(formatter, "{verdict}  {:<15} {}", self.check, self.found)?;
        if let Some(reason) = &self.reason {
            writeln!(formatter, "{:<22}cause: {}\n{:<22}cure:  {}", "", reason.cause, "", reason.cure)?;
        }
        Ok(())
    }
}

fn reason(cause: impl Into<String>, cure: impl Into<String>) -> Reason {
    Reason { cause: cause.into(), cure: cure.into() }
}

fn examine(config: &Config) -> Vec<Finding> {
    let arenas = config.arena_bytes as u64 * config.cores as u64;
    let open_files = rustix::process::getrlimit(Resource::Nofile).maximum;
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    let mut findings = vec![judge_kernel(&read_line("/proc/sys/kernel/osrelease"))];
    findings.extend(examine_ring(config, arenas));
    findings.push(judge_open_files(open_files, config.connections_max as u64));
    findings.push(judge_cores(config.cores, allowed));
    findings.extend(examine_data_folder(&config.data));
    findings.push(judge_backlog(read_line("/proc/sys/net/core/somaxconn").parse().ok()));
    findings.push(judge_socket_buffers(
        largest_buffer(&read_line("/proc/sys/net/ipv4/tcp_rmem")),
        largest_buffer(&read_line("/proc/sys/net/ipv4/tcp_wmem")),
    ));
    findings
}

/// The first line of a small file of the kernel's; empty where there is none.
fn read_line(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

fn judge_kernel(release: &str) -> Finding {
    const CHECK: &str = "kernel";
    let mut numbers = release.split(|character: char| !character.is_ascii_digit()).map(str::parse::<u32>);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => {
            let cause = "/proc/sys/kernel/osrelease does not say which kernel this is";
            return Finding::warn(CHECK, "unknown", reason(cause, "mount /proc"));
        }
    };
    if version < KERNEL_NEEDED {
        let cause = "its io_uring cannot wait with a timeout, and may drop completions";
        Finding::fail(CHECK, release, reason(cause, "run Linux 5.11 or newer; 6.6 or newer is best"))
    } else if version < KERNEL_WANTED {
        let cause =
            "completions interrupt the core instead of waiting until it asks: more CPU for the same work";
        Finding::warn(CHECK, release, reason(cause, "run Linux 6.1 or newer; 6.6 or newer is best"))
    } else {
        Finding::pass(CHECK, release)
    }
}

/// Tries a ring, and to register one arena with it.
fn examine_ring(config: &Config, arenas_bytes: u64) -> Vec<Finding> {
    const CHECK: &str = "io_uring";
    let report = ring::probe(config.arena_bytes);
    match report.settings {
        Err(errno) => {
            vec![Finding::fail(CHECK, format!("no ring can be set up: {errno}"), why_no_ring(Some(errno)))]
        }
        Ok(settings) => {
            let ring = match settings.has_messages {
                true => Finding::pass(CHECK, "rings can be set up, with messages between them"),
                false => {
                    let cause =
                        "rings cannot send messages to each other, so cores wake each other by eventfd";
                    let found = "rings can be set up, without messages between them";
                    Finding::warn(CHECK, found, reason(cause, "run Linux 5.18 or newer"))
                }
            };
            let limit = match may_lock_memory(&status_field("CapEff")) {
                true => None,
                false => rustix::process::getrlimit(Resource::Memlock).current,
            };
            vec![ring, judge_locked_memory(limit, arenas_bytes, report.registration)]
        }
    }
}

/// Why the kernel refused to set up a ring, and what to do about it.
pub fn why_no_ring(errno: Option<Errno>) -> Reason {
    judge_refusal(errno, &read_line("/proc/sys/kernel/io_uring_disabled"), &status_field("Seccomp"))
}

fn judge_refusal(errno: Option<Errno>, disabled: &str, seccomp: &str) -> Reason {
    let filtered = seccomp == "2";
    match (errno, disabled) {
        (_, "2") => reason(
            "kernel.io_uring_disabled is 2: io_uring is off for every process",
            "sysctl kernel.io_uring_disabled=0, and in /etc/sysctl.d to keep it",
        ),
        (Some(Errno::PERM | Errno::ACCESS), "1") => reason(
            "kernel.io_uring_disabled is 1: io_uring is off for processes without privilege",
            "sysctl kernel.io_uring_disabled=0, or run as a member of the group in kernel.io_uring_group",
        ),
        (Some(Errno::PERM | Errno::ACCESS | Errno::NOSYS), _) if filtered => reason(
            "a seccomp filter refuses io_uring_setup, as the default profiles of container runtimes do",
            "allow io_uring_setup, io_uring_enter and io_uring_register in the profile (Docker and Podman: \
             --security-opt seccomp=PROFILE; Kubernetes: securityContext.seccompProfile)",
        ),
        (Some(Errno::PERM | Errno::ACCESS), _) => reason(
            "a security module refuses it",
            "look for denials of io_uring in the audit log (ausearch -m AVC), and allow it there",
        ),
        (Some(Errno::NOSYS | Errno::INVAL), _) => reason(
            "this kernel is older than Linux 5.11, or built without CONFIG_IO_URING",
            "run Linux 5.11 or newer; 6.6 or newer is best",
        ),
        (Some(Errno::NOMEM), _) => reason(
            "the limit of locked memory leaves no room for the queues of a ring",
            "raise it: LimitMEMLOCK=infinity in the systemd unit, or --ulimit memlock=-1 for a container",
        ),
        (Some(Errno::MFILE | Errno::NFILE), _) => reason(
            "no more files can be opened",
            "raise the limit: LimitNOFILE= in the systemd unit, or ulimit -n",
        ),
        _ => reason(
            "the kernel refused to set up a ring",
            "run `tailwater doctor`, and look into the kernel's log (dmesg)",
        ),
    }
}

/// The value of a field in /proc/self/status; empty where there is none.
fn status_field(name: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_default().trim().to_owned()
}

/// Whether the effective capabilities, in hexadecimal, lift the limit of locked memory.
fn may_lock_memory(capabilities: &str) -> bool {
    u64::from_str_radix(capabilities, 16).is_ok_and(|bits| bits >> CAP_IPC_LOCK & 1 == 1)
}

/// Judges the limit (None: there is none) against the arenas of all cores, which count together.
fn judge_locked_memory(limit: Option<u64>, arenas_bytes: u64, one: Result<(), Errno>) -> Finding {
    const CHECK: &str = "locked memory";
    const CURE: &str = "LimitMEMLOCK=infinity in the systemd unit, --ulimit memlock=-1 for a container, or \
                        `memlock` in /etc/security/limits.conf; or smaller arenas (--arena-bytes)";
    const FALLBACK: &str =
        "blocks are then written from memory that is not registered: more CPU for the same work";
    let needed = BinaryBytes(arenas_bytes);
    match (limit, one) {
        (Some(limit), _) if limit < arenas_bytes => {
            let found = format!("{} may be locked, the arenas of all cores are {needed}", BinaryBytes(limit));
            Finding::warn(CHECK, found, reason(format!("RLIMIT_MEMLOCK is too low; {FALLBACK}"), CURE))
        }
        (_, Err(errno)) => {
            let found = format!("an arena cannot be registered: {errno}");
            let cause = format!("the kernel refuses to lock so much memory for one ring; {FALLBACK}");
            Finding::warn(CHECK, found, reason(cause, CURE))
        }
        (limit, Ok(())) => {
            let limit =
                limit.map_or("no limit".to_owned(), |limit| format!("{} may be locked", BinaryBytes(limit)));
            Finding::pass(CHECK, format!("{limit}, the arenas of all cores are {needed}"))
        }
    }
}

/// Judges the hard limit, to which a server raises its own (None: there is none).
fn judge_open_files(limit: Option<u64>, connections_max: u64) -> Finding {
    const CHECK: &str = "open files";
    let needed = connections_max + OPEN_FILES_RESERVE;
    match limit {
        Some(limit) if limit < needed => {
            let cause =
                format!("RLIMIT_NOFILE is below the {needed} that connections_max and the store may need");
            let cure = format!(
                "LimitNOFILE={needed} in the systemd unit, or --ulimit nofile={needed} for a container; or a lower connections_max"
            );
            Finding::warn(CHECK, format!("at most {limit}"), reason(cause, cure))
        }
        Some(limit) => Finding::pass(CHECK, format!("at most {limit}")),
        None => Finding::pass(CHECK, "no limit"),
    }
}

fn judge_cores(cores: usize, allowed: usize) -> Finding {
    const CHECK: &str = "CPUs";
    let found = format!("{allowed} allowed, {cores} to be used");
    if cores > allowed {
        let cause =
            "cores share CPUs, because of the affinity or the cgroup's cpu.max: they wait for each other";
        let cure =
            format!("--cores {allowed}, or allow more (taskset, AllowedCPUs= and CPUQuota=, docker --cpus)");
        Finding::warn(CHECK, found, reason(cause, cure))
    } else {
        Finding::pass(CHECK, found)
    }
}

/// Looks at the data folder, or, where there is none yet, at the folder that it would be made in.
fn examine_data_folder(data: &Path) -> Vec<Finding> {
    const CHECK: &str = "data folder";
    let data = std::path::absolute(data).unwrap_or_else(|_| data.to_owned());
    let Some(folder) = data.ancestors().find(|path| path.exists()) else {
        let cure = "mount the disk, or give another folder with --data";
        return vec![Finding::fail(CHECK, "not there", reason("nothing on the way to it exists", cure))];
    };
    let shown = match folder == data {
        true => data.display().to_string(),
        false => format!("{} (to be made in {})", data.display(), folder.display()),
    };
    let file = match tempfile::NamedTempFile::new_in(folder) {
        Ok(file) => file,
        Err(error) => {
            let cause = format!("no file can be made in it: {}", error.kind());
            let cure = "give it to the user of the server (chown), or give another folder with --data";
            return vec![Finding::fail(CHECK, shown, reason(cause, cure))];
        }
    };
    let magic = rustix::fs::statfs(folder).map(|found| found.f_type as u64).ok();
    let free = rustix::fs::statvfs(folder).map(|found| found.f_bavail * found.f_frsize);
    vec![
        Finding::pass(CHECK, shown),
        judge_file_system(magic),
        judge_free_space(free),
        judge_direct_writes(try_direct_write(file.path()), direct_alignment(file.path())),
    ]
}

fn judge_file_system(magic: Option<u64>) -> Finding {
    const CHECK: &str = "file system";
    const WELL_KNOWN: &str = "put the data folder on ext4 or XFS, on a local disk";
    let warn = |name: &str, cause: &str| Finding::warn(CHECK, name, reason(cause, WELL_KNOWN));
    match magic {
        Some(0xEF53) => Finding::pass(CHECK, "ext4 (or ext3, ext2)"),
        Some(0x5846_5342) => Finding::pass(CHECK, "XFS"),
        Some(0x9123_683E) => {
            warn("btrfs", "it writes every block to a new place: recycled segments gain nothing")
        }
        Some(0x2FC1_2FC1) => {
            warn("ZFS", "it writes every block to a new place: recycled segments gain nothing")
        }
        Some(0x0102_1994) => {
            warn("tmpfs", "it is memory: nothing in it is on stable storage, whatever is promised")
        }
        Some(0x794C_7630) => warn(
            "overlayfs",
            "it is the writable layer of a container: gone with it, and slower than a volume",
        ),
        Some(0x6969) => warn("NFS", "every write goes over the network, and locks depend on the server"),
        Some(0x6573_5546) => warn("FUSE", "what a sync promises is up to a program"),
        Some(magic) => warn(&format!("type {magic:#x}"), "tailwater was not measured on it"),
        None => warn("unknown", "the system does not say"),
    }
}

fn judge_free_space(free: Result<u64, Errno>) -> Finding {
    const CHECK: &str = "free space";
    let cure = "free space, or put the data folder on a larger disk";
    match free {
        Err(errno) => {
            Finding::warn(CHECK, "unknown", reason(format!("the system does not say: {errno}"), cure))
        }
        Ok(bytes) => {
            let found = BinaryBytes(bytes).to_string();
            if bytes < FREE_BYTES_NEEDED {
                let cause = format!("the log needs {} to begin with", BinaryBytes(FREE_BYTES_NEEDED));
                Finding::fail(CHECK, found, reason(cause, cure))
            } else if bytes < FREE_BYTES_WANTED {
                Finding::warn(CHECK, found, reason("enough for a try, not for a node", cure))
            } else {
                Finding::pass(CHECK, found)
            }
        }
    }
}

/// Writes one aligned block past the page cache.
fn try_direct_write(path: &Path) -> Result<(), Errno> {
    let descriptor = rustix::fs::open(path, OFlags::RDWR | OFlags::DIRECT, Mode::empty())?;
    let memory = vec![0u8; 2 * ALIGNMENT_BYTES];
    let start = memory.as_ptr().align_offset(ALIGNMENT_BYTES);
    std::fs::File::from(descriptor)
        .write_all_at(&memory[start..start + ALIGNMENT_BYTES], 0)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// What the file system says that direct reads and writes must be aligned to: in memory, and in the file. Zero
/// where it has none; None where it does not say.
fn direct_alignment(path: &Path) -> Option<(u32, u32)> {
    let found = rustix::fs::statx(rustix::fs::CWD, path, AtFlags::empty(), StatxFlags::DIOALIGN).ok()?;
    let said = found.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    said.then_some((found.stx_dio_mem_align, found.stx_dio_offset_align))
}

fn judge_direct_writes(written: Result<(), Errno>, alignment: Option<(u32, u32)>) -> Finding {
    const CHECK: &str = "direct writes";
    let said = match alignment {
        Some((0, _) | (_, 0)) => "the file system says that it has none".to_owned(),
        Some((memory, position)) => format!("aligned to {memory} bytes in memory, {position} in the file"),
        None => "the system does not say the alignment".to_owned(),
    };
    match written {
        Ok(()) => Finding::pass(CHECK, format!("a block of {ALIGNMENT_BYTES} bytes was written; {said}")),
        Err(errno) => {
            let cause =
                "no O_DIRECT here: blocks go through the page cache, as safe, for more CPU and memory";
            let cure = "put the data folder on ext4 or XFS, on a disk with sectors of at most 4096 bytes";
            let found = format!("a block of {ALIGNMENT_BYTES} bytes was refused: {errno}; {said}");
            Finding::warn(CHECK, found, reason(cause, cure))
        }
    }
}

fn judge_backlog(backlog: Option<u64>) -> Finding {
    const CHECK: &str = "accept queue";
    let cure = "sysctl net.core.somaxconn=4096";
    match backlog {
        Some(backlog) if backlog >= BACKLOG_WANTED => Finding::pass(CHECK, format!("{backlog} connections")),
        Some(backlog) => {
            let cause =
                "net.core.somaxconn is low: in a burst, connections are dropped and come back a second later";
            Finding::warn(CHECK, format!("{backlog} connections"), reason(cause, cure))
        }
        None => Finding::warn(CHECK, "unknown", reason("net.core.somaxconn cannot be read", cure)),
    }
}

/// The largest size in a triple of least, default and largest.
fn largest_buffer(triple: &str) -> Option<u64> {
    triple.split_whitespace().nth(2)?.parse().ok()
}

fn judge_socket_buffers(receive: Option<u64>, send: Option<u64>) -> Finding {
    const CHECK: &str = "TCP buffers";
    let cure = "sysctl net.ipv4.tcp_rmem=\"4096 131072 6291456\" net.ipv4.tcp_wmem=\"4096 16384 4194304\"";
    let (Some(receive), Some(send)) = (receive, send) else {
        let cause = "net.ipv4.tcp_rmem and tcp_wmem cannot be read";
        return Finding::warn(CHECK, "unknown", reason(cause, cure));
    };
    let found = format!("up to {} to receive, {} to send", BinaryBytes(receive), BinaryBytes(send));
    if receive.min(send) < SOCKET_BUFFER_BYTES_WANTED {
        let cause = "one connection over a long line cannot fill it";
        Finding::warn(CHECK, found, reason(cause, cure))
    } else {
        Finding::pass(CHECK, found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_judged_by_their_version() {
        let table = [
            ("6.18.44-fc-v657", Verdict::Pass),
            ("6.1.0-18-amd64", Verdict::Pass),
            ("10.0", Verdict::Pass),
            ("6.0.19", Verdict::Warn),
            ("5.15.0-91-generic", Verdict::Warn),
            ("5.11.0", Verdict::Warn),
            ("5.10.209", Verdict::Fail),
            ("4.18.0-513.el8.x86_64", Verdict::Fail),
            ("", Verdict::Warn),
            ("linux", Verdict::Warn),
        ];
        for (release, verdict) in table {
            assert_eq!(judge_kernel(release).verdict, verdict, "{release:?}");
        }
    }

    #[test]
    fn a_refused_ring_is_blamed_on_what_refused_it() {
        let table = [
            (Some(Errno::PERM), "2", "2", "io_uring_disabled is 2"),
            (None, "2", "0", "io_uring_disabled is 2"),
            (Some(Errno::PERM), "1", "2", "io_uring_disabled is 1"),
            (Some(Errno::PERM), "0", "2", "seccomp"),
            (Some(Errno::PERM), "", "2", "seccomp"),
            (Some(Errno::NOSYS), "", "2", "seccomp"),
            (Some(Errno::PERM), "0", "0", "security module"),
            (Some(Errno::NOSYS), "", "0", "older than Linux 5.11"),
            (Some(Errno::NOMEM), "0", "0", "locked memory"),
            (Some(Errno::MFILE), "0", "0", "files"),
            (None, "0", "0", "the kernel refused"),
        ];
        for (errno, disabled, seccomp, blamed) in table {
            let reason = judge_refusal(errno, disabled, seccomp);
            assert!(reason.cause.contains(blamed), "{errno:?} {disabled:?} {seccomp:?}: {reason:?}");
        }
    }

    #[test]
    fn locked_memory_is_judged_for_all_arenas_together() {
        let verdict = |limit, one| judge_locked_memory(limit, 128 << 20, one).verdict;
        assert_eq!(verdict(Some(8 << 20), Err(Errno::NOMEM)), Verdict::Warn);
        assert_eq!(verdict(Some(64 << 20), Ok(())), Verdict::Warn, "one arena fits, two do not");
        assert_eq!(verdict(Some(128 << 20), Ok(())), Verdict::Pass);
        assert_eq!(verdict(None, Ok(())), Verdict::Pass);
        assert_eq!(verdict(None, Err(Errno::NOMEM)), Verdict::Warn);
    }

    #[test]
    fn the_capability_lifts_the_limit() {
        assert!(may_lock_memory("000001ffffffffff"));
        assert!(may_lock_memory("0000000000004000"));
        assert!(!may_lock_memory("ffffffffffffbfff"));
        assert!(!may_lock_memory("") && !may_lock_memory("none"));
    }

    #[test]
    fn limits_are_inclusive() {
        let table = [
            (judge_open_files(Some(10_512), 10_000), Verdict::Pass),
            (judge_open_files(Some(10_511), 10_000), Verdict::Warn),
            (judge_open_files(None, 10_000), Verdict::Pass),
            (judge_cores(2, 2), Verdict::Pass),
            (judge_cores(3, 2), Verdict::Warn),
            (judge_free_space(Ok(FREE_BYTES_NEEDED - 1)), Verdict::Fail),
            (judge_free_space(Ok(FREE_BYTES_NEEDED)), Verdict::Warn),
            (judge_free_space(Ok(FREE_BYTES_WANTED)), Verdict::Pass),
            (judge_backlog(Some(1024)), Verdict::Pass),
            (judge_backlog(Some(128)), Verdict::Warn),
            (judge_backlog(None), Verdict::Warn),
            (judge_socket_buffers(largest_buffer("4096\t131072\t6291456"), Some(4 << 20)), Verdict::Pass),
            (judge_socket_buffers(Some(6 << 20), Some(212_992)), Verdict::Warn),
            (judge_socket_buffers(largest_buffer(""), Some(4 << 20)), Verdict::Warn),
            (judge_file_system(Some(0xEF53)), Verdict::Pass),
            (judge_file_system(Some(0x0102_1994)), Verdict::Warn),
            (judge_direct_writes(Ok(()), Some((512, 512))), Verdict::Pass),
            (judge_direct_writes(Err(Errno::INVAL), Some((0, 0))), Verdict::Warn),
        ];
        for (finding, verdict) in table {
            assert_eq!(finding.verdict, verdict, "{finding}");
            assert_eq!(finding.reason.is_none(), verdict == Verdict::Pass, "{finding}");
        }
    }

    #[test]
    fn a_data_folder_that_is_not_there_yet_is_judged_by_where_it_would_be() {
        let parent = tempfile::tempdir().unwrap();
        let findings = examine_data_folder(&parent.path().join("not/yet"));
        assert_eq!(findings[0].verdict, Verdict::Pass);
        assert!(findings[0].found.contains("to be made in"), "{}", findings[0]);
        assert_eq!(findings.len(), 4);
        assert_eq!(parent.path().read_dir().unwrap().count(), 0, "nothing may be left behind");
    }

    #[test]
    fn a_file_in_the_way_of_the_data_folder_is_a_failure() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for path in [file.path().to_owned(), file.path().join("data")] {
            let findings = examine_data_folder(&path);
            assert_eq!(findings.iter().map(|finding| finding.verdict).collect::<Vec<_>>(), [Verdict::Fail]);
        }
    }

    #[test]
    fn findings_are_plain_json() {
        let json = |finding| serde_json::to_value::<Finding>(finding).unwrap();
        let passed =
            serde_json::json!({ "check": "CPUs", "verdict": "PASS", "found": "2 allowed, 2 to be used" });
        assert_eq!(json(judge_cores(2, 2)), passed);
        let warned = json(judge_backlog(Some(1)));
        assert!(warned["cause"].is_string() && warned["cure"].is_string(), "{warned}");
    }
}
