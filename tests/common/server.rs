//! A server: the real program, on ports that the system chooses, with a data folder of its own.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::http::{Connection, Head, Put, Response};
use super::{assert_same, eventually};

/// What a server is started with where a test says nothing else: two cores, and so little memory and such short
/// segments that ordinary tests reach their ends.
const FLAGS: &[(&str, &str)] = &[
    ("--cores", "2"),
    ("--arena-bytes", "4MiB"),
    ("--block-bytes", "256KiB"),
    ("--segment-bytes", "4MiB"),
    ("--log-level", "info"),
];

/// A running server. Dropping it kills the process and removes the folder; if the test fails, the end of the
/// server's log is shown first.
pub struct Server {
    folder: tempfile::TempDir,
    data: PathBuf,
    /// The program, behind what it is to be run by.
    command: Vec<OsString>,
    flags: Vec<String>,
    /// Where it is to listen.
    listen: String,
    running: Option<Running>,
}

struct Running {
    process: Child,
    data_address: SocketAddr,
    admin_address: SocketAddr,
    /// What it said when it had started.
    introduction: String,
    /// How long the log was before it started.
    log_start: usize,
    /// Stays open: a server that cannot write to its standard output is another test.
    _output: BufReader<ChildStdout>,
}

const ANY_PORT: &str = "127.0.0.1:0";

impl Server {
    /// A server with the flags of [`FLAGS`].
    pub fn start() -> Server {
        Server::start_with(&[])
    }

    /// A server with further flags, which come before those of [`FLAGS`] where both have one.
    pub fn start_with(flags: &[&str]) -> Server {
        // Beside the build and not in /tmp, which is no disk on many machines.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let data = folder.path().join("data");
        Server::start_small(folder, data, &[], flags)
    }

    /// As [`Server::start_with`], on this data folder, run by a command as in [`Server::start_at`].
    pub fn start_small_at(data: &Path, command: &[&str], flags: &[&str]) -> Server {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Server::start_small(folder, data.to_owned(), command, flags)
    }

    fn start_small(folder: tempfile::TempDir, data: PathBuf, command: &[&str], flags: &[&str]) -> Server {
        let mut all: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
        for (flag, value) in FLAGS {
            if !flags.contains(flag) {
                all.extend([(*flag).to_owned(), (*value).to_owned()]);
            }
        }
        let mut command: Vec<OsString> = command.iter().map(Into::into).collect();
        command.push(env!("CARGO_BIN_EXE_tailwater").into());
        let mut server =
            Server { folder, data, command, flags: all, listen: ANY_PORT.to_owned(), running: None };
        server.run();
        server
    }

    /// A server on this data folder with these flags and the defaults for all others, run by a command that takes
    /// the program and its arguments as its last ones; none runs the program itself.
    pub fn start_at(data: &Path, flags: &[&str], command: &[&str], program: &Path) -> Server {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut command: Vec<OsString> = command.iter().map(Into::into).collect();
        command.push(program.into());
        let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        let (data, listen) = (data.to_owned(), ANY_PORT.to_owned());
        let mut server = Server { folder, data, command, flags, listen, running: None };
        server.run();
        server
    }

