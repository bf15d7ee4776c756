//! `vhd-util key`: by what the key of an encrypted image is recognised.

use std::ffi::OsStr;
use std::path::Path;

use nix::errno::Errno;
use vhd::batmap::KeyHash;
use vhd::plan::set::set_keyhash;
use vhd_files::encryption::Key;
use vhd_files::execute::OpenFiles;

use super::dump::hex;
use super::image::{self, Reading};
use super::perform::{self, Watch, errno_of, perform};
use crate::console::{Console, Failure};
use crate::options::Options;
use crate::program::{Command, Stream};

pub(crate) const COMMAND: Command = Command {
    name: "key",
    short: "n:k:N:H:scCph",
    long: &["--no-lock"],
    usage: "usage:\n-C -k KEYPATH [-N NONCE]: calculate keyhash for KEYPATH\n-s -n NAME <-k \
            KEYPATH> | -H HASH> [-N NONCE]: set keyhash for NAME\n-c -n NAME <-k KEYPATH>: \
            check keyhash for NAME\n-p -n NAME: print keyhash for NAME\n-h help\n",
    usage_stream: Stream::Error,
    usage_status: 0,
    help: HELP,
    run,
};
const HELP: &str = "An encrypted image holds a random nonce and SHA-256 of the nonce and the key, never the key. Keys are
files of 32 or 64 bytes.

  -s -n name -k file [-N nonce]   set it: only while the image holds nothing
  -s -n name -H hash [-N nonce]   the same, the hash in hexadecimal digits
  -c -n name -k file              is this the key? The exit status tells
  -p -n name                      print 'none', or nonce and hash
  -C -k file [-N nonce]           print the hash
";

fn run(console: &mut Console, options: &Options) -> Result<(), Failure> {
    let has_operands = options.operands().next().is_some();
    let name = options.argument(b'n').map(Path::new).filter(|_| !has_operands);
    let (key, hash) = (options.argument(b'k').map(Path::new), options.argument(b'H'));
    let modes = [b's', b'c', b'p', b'C'].map(|mode| options.has(mode));
    match (modes, name, key, hash) {
        ([true, false, is_printed, false], Some(name), _, _) if key.is_some() != hash.is_some() => {
            let set = set(console, name, key, hash, options);
            said(console, set, "setting key failed")?;
            if is_printed { print(console, name) } else { Ok(()) }
        }
        ([false, true, false, false], Some(name), Some(key), None) => {
            let checked = check(name, key);
            said(console, checked, "key check failed")
        }
        ([false, false, true, false], Some(name), None, None) => print(console, name),
        ([false, false, false, true], _, Some(key), None) => {
            let made = read_key(key).and_then(|key| Ok(key.hash(nonce(console, options)?)));
            let hash = made.or_else(|failure| said(console, Err(failure), "calculating failed"));
            console.print(format!("{}\n", hex(&hash?.hash)))
        }
        _ => COMMAND.refuse(console, "One of -s, -c, -p and -C is needed, with what it takes"),
    }
}

fn said<T>(console: &mut Console, done: Result<T, Failure>, what: &str) -> Result<T, Failure> {
    done.inspect_err(|failure| {
        if let Failure::Errno { .. } = failure {
            console.complain(format!("{what}: {}\n", -errno_of(failure)));
        }
    })
}

/// The key in a file.
pub(super) fn read_key(path: &Path) -> Result<Key, Failure> {
    Key::from_file(path)
        .map_err(|error| Failure::new(Errno::EINVAL, format!("{}: {error}", path.display())))
}

/// That of `--key=`, if it was given.
pub(super) fn of_options(options: &Options) -> Result<Option<Key>, Failure> {
    options.value("--key=").map(|path| read_key(Path::new(path))).transpose()
}

/// That which was given, or zeros, as ever: only `copy` makes a random one.
fn nonce(console: &mut Console, options: &Options) -> Result<[u8; 32], Failure> {
    options.argument(b'N').map_or(Ok([0; 32]), |text| digits(console, text))
}

/// 32 bytes in hexadecimal digits.
fn digits(console: &mut Console, text: &OsStr) -> Result<[u8; 32], Failure> {
    let text = text.to_str().unwrap_or_default();
    if text.len() != 64 || !text.is_ascii() {
        console.complain("vhd_util_set_hex: invalid size for hex string\n");
        let why = format!("Found {} letters, wanted 64 hexadecimal digits", text.len());
        return Err(Failure::new(Errno::EINVAL, why));
    }
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        let digits = &text[2 * at..2 * at + 2];
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        match u8::from_str_radix(digits, 16) {
            Ok(value) if is_hex => *byte = value,
            _ => {
                console.complain("vhd_util_set_hex: invalid hex digit\n");
                return Err(Failure::new(Errno::EINVAL, format!("Found {digits:?} in the digits")));
            }
        }
    }
    Ok(bytes)
}

fn set(
    console: &mut Console,
    path: &Path,
    key: Option<&Path>,
    hash: Option<&OsStr>,
    options: &Options,
) -> Result<(), Failure> {
    let nonce = nonce(console, options)?;
    let keyhash = match (key, hash) {
        (Some(key), _) => read_key(key)?.hash(nonce),
        (None, hash) => KeyHash { nonce, hash: digits(console, hash.unwrap_or_default())? },
    };
    let policy = perform::policy(options)?;
    let file = perform::open(path, policy)?;
    let image = image::open(path, Reading::Strict).map_err(|error| image::failure(path, &error))?;
    let refusal = match image.header() {
        None => Some("can't save key hashes for fixed vhds"),
        Some(_) if image.allocated().map_err(|error| image.failure(&error))? > 0 => {
            Some("can't save key hashes for non-empty vhds")
        }
        Some(_) => None,
    };
    if let Some(refusal) = refusal {
        console.complain(format!("vhd_util_set_key: {refusal}\n"));
        return Err(Failure::new(Errno::EINVAL, "What is there is not in that key"));
    }
    drop(image);
    let mut files = OpenFiles::with_image(file, policy);
    let plan = set_keyhash(&files, Some(keyhash));
    let mut plan = plan.map_err(|error| image::failure(path, &error))?;
    perform(console, &mut plan, &mut files, Watch::nothing())
}

fn keyhash(path: &Path) -> Result<Option<KeyHash>, Failure> {
    let image = image::open_whole(path, false);
    image.and_then(|image| image.keyhash()).map_err(|error| image::failure(path, &error))
}

fn print(console: &mut Console, path: &Path) -> Result<(), Failure> {
    let found = keyhash(path).inspect_err(|failure| {
        let errno = errno_of(failure);
        console.complain(format!("failed to open {}: {}\n", path.display(), -errno));
    });
    console.print(match found? {
        Some(keyhash) => format!("{} {}\n", hex(&keyhash.nonce), hex(&keyhash.hash)),
        None => "none\n".to_owned(),
    })
}

fn check(path: &Path, key: &Path) -> Result<(), Failure> {
    let key = read_key(key)?;
    match keyhash(path)? {
        None => Err(Failure::new(Errno::EINVAL, "The image has no key hash")),
        Some(keyhash) if key.opens(&keyhash) => Ok(()),
        Some(_) => Err(Failure::new(Errno::EINVAL, "The image was made with another key")),
    }
}
