//! Running commands in a machine, over any pair of streams that reaches its agent.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tapdisk_tests::Ran;

use crate::debug_kernel::{SLOWER, is_debug_kernel};
use crate::wire::{self, CHUNK_BYTES};
use crate::{Result, VmError};

/// How long a command may take where a test says nothing else: five times what the slowest takes
/// on a quiet machine without hardware virtualisation.
pub(crate) const BOUND: Duration = Duration::from_secs(180);

/// The signal that nothing withstands.
const SIGKILL: i32 = nix::sys::signal::Signal::SIGKILL as i32;

/// How often the other side is greeted until it answers: it may not run yet.
const GREETING: Duration = Duration::from_millis(500);

/// Numbers of commands and greetings, different in all machines: an agent that met another
/// connection of ours before must not take its commands for these.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// What a machine says of a command.
#[derive(Debug)]
enum Event {
    Out(Vec<u8>),
    Err(Vec<u8>),
    End(i32),
}

/// A connection to an agent. Commands may run side by side, from any thread.
#[derive(Clone, Debug)]
pub struct Remote {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    to: Mutex<Box<dyn Write + Send>>,
    /// Who waits for which; nobody any more when the connection is gone.
    commands: Mutex<Option<HashMap<u64, Sender<Event>>>>,
    transcript: Mutex<File>,
    start: Instant,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Remote({})", self.name)
    }
}

/// A panic of another thread leaves nothing half-done behind these locks.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Remote {
    /// Greets the agent at the other end until it answers.
    pub(crate) fn connect(
        name: &str,
        from: impl Read + Send + 'static,
        to: impl Write + Send + 'static,
        transcript: File,
        limit: Duration,
    ) -> Result<Self> {
        let (ready, readies) = channel();
        let shared = Arc::new(Shared {
            name: name.into(),
            to: Mutex::new(Box::new(to)),
            commands: Mutex::new(Some(HashMap::new())),
            transcript: Mutex::new(transcript),
            start: Instant::now(),
        });
        let listener = Arc::clone(&shared);
        std::thread::spawn(move || listener.listen(BufReader::new(from), &ready));
        let start = Instant::now();
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        while start.elapsed() < limit {
            // An end of line first: the other side may have met half of one before.
            let hello = wire::encode(&["hello", &number.to_string()]);
            shared.send(&[b"\n", hello.as_slice()].concat())?;
            match readies.recv_timeout(GREETING) {
                Ok(found) if found == number => return Ok(Self { shared }),
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(shared.gone()),
            }
        }
        Err(VmError::Failed(format!("{name} did not answer within {} s", limit.as_secs())))
    }

    /// Runs a command to its end, within three minutes. A program is looked up in `PATH`.
    ///
    /// # Errors
    /// When the machine is gone or the command does not end.
    pub fn run<S: AsRef<str>>(&self, words: impl IntoIterator<Item = S>) -> Result<Ran> {
        self.start(words)?.wait(BOUND)
    }

    /// Runs a line of shell to its end, within three minutes.
    ///
    /// # Errors
    /// When the machine is gone or the command does not end.
    pub fn sh(&self, line: &str) -> Result<Ran> {
        self.run(["sh", "-c", line])
    }

    /// Starts a command. It runs until it ends or its [`Running`] is dropped.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn start<S: AsRef<str>>(&self, words: impl IntoIterator<Item = S>) -> Result<Running> {
        let words: Vec<String> = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        let id = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let (sender, events) = channel();
        match lock(&self.shared.commands).as_mut() {
            Some(commands) => commands.insert(id, sender),
            None => return Err(self.shared.gone()),
        };
        let shown = words.join(" ");
        self.shared.note(&format!("{id} $ {shown}"));
        let number = id.to_string();
        let mut line: Vec<&str> = vec!["run", &number];
        line.extend(words.iter().map(String::as_str));
        self.shared.send(&wire::encode(&line))?;
        let shared = Arc::clone(&self.shared);
        let ran = Ran { status: -1, stdout: String::new(), stderr: String::new() };
        Ok(Running { shared, id, shown, events, ran, ended: false, left: Vec::new() })
    }

    /// Says that no more commands come: the agent ends, and with it the machine.
    pub(crate) fn say_bye(&self) -> Result<()> {
        self.shared.send(&wire::encode(&["bye"]))
    }

    /// Whether the machine has closed the connection.
    pub(crate) fn is_gone(&self) -> bool {
        lock(&self.shared.commands).is_none()
    }
}

impl Shared {
    fn send(&self, line: &[u8]) -> Result<()> {
        let mut to = lock(&self.to);
        to.write_all(line).and_then(|()| to.flush()).map_err(|_| self.gone())
    }

    fn gone(&self) -> VmError {
        VmError::Failed(format!("{} is gone", self.name))
    }

    /// A line for the transcript, and for a person who watches.
    fn note(&self, line: &str) {
        let seconds = self.start.elapsed().as_secs_f32();
        let _ = writeln!(lock(&self.transcript), "{seconds:8.2} {line}");
        if std::env::var_os("TAPDISK_VM_TRACE").is_some() {
            eprintln!("{}: {line}", self.name);
        }
    }

    /// Hands on what the machine says, until it says no more.
    fn listen(&self, mut from: BufReader<impl Read>, ready: &Sender<u64>) {
        while let Ok(line) = wire::read_line(&mut from) {
            if line.is_empty() {
                break;
            }
            let Some(words) = wire::decode(&line) else { continue };
            let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
            let (id, event) = match words.as_slice() {
                [b"ready", number] => {
                    // Nobody waits for a second answer.
                    let _ = wire::number(number).map(|number| ready.send(number));
                    continue;
                }
                [b"out", id, bytes] => (wire::number(id), Some(Event::Out(bytes.to_vec()))),
                [b"err", id, bytes] => (wire::number(id), Some(Event::Err(bytes.to_vec()))),
                [b"end", id, status] => (wire::number(id), wire::number(status).map(Event::End)),
                _ => continue,
            };
            if let (Some(id), Some(event)) = (id, event) {
                self.hand_on(id, event);
            }
        }
        *lock(&self.commands) = None;
    }

