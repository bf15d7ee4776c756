//! Directories for one test, the program, and a server that stands in for a tapdisk.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tapdisk_control::Paths;
use tapdisk_control::message::{ListEntry, MessageId, Request, RequestBuffer, Response};

/// A pid that no process has: Linux stops at 4194304.
pub(crate) const PID: i32 = 7_654_321;

/// Directories for one test.
pub(crate) struct Bench {
    dir: PathBuf,
}

impl Bench {
    /// `name` is unique among the tests; short, for a socket's path has 107 bytes.
    pub(crate) fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("tc{}-{name}", std::process::id()));
        fs::create_dir_all(dir.join("run")).unwrap();
        Self { dir }
    }

    pub(crate) fn paths(&self) -> Paths {
        Paths::new(self.dir.join("run"), self.dir.join("dev"), self.dir.join("shm"))
    }

    /// Where a file of this test lies.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The program, with this bench's directories and nothing on its standard input.
    pub(crate) fn command<I: AsRef<OsStr>>(&self, arguments: &[I]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tap-ctl"));
        command
            .args(arguments)
            .env_remove("TAP_CTL_ERRORS")
            .env_remove("TAPDISK")
            .env("LC_ALL", "C")
            .env("TAPDISK_RUN_DIR", self.dir.join("run"))
            .env("TAPDISK_DEV_DIR", self.dir.join("dev"))
            .env("TAPDISK_SHM_DIR", self.dir.join("shm"))
            .stdin(Stdio::null());
        command
    }

    /// Runs it; (exit status, standard output, standard error).
    pub(crate) fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        told(&self.command(arguments).output().unwrap())
    }

    /// The same with errors for people.
    pub(crate) fn run_explaining(&self, arguments: &[&str]) -> (i32, String, String) {
        told(&self.command(arguments).env("TAP_CTL_ERRORS", "long").output().unwrap())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.dir));
    }
}

pub(crate) fn told(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().expect("not a signal"), text(&output.stdout), text(&output.stderr))
}

/// What a server does with a request and its connection.
type Answer = dyn Fn(&Request, &mut UnixStream) + Send;

/// A control socket. Ends with the value.
pub(crate) struct Server {
    socket: PathBuf,
    ended: Arc<AtomicBool>,
    requests: Arc<Mutex<Vec<MessageId>>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(
        bench: &Bench,
        pid: i32,
        answer: impl Fn(&Request, &mut UnixStream) + Send + 'static,
    ) -> Self {
        let socket = bench.paths().control_socket(pid);
        let listener = UnixListener::bind(&socket).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (end, log) = (Arc::clone(&ended), Arc::clone(&requests));
        let answer: Box<Answer> = Box::new(answer);
        let thread = std::thread::spawn(move || serve(&listener, &end, &log, answer.as_ref()));
        Self { socket, ended, requests, thread: Some(thread) }
    }

    /// What was asked so far.
    pub(crate) fn requests(&self) -> Vec<MessageId> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        drop(UnixStream::connect(&self.socket));
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            assert!(result.is_ok() || std::thread::panicking(), "the server panicked");
        }
    }
}

fn serve(
    listener: &UnixListener,
    ended: &AtomicBool,
    log: &Mutex<Vec<MessageId>>,
    answer: &Answer,
) {
    loop {
        let (mut stream, _) = listener.accept().unwrap();
        if ended.load(Ordering::SeqCst) {
            return;
        }
        let mut buffer = RequestBuffer::new();
        let request = loop {
            if let Some(request) = buffer.request().unwrap() {
                break Some(request);
            }
            match stream.read(buffer.space()).unwrap() {
                0 => break None,
                count => buffer.advance(count),
            }
        };
        if let Some(request) = request {
            log.lock().unwrap().push(request.id());
            answer(&request, &mut stream);
        }
    }
}

/// Sends a reply. The client may have gone.
pub(crate) fn send(stream: &mut UnixStream, response: &Response) {
    drop(stream.write_all(&response.encode(0).unwrap()));
}

pub(crate) fn refuse(stream: &mut UnixStream, errno: i32) {
    send(stream, &Response::Error { errno, message: "".into() });
}

/// Waits, without an answer, until the client goes.
pub(crate) fn be_silent(stream: &mut UnixStream) {
    drop(stream.read_to_end(&mut Vec::new()));
}

/// Answers PID and LIST with these disks: minor, state, name.
pub(crate) fn answer_list(
    request: &Request,
    stream: &mut UnixStream,
    pid: i32,
    disks: &[(u16, u32, &str)],
) {
    match request {
        Request::Pid => send(stream, &Response::Pid(pid)),
        Request::List => {
            let counts = (1..=u32::try_from(disks.len()).unwrap()).rev();
            for (remaining, (minor, state, path)) in counts.zip(disks) {
                let (minor, state, path) = (*minor, *state, path.into());
                send(stream, &Response::List(ListEntry { remaining, minor, state, path }));
            }
            send(stream, &Response::ListEnd);
        }
        other => panic!("asked for {other:?}"),
    }
}