    fn run(&mut self) {
        assert!(self.running.is_none(), "the server runs already");
        let log = OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        let log_start = self.log().len();
        let mut process = Command::new(&self.command[0])
            .args(&self.command[1..])
            .arg("serve")
            .arg("--data")
            .arg(self.data_path())
            .args(["--listen", &self.listen, "--admin", "127.0.0.1:0"])
            .args(&self.flags)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let (mut data_address, mut admin_address, mut introduction) = (None, None, String::new());
        while data_address.is_none() || admin_address.is_none() {
            let mut line = String::new();
            if output.read_line(&mut line).unwrap() == 0 {
                let status = process.wait().unwrap();
                panic!("the server ended instead of starting, {status}:\n{}", self.log());
            }
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["objects", url, ..] => data_address = Some(address_in(url)),
                ["admin", url, ..] => admin_address = Some(address_in(url)),
                _ => {}
            }
            introduction += &line;
        }
        // It is written at once, so all of it has come.
        introduction += &String::from_utf8_lossy(output.buffer());
        self.running = Some(Running {
            process,
            introduction,
            log_start,
            data_address: data_address.unwrap(),
            admin_address: admin_address.unwrap(),
            _output: output,
        });
    }

    #[track_caller]
    fn running(&self) -> &Running {
        self.running.as_ref().expect("the server does not run")
    }

    /// Ends the process as a power cut would, as far as a process can see.
    pub fn kill(&mut self) {
        let mut running = self.running.take().expect("the server does not run");
        running.process.kill().unwrap();
        running.process.wait().unwrap();
    }

    /// Asks the process to end, and waits until it has.
    pub fn terminate(&mut self) -> ExitStatus {
        let mut running = self.running.take().expect("the server does not run");
        kill_process(Pid::from_child(&running.process), Signal::TERM).unwrap();
        running.process.wait().unwrap()
    }

    /// Asks the process to end and returns at once; [`Server::wait`] waits for it.
    pub fn begin_to_terminate(&self) {
        kill_process(Pid::from_child(&self.running().process), Signal::TERM).unwrap();
    }

    /// Waits until the process has ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let mut running = self.running.take().expect("the server does not run");
        running.process.wait().unwrap()
    }

    /// Starts again on the same data, after [`Server::kill`] or [`Server::terminate`]. The addresses are new.
    pub fn restart(&mut self) {
        self.run();
    }

    /// A flag that the server is not started with from the next start on.
    pub fn remove_flag(&mut self, flag: &str) {
        self.flags.retain(|found| found != flag);
    }

    /// A flag without a value that the server is started with from the next start on.
    pub fn add_flag(&mut self, flag: &str) {
        self.flags.push(flag.to_owned());
    }

    /// What the server is started with from the next start on.
    pub fn set_flag(&mut self, flag: &str, value: &str) {
        match self.flags.iter().position(|found| found == flag) {
            Some(place) => self.flags[place + 1] = value.to_owned(),
            None => self.flags.extend([flag.to_owned(), value.to_owned()]),
        }
    }

    /// The server gets the same address at each start from now on.
    pub fn keep_address(&mut self) {
        self.listen = self.data_address().to_string();
    }

    /// Stops the process where it is, and waits until it stands. The kernel goes on with what it was asked for.
    #[track_caller]
    pub fn pause(&self) {
        let process = &self.running().process;
        kill_process(Pid::from_child(process), Signal::STOP).unwrap();
        let path = format!("/proc/{}/stat", process.id());
        eventually("the server has stopped", || {
            let stat = std::fs::read_to_string(&path).unwrap();
            // The state stands behind the name, which is in brackets.
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        });
    }

    /// Lets it go on after [`Server::pause`].
    pub fn resume(&self) {
        kill_process(Pid::from_child(&self.running().process), Signal::CONT).unwrap();
    }

    /// Asserts that the process has not ended by itself.
    #[track_caller]
    pub fn assert_alive(&mut self) {
        let running = self.running.as_mut().expect("the server does not run");
        if let Some(status) = running.process.try_wait().unwrap() {
            panic!("the server has ended by itself: {status}");
        }
    }

    /// What was logged since the last start.
    pub fn log_since_start(&self) -> String {
        let log = self.log();
        log[self.running().log_start..].to_owned()
    }

    /// Asserts that the last start has found nothing that it calls damaged. A crash leaves a tail that is not whole,
    /// and that is no damage.
    #[track_caller]
    pub fn assert_undamaged(&self) {
        let log = self.log_since_start();
        assert!(!log.contains("ERROR"), "{log}");
    }

    /// The number of the process.
    pub fn process_id(&self) -> u32 {
        self.running().process.id()
    }

    /// The folder that is given as `--data`.
    pub fn data_path(&self) -> PathBuf {
        self.data.clone()
    }

    /// What the server printed when it had started.
    pub fn introduction(&self) -> &str {
        &self.running().introduction
    }

    /// A path for a file of the test's own, which goes away with the server's folder.
    pub fn file_path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Everything that was logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Where objects are put and read.
    pub fn data_address(&self) -> SocketAddr {
        self.running().data_address
    }

    /// Where the operator looks.
    pub fn admin_address(&self) -> SocketAddr {
        self.running().admin_address
    }

    /// The URL of a path that begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.data_address())
    }

    /// A connection to where objects are.
    pub fn connect(&self) -> Connection {
        Connection::to(self.data_address())
    }

    /// A request without a body on a connection of its own, and its whole answer.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut connection = self.connect();
        connection.request(method, path, headers);
        connection.response(method)
    }

    /// A GET without anything, and its whole answer.
    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.request("GET", path, &[])
    }

    /// The head that answers a HEAD.
    #[track_caller]
    pub fn head(&self, path: &str) -> Head {
        self.request("HEAD", path, &[]).head
    }

    /// Puts an object by Content-Length; asserts that it was created.
    #[track_caller]
    pub fn put(&self, path: &str, bytes: &[u8]) -> Response {
        let response = self.try_put(path, bytes, &[]);
        assert_eq!(response.head.status, 201, "{response:?}");
        response
    }

    /// Puts an object by Content-Length with further headers, and answers whatever the server does.
    #[track_caller]
    pub fn try_put(&self, path: &str, bytes: &[u8], headers: &[(&str, &str)]) -> Response {
        let mut connection = self.connect();
        let length = bytes.len().to_string();
        let mut all = vec![("Content-Length", length.as_str())];
        all.extend_from_slice(headers);
        connection.request("PUT", path, &all);
        // Where it is refused the server need not take it.
        connection.try_send(bytes);
        connection.response("PUT")
    }

    /// Begins to put an object, chunked or by a declared length. When this returns the object is there and live.
    #[track_caller]
    pub fn begin_put(&self, path: &str, declared_length: Option<u64>, headers: &[(&str, &str)]) -> Put {
        Put::begin(self.connect(), path, declared_length, headers)
    }

    /// Follows an object on a connection of its own: the head has come when this returns.
    #[track_caller]
    pub fn follow(&self, path: &str) -> super::Body {
        let mut connection = self.connect();
        connection.request("GET", path, &[]);
        connection.into_body("GET")
    }

    /// Asserts what a name serves: these bytes, sealed.
    #[track_caller]
    pub fn assert_sealed(&self, path: &str, bytes: &[u8]) {
        let response = self.get(path);
        assert_eq!(response.head.status, 200, "{response:?}");
        assert_eq!(response.head.get("tailwater-state"), Some("sealed"));
        assert_eq!(response.head.get("content-length"), Some(bytes.len().to_string().as_str()));
        assert_same(path, &response.body, bytes);
    }

    /// A store that nobody serves and that was left in any state is whole.
    #[track_caller]
    pub fn assert_verified(&self) {
        let (code, text) = self.verify();
        assert_eq!(code, Some(0), "{text}");
    }

    /// Stops the server, and looks at what it has left: with the catalog and without.
    #[track_caller]
    pub fn assert_verified_when_stopped(mut self) {
        assert!(self.terminate().success());
        self.assert_verified();
        self.assert_verified_without_catalog();
    }

    /// So are its segments without its catalog.
    #[track_caller]
    pub fn assert_verified_without_catalog(&self) {
        let (catalog, beside) = (self.data_path().join("catalog"), self.file_path("catalog-beside"));
        std::fs::rename(&catalog, &beside).unwrap();
        let (_, text) = self.verify();
        let damaged: Vec<&str> = text.lines().filter(|line| line.starts_with("damaged: ")).collect();
        assert!(damaged.len() == 1 && damaged[0].contains("the catalog is missing"), "{text}");
        std::fs::rename(&beside, &catalog).unwrap();
    }

    fn verify(&self) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tailwater"));
        let output = command.arg("verify").arg(self.data_path()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }

    /// Waits until what a name serves is in this state.
    #[track_caller]
    pub fn await_state(&self, path: &str, state: &str) {
        eventually(&format!("{path} is {state}"), || {
            self.head(path).get("tailwater-state").is_some_and(|found| found == state)
        });
    }

    /// Waits until this much of what a name serves is durable.
    #[track_caller]
    pub fn await_committed(&self, path: &str, length: u64) {
        eventually(&format!("{length} bytes of {path} are durable"), || {
            let committed = self.head(path).get("tailwater-committed").unwrap_or("0").parse::<u64>().unwrap();
            assert!(committed <= length, "{path} has {committed} bytes where only {length} were sent");
            committed == length
        });
    }

    /// Waits until at least this much of what a name serves is durable.
    #[track_caller]
    pub fn await_committed_at_least(&self, path: &str, length: u64) {
        eventually(&format!("{length} bytes of {path} are durable"), || {
            let committed = self.head(path).get("tailwater-committed").unwrap_or("0").parse::<u64>().unwrap();
            committed >= length
        });
    }

    /// A sample of the metrics, named as in the text: `name` or `name{label="value"}`.
    #[track_caller]
    pub fn metric(&self, sample: &str) -> u64 {
        self.try_metric(sample).unwrap_or_else(|| panic!("there is no {sample} in the metrics"))
    }

    /// As [`Server::metric`], for samples that are there only once something has happened.
    #[track_caller]
    pub fn try_metric(&self, sample: &str) -> Option<u64> {
        let mut connection = Connection::to(self.admin_address());
        connection.request("GET", "/metrics", &[]);
        let text = String::from_utf8(connection.response("GET").body).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '))?;
        Some(value.trim().parse::<f64>().unwrap() as u64)
    }

    /// The status of `/livez` or `/readyz`.
    pub fn admin_status(&self, path: &str) -> u16 {
        self.admin(path).0
    }

    /// What `/livez` or `/readyz` answers: the status, and what it says.
    pub fn admin(&self, path: &str) -> (u16, String) {
        let mut connection = Connection::to(self.admin_address());
        connection.request("GET", path, &[]);
        let response = connection.response("GET");
        (response.head.status, String::from_utf8(response.body).unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut ended = None;
        if let Some(mut running) = self.running.take() {
            ended = running.process.try_wait().ok().flatten();
            let _ = running.process.kill();
            let _ = running.process.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(40)..];
            eprintln!("--- the server's last lines ---\n{}\n---", last.join("\n"));
            if let Some(status) = ended {
                eprintln!("the server had ended by itself: {status}");
            }
        }
    }
}

/// An empty file of that name, made anew.
pub fn file(path: &std::path::Path) -> File {
    File::create(path).unwrap()
}

fn address_in(url: &str) -> SocketAddr {
    url.strip_prefix("http://").unwrap().trim_end_matches('/').parse().unwrap()
}
