//! What a host may not allow: each ends with one clear sentence and its own exit code, or with a warning and a
//! fallback that works. `exit_codes.rs` has the rest of the codes.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{End, Server, content, eventually};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tailwater");
/// Nobody's user and group.
const NOBODY: u32 = 65_534;
const AS_NOBODY: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];

/// Whether this runs as root, who alone may do some things. In continuous integration it must.
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    assert!(is_root || std::env::var_os("CI").is_none_or(|ci| ci != "true"), "this test must be run as root");
    if !is_root {
        eprintln!("SKIPPED: this test needs root");
    }
    is_root
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A server that is not expected to start, run by `command`.
fn start(command: &[&str], program: &Path, data: &Path) -> Output {
    let mut words: Vec<&std::ffi::OsStr> = command.iter().map(std::ffi::OsStr::new).collect();
    words.push(program.as_os_str());
    let mut process = Command::new(words[0])
        .args(&words[1..])
        .args(["serve", "--cores", "2", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data"])
        .arg(data)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut introduction = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut introduction).unwrap();
    if !introduction.is_empty() {
        process.kill().unwrap();
        process.wait().unwrap();
        panic!("it has started on {}: {introduction}", data.display());
    }
    process.wait_with_output().unwrap()
}

#[track_caller]
fn assert_refused(output: &Output, code: i32, needed: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    let ours: Vec<&str> = error.lines().filter(|line| line.starts_with("tailwater: ")).collect();
    assert_eq!(ours.len(), 1, "one sentence: {error}");
    for needed in needed {
        assert!(ours[0].contains(needed), "without {needed:?}: {error}");
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A file system that is there as long as this is.
struct Mount {
    folder: tempfile::TempDir,
}

impl Mount {
    fn new(arguments: &[&str]) -> Mount {
        let mount = Mount { folder: folder() };
        fs::create_dir(mount.path()).unwrap();
        run(Command::new("mount").args(arguments).arg(mount.path()));
        mount
    }

    /// An ext4 of this size in a file.
    fn ext4(bytes: u64) -> Mount {
        let mount = Mount { folder: folder() };
        fs::create_dir(mount.path()).unwrap();
        let image = mount.folder.path().join("image");
        File::create(&image).unwrap().set_len(bytes).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(mount.path()));
        mount
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A killed process holds its files a moment longer.
        let unmounted = (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            Command::new("umount").arg(self.path()).output().is_ok_and(|output| output.status.success())
        });
        if !unmounted {
            let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
        }
    }
}

/// A place that every user can reach, with the program in it, and a folder that is nobody's.
struct Nobodys {
    folder: tempfile::TempDir,
}

impl Nobodys {
    fn new() -> Nobodys {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let nobodys = Nobodys { folder };
        fs::copy(PROGRAM, nobodys.program()).unwrap();
        fs::create_dir(nobodys.data()).unwrap();
        chown(nobodys.data(), Some(NOBODY), Some(NOBODY)).unwrap();
        nobodys
    }

    fn program(&self) -> PathBuf {
        self.folder.path().join("tailwater")
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}

#[test]
fn a_data_folder_that_is_none_ends_with_5_and_is_left_as_it_is() {
    let place = folder();
    let file = place.path().join("file");
    fs::write(&file, "x").unwrap();
    assert_refused(&start(&[], PROGRAM.as_ref(), &file), 5, &["cannot make the data folder"]);
    assert_refused(&start(&[], PROGRAM.as_ref(), &file.join("below")), 5, &["cannot make the data folder"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "x");

    let foreign = place.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.tex"), "x").unwrap();
    assert_refused(&start(&[], PROGRAM.as_ref(), &foreign), 5, &["not a data folder of tailwater", "--data"]);
    assert_eq!(fs::read_dir(&foreign).unwrap().count(), 1);

    assert_refused(&start(&[], PROGRAM.as_ref(), Path::new("/proc/tailwater")), 5, &["/proc/tailwater"]);
}

#[test]
fn a_data_folder_with_another_stores_segments_ends_with_5() {
    let mut mine = Server::start_with(&["--cores", "1"]);
    let mut other = Server::start_with(&["--cores", "1"]);
    mine.put("/b/k", b"mine");
    other.put("/b/k", b"other");
    mine.terminate();
    other.terminate();
    let segment = |server: &Server| server.data_path().join("segments/000000000001.segment");
    let kept = fs::read(segment(&mine)).unwrap();
    fs::copy(segment(&other), segment(&mine)).unwrap();
    assert_refused(&start(&[], PROGRAM.as_ref(), &mine.data_path()), 5, &["another store"]);
    fs::write(segment(&mine), kept).unwrap();
    mine.restart();
    mine.assert_sealed("/b/k", b"mine");
}

#[test]
fn a_data_folder_that_cannot_be_written_ends_with_5() {
    if !is_root() {
        return;
    }
    let nobodys = Nobodys::new();
    let roots = nobodys.folder.path().join("roots");
    fs::create_dir(&roots).unwrap();
    let output = start(&AS_NOBODY, &nobodys.program(), &roots);
    assert_refused(&output, 5, &["data folder", "Permission denied"]);
    let output = start(&AS_NOBODY, &nobodys.program(), &nobodys.folder.path().join("new"));
    assert_refused(&output, 5, &["data folder", "Permission denied"]);
    assert_eq!(fs::read_dir(&roots).unwrap().count(), 0);

    let read_only = Mount::new(&["-t", "tmpfs", "-o", "ro", "none"]);
    let output = start(&[], PROGRAM.as_ref(), &read_only.path());
    assert_refused(&output, 5, &["data folder", "Read-only file system"]);
}

#[test]
fn a_second_server_on_the_same_data_ends_with_6_and_the_first_goes_on() {
    let mut server = Server::start();
    server.put("/b/k", b"hello");
    let mut put = server.begin_put("/b/live", None, &[]);
    put.send(b"hello");
    assert_refused(&start(&[], PROGRAM.as_ref(), &server.data_path()), 6, &["in use by another process"]);
    put.send(b" world");
    put.finish_created();
    server.assert_sealed("/b/live", b"hello world");
    // Whoever is gone, however it went, holds nothing any more.
    server.kill();
    server.restart();
    server.assert_sealed("/b/k", b"hello");
}

/// Runs a program under a filter that answers io_uring_setup with this error.
fn without_io_uring(errno: i32) -> [String; 3] {
    let script = format!(
        "import ctypes, os, struct, sys\n\
         code = [(0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x00050000 | {errno}), (0x06, 0, 0, 0x7fff0000)]\n\
         code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *line) for line in code))\n\
         program = ctypes.create_string_buffer(struct.pack('HxxxxxxP', 4, ctypes.addressof(code)))\n\
         libc = ctypes.CDLL(None, use_errno=True)\n\
         zero = ctypes.c_ulong(0)\n\
         if libc.prctl(38, ctypes.c_ulong(1), zero, zero, zero): sys.exit('no_new_privs')\n\
         if libc.prctl(22, ctypes.c_ulong(2), program, zero, zero): sys.exit('seccomp')\n\
         os.execv(sys.argv[1], sys.argv[1:])\n"
    );
    ["python3".to_owned(), "-c".to_owned(), script]
}

#[test]
fn no_io_uring_ends_with_7_and_says_who_refuses_it() {
    let place = folder();
    let data = place.path().join("data");
    // EPERM and ENOSYS: what the profiles of container runtimes answer.
    for (errno, reason) in [(1, "seccomp"), (38, "seccomp")] {
        let command = without_io_uring(errno);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        assert_refused(&start(&command, PROGRAM.as_ref(), &data), 7, &["no ring can be set up", reason]);
        assert!(!data.exists(), "nothing was to be made");
        for subcommand in [&["demo"][..], &["doctor", "--data"]] {
            let mut wrapped = Command::new(command[0]);
            wrapped.args(&command[1..]).arg(PROGRAM).args(subcommand);
            if subcommand.len() > 1 {
                wrapped.arg(place.path());
            }
            let output = wrapped.output().unwrap();
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            assert!(!output.status.success() && text.contains(reason), "{subcommand:?}: {text}");
            assert!(!text.contains("panicked"), "{subcommand:?}: {text}");
        }
    }
}

/// Something on this machine that only one test may change or depend on at a time.
fn the_only_one() -> File {
    let file = File::create(std::env::temp_dir().join("tailwater-tests.lock")).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    file
}

/// A system setting that is put back.
struct Sysctl {
    path: &'static str,
    former: String,
}

impl Sysctl {
    fn set(path: &'static str, value: &str) -> Option<Sysctl> {
        let former = fs::read_to_string(path).ok()?;
        fs::write(path, value).ok()?;
        Some(Sysctl { path, former })
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        fs::write(self.path, &self.former).unwrap();
    }
}

#[test]
fn io_uring_that_the_system_setting_forbids_ends_with_7_and_names_the_setting() {
    if !is_root() {
        return;
    }
    let _only = the_only_one();
    // 1 forbids it to those without privileges, and nothing else on this machine is disturbed.
    let Some(_setting) = Sysctl::set("/proc/sys/kernel/io_uring_disabled", "1") else {
        eprintln!("SKIPPED: this kernel has no setting to forbid io_uring, or does not let us change it");
        return;
    };
    let nobodys = Nobodys::new();
    let output = start(&AS_NOBODY, &nobodys.program(), &nobodys.data());
    assert_refused(&output, 7, &["no ring can be set up", "io_uring_disabled"]);
}

#[test]
fn a_memlock_limit_too_small_for_the_arena_is_a_warning_and_works() {
    if !is_root() {
        return;
    }
    let _only = the_only_one();
    let nobodys = Nobodys::new();
    // What most systems give to everybody.
    let command = [&AS_NOBODY[..], &["prlimit", "--memlock=8388608:8388608"]].concat();
    let mut server = Server::start_at(&nobodys.data(), &["--cores", "2"], &command, &nobodys.program());
    let introduction = server.introduction();
    assert!(introduction.contains("note") && introduction.contains("memlock"), "{introduction}");
    assert!(introduction.contains("LimitMEMLOCK"), "the cure: {introduction}");
    let bytes = content(1, 5 << 20);
    server.put("/b/k", &bytes);
    server.assert_sealed("/b/k", &bytes);
    follow_something(&server);
    server.kill();
    server.restart();
    server.assert_sealed("/b/k", &bytes);
}

#[test]
fn a_memlock_limit_too_small_for_a_ring_ends_with_7_and_names_the_limit() {
    if !is_root() {
        return;
    }
    let _only = the_only_one();
    let nobodys = Nobodys::new();
    // Not all kernels count the queues of a ring; where this one does not, the arena is what does not fit.
    let mut probe = Command::new(AS_NOBODY[0]);
    probe.args(&AS_NOBODY[1..]).args(["prlimit", "--memlock=4096:4096"]).arg(nobodys.program());
    let doctor = probe.args(["doctor", "--data"]).arg(nobodys.data()).output().unwrap();
    let command = [&AS_NOBODY[..], &["prlimit", "--memlock=4096:4096"]].concat();
    if doctor.status.success() {
        let server = Server::start_at(&nobodys.data(), &["--cores", "2"], &command, &nobodys.program());
        assert!(server.introduction().contains("memlock"), "{}", server.introduction());
    } else {
        let output = start(&command, &nobodys.program(), &nobodys.data());
        assert_refused(&output, 7, &["no ring can be set up", "locked memory", "LimitMEMLOCK"]);
    }
}

#[track_caller]
fn follow_something(server: &Server) {
    let mut put = server.begin_put("/b/followed", None, &[]);
    let mut follower = server.follow("/b/followed");
    for seed in 0..5 {
        put.send(&content(seed, 100_000));
        follower.expect(&content(seed, 100_000));
    }
    put.finish_created();
    follower.expect_rest(b"");
}

#[test]
fn a_file_system_without_direct_writes_is_a_warning_and_works() {
    if !is_root() {
        return;
    }
    let mount = Mount::new(&["-t", "ramfs", "none"]);
    let data = mount.path().join("data");
    let mut server = Server::start_at(&data, &["--cores", "2"], &[], PROGRAM.as_ref());
    let introduction = server.introduction();
    assert!(introduction.contains("note") && introduction.contains("has no O_DIRECT"), "{introduction}");
    assert!(introduction.contains("as durable"), "{introduction}");
    let bytes = content(1, 12 << 20);
    server.put("/b/k", &bytes);
    server.assert_sealed("/b/k", &bytes);
    follow_something(&server);
    let mut put = server.begin_put("/b/cut", None, &[]);
    put.send(&bytes[..100_000]);
    server.await_committed("/b/cut", 100_000);
    server.kill();
    server.restart();
    server.assert_sealed("/b/k", &bytes);
    server.await_committed("/b/cut", 100_000);
    assert_eq!(server.request("DELETE", "/b/k", &[]).head.status, 204);
    assert!(server.terminate().success());
    server.restart();
    assert_eq!(server.get("/b/k").head.status, 404);
}

#[test]
fn a_disk_of_128_mib_works_with_the_defaults() {
    if !is_root() {
        return;
    }
    let mount = Mount::ext4(128 << 20);
    let mut server = Server::start_at(&mount.path().join("data"), &["--cores", "2"], &[], PROGRAM.as_ref());
    // Several times the disk goes through it, a good part of it at a time.
    for round in 0..4 {
        for number in 0..6 {
            let (path, bytes) = (format!("/b/{number}"), content(10 * round + number, 8 << 20));
            server.put(&path, &bytes);
            server.assert_sealed(&path, &bytes);
        }
        follow_something(&server);
        for number in 0..6 {
            assert_eq!(server.request("DELETE", &format!("/b/{number}"), &[]).head.status, 204);
        }
    }
    let bytes = content(1, 8 << 20);
    server.put("/b/last", &bytes);
    server.kill();
    server.restart();
    server.assert_sealed("/b/last", &bytes);
    assert!(server.terminate().success());

    // The whole of it, as it comes.
    fs::remove_dir_all(mount.path().join("data")).unwrap();
    let output = Command::new(PROGRAM).arg("demo").env("TMPDIR", mount.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_full_disk_is_answered_507_and_what_is_there_is_served_and_can_be_deleted() {
    if !is_root() {
        return;
    }
    let mount = Mount::ext4(128 << 20);
    let mut server = Server::start_at(&mount.path().join("data"), &["--cores", "2"], &[], PROGRAM.as_ref());
    let path = |number: u64| format!("/b/{number}");
    let put = |server: &Server, number: u64| {
        let mut connection = server.connect();
        let bytes = content(number, 2 << 20);
        connection.request("PUT", &path(number), &[("Content-Length", &bytes.len().to_string())]);
        connection.try_send(&bytes);
        let response = connection.response("PUT");
        assert_eq!(response.end, End::Clean, "{response:?}");
        response.head.status
    };
    let check = |server: &Server, numbers: &[u64]| {
        for &number in numbers {
            server.assert_sealed(&path(number), &content(number, 2 << 20));
        }
    };
    let mut there = Vec::new();
    // A few refusals in a row, so that no core has room left.
    let (mut number, mut refused) = (0, 0);
    while refused < 4 {
        match put(&server, number) {
            201 => {
                there.push(number);
                refused = 0;
            }
            507 => {
                eventually("it is not there, or interrupted", || {
                    let head = server.head(&path(number));
                    head.status == 404 || head.get("tailwater-state") == Some("interrupted")
                });
                refused += 1;
            }
            status => panic!("a full disk was answered {status}"),
        }
        number += 1;
        assert!(number < 200, "more than fits was taken");
    }
    assert!(there.len() > 25, "only {} objects of 2 MiB fitted on 128 MiB", there.len());
    assert_eq!(server.admin_status("/livez"), 200);
    check(&server, &there);

    // An upload by a real client, and one whose length nobody knows.
    let big = server.file_path("big");
    fs::write(&big, content(1, 32 << 20)).unwrap();
    let big = big.to_str().unwrap();
    for extra in [&["-H", "Expect:"][..], &["-H", "Transfer-Encoding: chunked"]] {
        let url = server.url("/b/big");
        let output = Command::new("curl")
            .args(["-q", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-T", big, &url])
            .args(extra)
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "507", "{output:?}");
    }
    // Deleting makes room, though deleting itself must be written down.
    let (deleted, kept) = there.split_at(there.len() * 3 / 4);
    for &number in deleted {
        let response = server.request("DELETE", &path(number), &[]);
        assert_eq!(response.head.status, 204, "{response:?}");
    }
    eventually("there is room again", || put(&server, 1000) == 201);
    let kept = [kept, &[1000]].concat();
    check(&server, &kept);
    server.kill();
    server.restart();
    check(&server, &kept);
    for &number in deleted {
        assert_eq!(server.get(&path(number)).head.status, 404);
    }

    // Full once more, and killed: it comes back as it was.
    let mut there = kept;
    let mut number = 2000;
    let mut refused = 0;
    while refused < 4 {
        match put(&server, number) {
            201 => there.push(number),
            status => {
                assert_eq!(status, 507);
                refused += 1;
            }
        }
        number += 1;
    }
    server.kill();
    server.restart();
    check(&server, &there);
    let status = put(&server, 3000);
    assert!(status == 507 || status == 201, "{status}");
    check(&server, &there);
    assert_eq!(server.admin_status("/livez"), 200);
}

/// Fills a file system to its last block but `left` bytes.
fn fill(mount: &Mount, left: u64) {
    let filler = File::create(mount.path().join("filler")).unwrap();
    let block = [7; 512];
    while std::io::Write::write_all(&mut &filler, &block).is_ok() {}
    // What was promised to the file is not what it takes.
    filler.sync_all().unwrap();
    while std::io::Write::write_all(&mut &filler, &block).is_ok() {}
    filler.sync_all().unwrap();
    filler.set_len(filler.metadata().unwrap().len() - left).unwrap();
    filler.sync_all().unwrap();
}

#[test]
fn a_disk_that_others_have_filled_before_the_first_start_ends_with_8() {
    if !is_root() {
        return;
    }
    let mount = Mount::ext4(16 << 20);
    fill(&mount, 0);
    let output = start(&[], PROGRAM.as_ref(), &mount.path().join("data"));
    assert_refused(&output, 8, &["No space left on device"]);
}

#[test]
fn a_disk_with_no_room_for_a_segment_is_answered_507_until_there_is_some() {
    if !is_root() {
        return;
    }
    let mount = Mount::ext4(32 << 20);
    fill(&mount, 100_000);
    let server = Server::start_at(&mount.path().join("data"), &["--cores", "2"], &[], PROGRAM.as_ref());
    for number in 0..4 {
        let mut connection = server.connect();
        connection.request("PUT", &format!("/b/{number}"), &[("Content-Length", "5")]);
        connection.send("hello");
        let response = connection.response("PUT");
        assert_eq!(response.head.status, 507, "{response:?}");
    }
    assert!(server.log().contains("No space left on device"), "{}", server.log());
    fs::remove_file(mount.path().join("filler")).unwrap();
    eventually("there is room", || {
        let mut connection = server.connect();
        connection.request("PUT", "/b/later", &[("Content-Length", "5")]);
        connection.send("hello");
        connection.response("PUT").head.status == 201
    });
    server.assert_sealed("/b/later", b"hello");
}
