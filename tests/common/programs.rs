//! Real clients: curl, ffmpeg and their like as processes, watched while they run.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;

use rustix::process::{Pid, Signal, kill_process};

use super::{PATIENCE, assert_same};

/// A program that a test needs. None: it is not installed, and the test says so and passes, except in continuous
/// integration, where that is a failure.
pub fn tool(name: &str) -> Option<Command> {
    let found = Command::new(name).arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match found {
        Ok(_) => Some(Command::new(name)),
        Err(error) => {
            assert!(
                std::env::var_os("CI").is_none_or(|ci| ci != "true"),
                "{name} is needed for this test: {error}"
            );
            eprintln!("SKIPPED: {name} is needed for this test: {error}");
            None
        }
    }
}

/// A program that runs. What it writes to standard output is taken as it comes. Dropping it kills it.
pub struct Program {
    process: Child,
    output: Receiver<Vec<u8>>,
    /// What has come and was not taken yet.
    pending: Vec<u8>,
    /// Collects what goes to standard error.
    complaints: Option<JoinHandle<String>>,
    input: Option<ChildStdin>,
}

impl Program {
    /// Starts it.
    #[track_caller]
    pub fn start(command: &mut Command) -> Program {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (mut stdout, mut stderr) = (process.stdout.take().unwrap(), process.stderr.take().unwrap());
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut bytes = vec![0; 64 << 10];
            while let Ok(count @ 1..) = stdout.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let complaints = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let input = process.stdin.take();
        Program { process, output, pending: Vec::new(), complaints: Some(complaints), input }
    }

    /// curl that writes what it gets at once. None: see [`tool`].
    pub fn curl(arguments: &[impl AsRef<OsStr>]) -> Option<Program> {
        let mut curl = tool("curl")?;
        curl.args(["-q", "--silent", "--show-error", "--no-buffer"]).args(arguments).env_remove("http_proxy");
        Some(Program::start(&mut curl))
    }

    /// Gives it something to read.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        let input = self.input.as_mut().expect("its input is open");
        input.write_all(bytes).unwrap();
        input.flush().unwrap();
    }

    /// Ends what it reads.
    pub fn finish_sending(&mut self) {
        self.input = None;
    }

    /// Waits for more output. False: there is no more.
    #[track_caller]
    fn receive(&mut self) -> bool {
        match self.output.recv_timeout(PATIENCE) {
            Ok(bytes) => {
                self.pending.extend(bytes);
                true
            }
            Err(RecvTimeoutError::Disconnected) => false,
            Err(RecvTimeoutError::Timeout) => {
                panic!("the program wrote nothing for {PATIENCE:?}; it had {} bytes", self.pending.len())
            }
        }
    }

    /// Waits for exactly so many bytes of its output.
    #[track_caller]
    pub fn take(&mut self, length: usize) -> Vec<u8> {
        while self.pending.len() < length {
            if !self.receive() {
                let had = self.pending.len();
                panic!("the program ended after {had} of {length} bytes:\n{}", self.complaints());
            }
        }
        self.pending.drain(..length).collect()
    }

    /// Waits for exactly these bytes of its output.
    #[track_caller]
    pub fn expect(&mut self, expected: &[u8]) {
        let found = self.take(expected.len());
        assert_same("what the program wrote", &found, expected);
    }

    /// Waits for a line of its output that begins with this, and answers it; skips those before it.
    #[track_caller]
    pub fn line_from(&mut self, text: &str) -> String {
        loop {
            while let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line).into_owned();
                if line.starts_with(text) {
                    return line;
                }
            }
            assert!(self.receive(), "the program ended without {text:?}:\n{}", self.complaints());
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// Stops it where it is, until [`Program::resume`]. It has stopped when this returns.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
        let path = format!("/proc/{}/stat", self.process.id());
        super::eventually("the program has stopped", || {
            let stat = std::fs::read_to_string(&path).unwrap();
            // The state stands behind the name, which is in brackets.
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        });
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills it with SIGKILL, which it cannot notice.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    /// Waits for its end: what it still wrote, its exit status, and what it said on standard error.
    #[track_caller]
    pub fn finish(mut self) -> (Vec<u8>, ExitStatus, String) {
        self.input = None;
        while self.receive() {}
        let status = self.process.wait().unwrap();
        let complaints = self.complaints();
        (std::mem::take(&mut self.pending), status, complaints)
    }

    /// Waits for its end; asserts that it was content and wrote exactly this last.
    #[track_caller]
    pub fn expect_rest(self, expected: &[u8]) {
        let (found, status, complaints) = self.finish();
        assert!(status.success(), "{status}: {complaints}");
        assert_same("the rest of what the program wrote", &found, expected);
    }

    fn complaints(&mut self) -> String {
        self.complaints.take().map(|complaints| complaints.join().unwrap()).unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