    fn hand_on(&self, id: u64, event: Event) {
        match &event {
            Event::Out(bytes) | Event::Err(bytes) => {
                // A line of ours comes through a guest's console, and is in that one's transcript.
                let text = String::from_utf8_lossy(bytes);
                for line in text.lines().filter(|line| wire::decode(line.as_bytes()).is_none()) {
                    self.note(&format!("{id} {line}"));
                }
            }
            Event::End(status) => self.note(&format!("{id} = {status}")),
        }
        let mut commands = lock(&self.commands);
        let Some(commands) = commands.as_mut() else { return };
        let is_end = matches!(event, Event::End(_));
        if let Some(sender) = commands.get(&id) {
            // Whoever dropped the receiver does not want to know.
            let _ = sender.send(event);
        }
        if is_end {
            commands.remove(&id);
        }
    }
}

/// A command that runs in a machine. Dropping it kills it, with all of its process group.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    id: u64,
    shown: String,
    events: Receiver<Event>,
    ran: Ran,
    ended: bool,
    /// As a stream: what came and was not read yet.
    left: Vec<u8>,
}

impl Running {
    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not come within `limit`, or the machine is gone.
    pub fn wait(mut self, limit: Duration) -> Result<Ran> {
        self.pump(limit, "its end", |_, ended| ended)?;
        Ok(self.ran.clone())
    }

    /// Waits until its standard output has this text.
    ///
    /// # Errors
    /// When it does not come within `limit`, or the command has ended without it.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<()> {
        self.pump(limit, text, |ran, ended| ended || ran.stdout.contains(text))?;
        if self.ran.stdout.contains(text) {
            return Ok(());
        }
        Err(VmError::Failed(format!("`{}` ended without {text:?}: {:?}", self.shown, self.ran)))
    }

    /// Whether it has not ended; takes in what it wrote.
    pub fn is_running(&mut self) -> bool {
        while let Ok(event) = self.events.try_recv() {
            self.take(event);
        }
        !self.ended && lock(&self.shared.commands).is_some()
    }

    /// What it wrote to its standard output so far, as far as it was waited for.
    #[must_use]
    pub fn stdout(&self) -> &str {
        &self.ran.stdout
    }

    /// Sends a signal, by its number, to it and all of its process group.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let words = ["kill".to_owned(), self.id.to_string(), signal.to_string()];
        self.shared.send(&wire::encode(&words))
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn write_input(&self, bytes: &[u8]) -> Result<()> {
        write_input(&self.shared, self.id, bytes)
    }

    /// Closes its standard input.
    ///
    /// # Errors
    /// When the machine is gone.
    pub fn close_input(&self) -> Result<()> {
        self.shared.send(&wire::encode(&["close".to_owned(), self.id.to_string()]))
    }

    /// Its standard input, as a stream; the command itself is that of its standard output.
    pub(crate) fn input(&self) -> impl Write + Send + use<> {
        Input { shared: Arc::clone(&self.shared), id: self.id }
    }

    fn pump(
        &mut self,
        limit: Duration,
        what: &str,
        is_enough: impl Fn(&Ran, bool) -> bool,
    ) -> Result<()> {
        // Each access to memory is looked at.
        let limit = if is_debug_kernel() { limit * SLOWER } else { limit };
        let end = Instant::now() + limit;
        while !is_enough(&self.ran, self.ended) {
            match self.events.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(event) => self.take(event),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(VmError::Failed(format!(
                        "`{}` in {}: waited {} s in vain for {what}; so far {:?}",
                        self.shown,
                        self.shared.name,
                        limit.as_secs(),
                        self.ran
                    )));
                }
                Err(RecvTimeoutError::Disconnected) => return Err(self.shared.gone()),
            }
        }
        Ok(())
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Out(bytes) => self.ran.stdout.push_str(&String::from_utf8_lossy(&bytes)),
            Event::Err(bytes) => self.ran.stderr.push_str(&String::from_utf8_lossy(&bytes)),
            Event::End(status) => {
                self.ran.status = status;
                self.ended = true;
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_running() {
            // A machine that is gone runs nothing.
            let _ = self.signal(SIGKILL);
        }
        if let Some(commands) = lock(&self.shared.commands).as_mut() {
            commands.remove(&self.id);
        }
    }
}

fn write_input(shared: &Shared, id: u64, bytes: &[u8]) -> Result<()> {
    let id = id.to_string();
    for chunk in bytes.chunks(CHUNK_BYTES) {
        shared.send(&wire::encode(&[b"in", id.as_bytes(), chunk]))?;
    }
    Ok(())
}

/// The standard input of a command.
struct Input {
    shared: Arc<Shared>,
    id: u64,
}

impl Write for Input {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_input(&self.shared, self.id, bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Its standard output, as a stream.
impl Read for Running {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left.is_empty() && !self.ended {
            match self.events.recv() {
                Ok(Event::Out(bytes)) => self.left = bytes,
                Ok(Event::Err(_)) => {}
                Ok(Event::End(_)) | Err(_) => self.ended = true,
            }
        }
        let bytes = self.left.len().min(buffer.len());
        buffer[..bytes].copy_from_slice(&self.left[..bytes]);
        self.left.drain(..bytes);
        Ok(bytes)
    }
}
