//! Disks that may break: a file system of its own in a file, behind a loop device.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::eventually;

/// Whether this runs as root, who alone may do some things. In continuous integration it must.
pub fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    assert!(is_root || !is_continuous_integration(), "this test must be run as root");
    if !is_root {
        eprintln!("SKIPPED: this test needs root");
    }
    is_root
}

fn is_continuous_integration() -> bool {
    std::env::var_os("CI").is_some_and(|ci| ci == "true")
}

/// A file system that a crash can be made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// With all of its own data at the beginning of the disk, so that the end of the disk can break without it.
    Ext4,
    Xfs,
}

/// A file system in a file, mounted through a loop device. Dropping it takes everything away, also in a panic.
pub struct Disk {
    folder: tempfile::TempDir,
    device: String,
    is_mounted: bool,
}

impl Disk {
    /// A mounted disk of so many bytes; XFS takes none below 300 MiB. None: this host does not let us, and the test
    /// says so and passes, except in continuous integration, where that is a failure.
    pub fn new(file_system: FileSystem, bytes: u64) -> Option<Disk> {
        if !is_root() {
            return None;
        }
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let image = folder.path().join("image");
        File::create(&image).unwrap().set_len(bytes).unwrap();
        match file_system {
            FileSystem::Ext4 => run(Command::new("mkfs.ext4")
                .args(["-q", "-F", "-b", "4096", "-E", "packed_meta_blocks=1,lazy_itable_init=0"])
                .arg(&image)),
            FileSystem::Xfs => run(Command::new("mkfs.xfs").args(["-q", "-f"]).arg(&image)),
        }
        let device = match attach(&image) {
            Ok(device) => device,
            Err(error) => {
                assert!(!is_continuous_integration(), "this test needs a loop device: {error}");
                eprintln!("SKIPPED: this test needs a loop device: {error}");
                return None;
            }
        };
        let mut disk = Disk { folder, device, is_mounted: false };
        std::fs::create_dir(disk.path()).unwrap();
        disk.mount();
        Some(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    /// The file that stands for the platters.
    pub fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// Mounts it, as a start of the machine does.
    #[track_caller]
    pub fn mount(&mut self) {
        run(Command::new("mount").arg(&self.device).arg(self.path()));
        self.is_mounted = true;
    }

    /// Unmounts it, once nobody uses it any more: a killed process holds its files until its last write is done.
    #[track_caller]
    pub fn unmount(&mut self) {
        eventually("nobody uses the disk", || {
            Command::new("umount").arg(self.path()).output().unwrap().status.success()
        });
        self.is_mounted = false;
    }

    /// Makes the disk end after so many bytes: what lies behind is gone, and reading and writing there fails.
    #[track_caller]
    pub fn set_length(&self, bytes: u64) {
        OpenOptions::new().write(true).open(self.image()).unwrap().set_len(bytes).unwrap();
        run(Command::new("losetup").arg("-c").arg(&self.device));
    }

    /// Has every write to the file system wait until the answer is dropped.
    #[track_caller]
    pub fn freeze(&self) -> Frozen {
        run(Command::new("fsfreeze").arg("--freeze").arg(self.path()));
        Frozen { path: self.path() }
    }

    /// What cuts the power when it is told to, without a delay.
    pub fn switch(&self) -> Switch {
        Switch::new(&self.path(), &self.device)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            let unmounted = (0..300).any(|_| {
                let output = Command::new("umount").arg(self.path()).output();
                let done = output.is_ok_and(|output| output.status.success());
                if !done {
                    std::thread::sleep(Duration::from_millis(10));
                }
                done
            });
            if !unmounted {
                let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
            }
        }
        // Where it is still in use, the kernel lets go of it afterwards.
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}

fn attach(image: &Path) -> Result<String, String> {
    let mut complaint = String::new();
    // Another test may take the device that was found free.
    for _ in 0..20 {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(image).output();
        let output = output.map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned());
        }
        complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(complaint)
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The shutdown of a file system that drops what is not on its disk: `_IOR('X', 125, u32)` with NOLOGFLUSH. It looks
/// twice that this is the loop device's file system and no other.
const SWITCH: &str = "
import fcntl, os, struct, sys
mounted, device = sys.argv[1:]
place = os.open(mounted, os.O_RDONLY)
number = os.fstat(place).st_dev
assert device.startswith('/dev/loop') and number == os.stat(device).st_rdev, 'this is not the loop device'
assert number not in (os.stat('/').st_dev, os.stat(mounted + '/..').st_dev), 'this is not a disk of its own'
print('ready', flush=True)
if sys.stdin.readline():
    fcntl.ioctl(place, 0x8004587d, struct.pack('I', 2))
    print('cut', flush=True)
";

/// A file system that stands still. Dropping it lets it go on.
pub struct Frozen {
    path: PathBuf,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        run(Command::new("fsfreeze").arg("--unfreeze").arg(&self.path));
    }
}

/// Cuts the power of a [`Disk`]: what its file system holds and has not written is lost, and everything that is asked
/// of it from then on fails.
pub struct Switch {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Switch {
    fn new(mounted: &Path, device: &str) -> Switch {
        let mut process = Command::new("python3")
            .args(["-c", SWITCH])
            .arg(mounted)
            .arg(device)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take();
        let output = BufReader::new(process.stdout.take().unwrap());
        let mut switch = Switch { process, input, output };
        switch.expect("ready");
        switch
    }

    #[track_caller]
    fn expect(&mut self, word: &str) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), word, "the shutdown of a file system");
    }

    /// Cuts. When this returns it has happened.
    #[track_caller]
    pub fn cut(mut self) {
        self.input.as_mut().unwrap().write_all(b"now\n").unwrap();
        self.expect("cut");
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.input = None;
        let _ = self.process.wait();
    }
}
