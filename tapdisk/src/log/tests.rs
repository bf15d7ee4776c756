//! Tests of the log as a whole. Nobody sleeps: a sink of the tests' own holds the writer where it
//! is wanted, and the end of the log is the end of the writing.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Sender;

use super::*;

/// A directory of its own for each test; goes with it.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tapdisk-log-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// As [`Config::new`], with all paths in here.
    fn config(&self, target: Target) -> Config {
        Config {
            pid: 42,
            journald: self.path("journald"),
            syslog: self.path("syslog"),
            directory: self.path("logs"),
            ..Config::new(target, Level::Info)
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// Says when a line arrives, and holds the writer until the gate is open.
struct Gate {
    arrived: Sender<()>,
    gate: Receiver<()>,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Sink for Gate {
    fn write(&mut self, entry: &Entry) -> u64 {
        let _ = self.arrived.send(());
        let _ = self.gate.recv();
        self.lines.lock().unwrap().push(entry.message.clone());
        0
    }

    fn reopen(&mut self) -> io::Result<()> {
        Err(io::Error::other("no such luck"))
    }
}

struct Gated {
    log: Log,
    arrived: Receiver<()>,
    gate: Sender<()>,
    lines: Arc<Mutex<Vec<String>>>,
}

fn gated(queue_len: usize) -> Gated {
    let (arrived_sender, arrived) = channel();
    let (gate, gate_receiver) = channel();
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Gate { arrived: arrived_sender, gate: gate_receiver, lines: Arc::clone(&lines) };
    let log = Log::with_sink(Box::new(sink), Level::Info, queue_len).unwrap();
    Gated { log, arrived, gate, lines }
}

fn receive(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let len = socket.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..len].to_vec()).unwrap()
}

fn own_file(scratch: &Scratch) -> PathBuf {
    scratch.path("logs/tapdisk.42.log")
}

#[test]
fn a_full_queue_drops_counts_and_says_so_while_the_sink_hangs() {
    let Gated { log, arrived, gate, lines } = gated(4);
    slog::info!(log.logger(), "0");
    arrived.recv().unwrap();
    for index in 1..=7 {
        slog::info!(log.logger(), "{index}");
    }
    let handle = log.handle().clone();
    assert_eq!(handle.dropped(), 3);
    drop(gate);
    log.finish(true).unwrap();
    let expected = ["0", "1", "2", "3", "3 messages dropped", "4"];
    assert_eq!(*lines.lock().unwrap(), expected);
    assert_eq!(handle.failed(), 0);
}

#[test]
fn the_end_does_not_wait_for_a_sink_that_hangs() {
    let Gated { log, arrived, gate, .. } = gated(4);
    slog::info!(log.logger(), "0");
    arrived.recv().unwrap();
    let error = log.finish_within(true, Duration::from_millis(1)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    drop(gate);
}

#[test]
fn what_is_logged_after_the_end_is_counted() {
    let Gated { log, gate, .. } = gated(4);
    drop(gate);
    let (logger, handle) = (log.logger().clone(), log.handle().clone());
    log.finish(true).unwrap();
    slog::info!(logger, "late");
    assert_eq!(handle.dropped(), 1);
}

#[test]
fn a_reopen_that_fails_is_told_in_the_log_even_when_nothing_else_is() {
    let Gated { log, arrived, gate, lines } = gated(4);
    drop(gate);
    log.handle().reopen();
    arrived.recv().unwrap();
    log.finish(true).unwrap();
    let expected = "Cannot reopen the log, going on with the old one: no such luck";
    assert_eq!(*lines.lock().unwrap(), [expected]);
}

#[test]
fn what_is_less_severe_than_the_level_is_not_logged() {
    let Gated { log, gate, lines, .. } = gated(4);
    drop(gate);
    slog::debug!(log.logger(), "debug");
    slog::warn!(log.logger(), "warning");
    log.finish(true).unwrap();
    assert_eq!(*lines.lock().unwrap(), ["warning"]);
}

#[test]
fn the_journal_gets_fields_of_record_and_logger() {
    let scratch = Scratch::new();
    let journal = UnixDatagram::bind(scratch.path("journald")).unwrap();
    let log = Log::start(&scratch.config(Target::Auto)).unwrap();
    let disk = log.logger().new(slog::o!("minor" => 3));
    slog::warn!(disk, "Slow {}", "storage"; "path" => "/a b");
    let expected = "MESSAGE=Slow storage path=\"/a b\" minor=3\nPRIORITY=4\n\
        SYSLOG_IDENTIFIER=tapdisk\nSYSLOG_PID=42\nTAPDISK_PATH=/a b\nTAPDISK_MINOR=3\n";
    assert_eq!(receive(&journal), expected);
    log.finish(true).unwrap();
}

#[test]
fn syslog_is_next_when_there_is_no_journal() {
    let scratch = Scratch::new();
    let syslog = UnixDatagram::bind(scratch.path("syslog")).unwrap();
    let log = Log::start(&scratch.config(Target::Auto)).unwrap();
    slog::error!(log.logger(), "Failed"; "path" => "a\nb");
    let line = receive(&syslog);
    assert!(line.starts_with("<27>"), "{line}");
    assert!(line.ends_with(" tapdisk[42]: Failed path=\"a\\nb\""), "{line}");
    log.finish(true).unwrap();
    assert!(!own_file(&scratch).exists());
}

#[test]
fn a_file_is_last_and_goes_after_a_clean_end_without_errors() {
    let scratch = Scratch::new();
    let log = Log::start(&scratch.config(Target::Auto)).unwrap();
    slog::warn!(log.logger(), "a warning is no error");
    assert!(own_file(&scratch).exists());
    log.finish(true).unwrap();
    assert!(!own_file(&scratch).exists());
}

#[test]
fn a_file_stays_when_there_were_errors_or_the_end_is_not_clean() {
    let scratch = Scratch::new();
    let log = Log::start(&scratch.config(Target::File(None))).unwrap();
    slog::error!(log.logger(), "precious"; "minor" => 1);
    log.finish(true).unwrap();
    let text = std::fs::read_to_string(own_file(&scratch)).unwrap();
    assert!(text.ends_with("Z ERROR precious minor=1\n"), "{text}");

    std::fs::remove_file(own_file(&scratch)).unwrap();
    let log = Log::start(&scratch.config(Target::File(None))).unwrap();
    slog::info!(log.logger(), "on the way down");
    log.finish(false).unwrap();
    assert!(own_file(&scratch).exists());
}

#[test]
fn a_file_that_was_named_is_appended_to_and_stays() {
    let scratch = Scratch::new();
    let path = scratch.path("named.log");
    std::fs::write(&path, "before\n").unwrap();
    let log = Log::start(&scratch.config(Target::File(Some(path.clone())))).unwrap();
    slog::info!(log.logger(), "after");
    log.finish(true).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("before\n") && text.ends_with(" INFO after\n"), "{text}");
}

#[test]
fn a_socket_that_is_not_there_costs_lines_and_nothing_else() {
    let scratch = Scratch::new();
    for target in [Target::Journald, Target::Syslog] {
        let log = Log::start(&scratch.config(target)).unwrap();
        let handle = log.handle().clone();
        slog::error!(log.logger(), "unheard");
        log.finish(true).unwrap();
        assert_eq!((handle.failed(), handle.dropped()), (1, 0));
    }
}

#[test]
fn a_file_that_cannot_be_opened_is_an_error_that_names_it() {
    let scratch = Scratch::new();
    let path = scratch.path("missing/log");
    let error = Log::start(&scratch.config(Target::File(Some(path)))).unwrap_err();
    assert!(error.to_string().contains("missing/log: No such file"), "{error}");
}

#[test]
fn the_option_names_its_choices() {
    assert_eq!("auto".parse(), Ok(Target::Auto));
    assert_eq!("journald".parse(), Ok(Target::Journald));
    assert_eq!("syslog".parse(), Ok(Target::Syslog));
    assert_eq!("stderr".parse(), Ok(Target::Stderr));
    assert_eq!("file".parse(), Ok(Target::File(None)));
    let path = Path::new("/var/log/x:y").to_path_buf();
    assert_eq!("file:/var/log/x:y".parse(), Ok(Target::File(Some(path))));
    for wrong in ["", "file:", "Syslog", "journal"] {
        let error = wrong.parse::<Target>().unwrap_err();
        assert!(error.contains(&format!("{wrong:?}, expected journald")), "{error}");
    }
}
