//! Runs the commands that come in by the channel. A thread reads it; each command has four more:
//! for its input, its two outputs and its end. All of them write whole lines.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tapdisk_vm::wire::{self, CHUNK_BYTES};

/// How long what a command wrote is awaited after its end: a process that it left behind may keep
/// its outputs open for ever.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// For a command's input: bytes, or nothing to close it.
type Input = Option<Vec<u8>>;

/// A command that runs.
struct Running {
    group: Pid,
    input: Sender<Input>,
}

#[derive(Clone)]
struct Agent {
    to: Arc<Mutex<File>>,
    running: Arc<Mutex<HashMap<u64, Running>>>,
}

/// A panic of another thread leaves nothing half-done behind these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves until the other side goes away, or says so.
pub(crate) fn run(path: &str) -> io::Result<()> {
    if path.contains("hvc") {
        super::bridge::make_raw(path)?;
    }
    let from = File::options().read(true).write(true).open(path)?;
    let to = Arc::new(Mutex::new(from.try_clone()?));
    let agent = Agent { to, running: Arc::default() };
    let mut from = BufReader::new(from);
    loop {
        let line = wire::read_line(&mut from)?;
        if line.is_empty() {
            return Ok(());
        }
        let Some(words) = wire::decode(&line) else { continue };
        let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        match words.as_slice() {
            [b"bye"] => return Ok(()),
            [b"hello", number] => agent.say(&[b"ready", number])?,
            [word, id, rest @ ..] => {
                if let Some(id) = wire::number(id) {
                    agent.obey(word, id, rest)?;
                }
            }
            _ => {}
        }
    }
}

impl Agent {
    fn say(&self, words: &[&[u8]]) -> io::Result<()> {
        lock(&self.to).write_all(&wire::encode(words))
    }

    fn obey(&self, word: &[u8], id: u64, rest: &[&[u8]]) -> io::Result<()> {
        match (word, rest) {
            (b"run", [program, arguments @ ..]) => self.start(id, program, arguments),
            (b"in", [bytes]) => {
                self.input(id, Some(bytes.to_vec()));
                Ok(())
            }
            (b"close", []) => {
                self.input(id, None);
                Ok(())
            }
            (b"kill", [signal]) => {
                let signal = wire::number::<i32>(signal).map(Signal::try_from);
                if let (Some(Ok(signal)), Some(running)) = (signal, lock(&self.running).get(&id)) {
                    // Its leader may have ended just now.
                    let _ = killpg(running.group, signal);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn input(&self, id: u64, input: Input) {
        if let Some(running) = lock(&self.running).get(&id) {
            // It may have ended, or closed its input.
            let _ = running.input.send(input);
        }
    }

    fn start(&self, id: u64, program: &[u8], arguments: &[&[u8]]) -> io::Result<()> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut command = Command::new(text(program));
        command.args(arguments.iter().map(|argument| text(argument)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = match command.process_group(0).spawn() {
            Ok(child) => child,
            Err(error) => {
                let said = format!("Cannot run {}: {error}\n", text(program));
                let id = id.to_string();
                self.say(&[b"err", id.as_bytes(), said.as_bytes()])?;
                return self.say(&[b"end", id.as_bytes(), b"127"]);
            }
        };
        self.attend(id, child);
        Ok(())
    }

    fn attend(&self, id: u64, mut child: Child) {
        let (input, inputs) = channel();
        let group = Pid::from_raw(i32::try_from(child.id()).expect("process numbers are small"));
        lock(&self.running).insert(id, Running { group, input });
        let stdin = child.stdin.take().expect("piped");
        std::thread::spawn(move || feed(stdin, &inputs));
        let (done, ends) = channel();
        let outputs: [(&'static [u8], Box<dyn Read + Send>); 2] = [
            (b"out", Box::new(child.stdout.take().expect("piped"))),
            (b"err", Box::new(child.stderr.take().expect("piped"))),
        ];
        for (word, output) in outputs {
            let (agent, done) = (self.clone(), done.clone());
            std::thread::spawn(move || {
                agent.tell(word, id, output);
                let _ = done.send(());
            });
        }
        let agent = self.clone();
        std::thread::spawn(move || {
            let status = child.wait();
            for _ in 0..2 {
                let _ = ends.recv_timeout(LAST_WORDS);
            }
            lock(&agent.running).remove(&id);
            let status = status.ok().and_then(|status| {
                status.code().or_else(|| status.signal().map(|signal| 128 + signal))
            });
            let status = status.unwrap_or(126).to_string();
            let _ = agent.say(&[b"end", id.to_string().as_bytes(), status.as_bytes()]);
        });
    }

    /// Passes on what a command writes.
    fn tell(&self, word: &[u8], id: u64, mut output: Box<dyn Read + Send>) {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(bytes @ 1..) = output.read(&mut buffer) {
            if self.say(&[word, id.to_string().as_bytes(), &buffer[..bytes]]).is_err() {
                return;
            }
        }
    }
}

/// Writes what comes for a command's input until that is to be closed, or the command ends.
fn feed(mut stdin: ChildStdin, inputs: &Receiver<Input>) {
    while let Ok(Some(bytes)) = inputs.recv() {
        if stdin.write_all(&bytes).and_then(|()| stdin.flush()).is_err() {
            return;
        }
    }
}
