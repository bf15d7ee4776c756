//! tapdisk, the daemon; `tap-ctl spawn` starts it.
//!
//! It prints the path of its control socket on the standard output that it was started with, goes
//! into the background, and leaves when its last disk is detached. Its exit status is an errno.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use lexopt::{Arg, Parser, ValueExt};
use nix::errno::Errno;
use tapdisk::error::DiskError;
use tapdisk::layer::LayerSpec;
use tapdisk::log::{Config, Log, Target};
use tapdisk::process::{self, Launch, SignalMask, Signals};
use tapdisk::queue::EngineKind;
use tapdisk::server::{Server, ServerConfig};
use tapdisk::vbd::retry::RetryPolicy;
use tapdisk_control::Paths;
use vhd_files::lock::{Policy, VARIABLE};

const USAGE: &str = "\
usage: tapdisk [-D] [--queue ENGINE] [--lock POLICY] [--retry TRIES] [--no-space WHAT] [--log SINK]
               [--layer LAYER]...

Serves virtual disks. tap-ctl starts it and tells it what to serve; by hand it is of use only to look
at it work (-D) or to test what is above it (--layer).

  -D              stay in the foreground
  --queue ENGINE  aio (default: works on every kernel), io_uring, or sync
  --lock POLICY   who else may write an image that is open for writing here: auto (default: nobody,
                  on storage of this host; network file systems are not locked), always (nobody, or
                  it is not opened), never (everybody; the storage manager sees to it)
  --retry TRIES   how often a request is tried again that the storage failed, a second apart: 60; with
                  0 guests see such an error at once
  --no-space WHAT of writes to storage that is full: wait (default: until it has space), fail
  --log SINK      auto (default), journald, syslog, stderr, file, or file:PATH
  --layer LAYER   above every image, the first on top:
                    fault:percent=5,errno=EIO,op=write,after=100,count=3,seed=1
                    stuck:op=read,after=100     requests that never end
                    integrity                   what is read is compared with what was written
  -h, --help      this text
  -V, --version   the version

The environment: TAPDISK_RUN_DIR (default /run/blktap-control), TAPDISK_DEV_DIR (/dev/xen/blktap-2),
TAPDISK_SHM_DIR (/dev/shm), TAPDISK_LOCK, TAPDISK_RETRY, TAPDISK_NO_SPACE (what --lock, --retry
and --no-space say where they are not given).
";

struct Options {
    foreground: bool,
    engine: EngineKind,
    lock: Option<Policy>,
    retry: RetryPolicy,
    log: Target,
    layers: Vec<LayerSpec>,
}

enum Parsed {
    Run(Options),
    Print(String),
}

fn main() -> ExitCode {
    let options = match parse(std::env::args_os()) {
        Ok(Parsed::Run(options)) => options,
        Ok(Parsed::Print(text)) => {
            // Nobody reads it: nothing to do about it.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&DiskError::new(Errno::EINVAL, error.to_string())),
    };
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &DiskError) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "tapdisk: {error}");
    status(error).into()
}

/// The exit status that stands for an error: its errno.
fn status(error: &DiskError) -> u8 {
    u8::try_from(error.errno() as i32).unwrap_or(1).max(1)
}

fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Parsed, lexopt::Error> {
    let mut options = Options {
        foreground: false,
        engine: EngineKind::Aio,
        lock: None,
        retry: RetryPolicy::from_environment().map_err(|error| error.to_string())?,
        log: Target::default(),
        layers: Vec::new(),
    };
    let mut parser = Parser::from_iter(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('D') => options.foreground = true,
            Arg::Long("queue") => options.engine = parser.value()?.parse()?,
            Arg::Long("lock") => options.lock = Some(parser.value()?.parse()?),
            Arg::Long("retry") => options.retry.tries = parser.value()?.parse()?,
            Arg::Long("no-space") => options.retry.no_space = parser.value()?.parse()?,
            Arg::Long("log") => options.log = absolute(parser.value()?.parse()?),
            Arg::Long("layer") => options.layers.push(parser.value()?.parse()?),
            Arg::Short('h') | Arg::Long("help") => return Ok(Parsed::Print(USAGE.to_owned())),
            Arg::Short('V') | Arg::Long("version") => {
                return Ok(Parsed::Print(format!("tapdisk {}\n", env!("CARGO_PKG_VERSION"))));
            }
            other => return Err(other.unexpected()),
        }
    }
    if options.lock.is_none() {
        options.lock = Policy::from_environment()
            .map_err(|error| lexopt::Error::from(format!("{VARIABLE}: {error}")))?;
    }
    Ok(Parsed::Run(options))
}

/// A file named from the working directory, which a daemon leaves.
fn absolute(target: Target) -> Target {
    match target {
        Target::File(Some(path)) => Target::File(Some(std::path::absolute(&path).unwrap_or(path))),
        other => other,
    }
}

fn run(options: Options) -> Result<(), DiskError> {
    let error = |error: std::io::Error, what: &str| DiskError::io(&error, what);
    // Before the working directory is left.
    let paths = Paths::from_env();
    let mask = SignalMask::block().map_err(|refused| error(refused, "Cannot block signals"))?;
    process::close_inherited(3)
        .map_err(|refused| error(refused, "Cannot close what was left open by the caller"))?;
    process::restrict_umask();
    let launch = if options.foreground { process::foreground() } else { process::daemonise(&mask) };
    let launch = launch.map_err(|refused| error(refused, "Cannot start"))?;
    let warnings = process::raise_limits();
    let log = Log::start(&Config::new(options.log.clone(), slog::Level::Info));
    let log =
        match log.map_err(|refused| DiskError::io(&refused, format!("Cannot log ({refused})"))) {
            Ok(log) => log,
            Err(error) => {
                launch.failed(status(&error), &error.to_string());
                return Err(error);
            }
        };
    let root = log.logger();
    for warning in warnings {
        slog::warn!(root, "{warning}");
    }
    let result = serve(options, paths, &mask, &log, launch);
    if let Err(error) = &result {
        slog::crit!(root, "Cannot serve"; "error" => %error);
    }
    // What the log could not take at the very end nobody can be told.
    let _ = log.finish(result.is_ok());
    result
}

fn serve(
    options: Options,
    paths: Paths,
    mask: &SignalMask,
    log: &Log,
    launch: Launch,
) -> Result<(), DiskError> {
    let config = ServerConfig {
        paths,
        engine: options.engine,
        layers: options.layers,
        lock: options.lock.unwrap_or_default(),
        retry: options.retry,
    };
    let server = Signals::open(mask)
        .map_err(|refused| DiskError::io(&refused, "Cannot receive signals"))
        .and_then(|signals| {
            Server::bind(config, signals, log.handle().clone(), log.logger().clone())
        });
    let server = match server {
        Ok(server) => server,
        Err(error) => {
            launch.failed(status(&error), &error.to_string());
            return Err(error);
        }
    };
    let ready = launch.ready(server.socket_path());
    if let Err(refused) = ready {
        // Who started this is gone, and nobody else knows that it is there.
        server.give_up();
        return Err(DiskError::io(&refused, "Nobody waits for the control path"));
    }
    server.run();
    Ok(())
}
