//! Programs that are not ours work unmodified against the NBD door: libnbd's, QEMU's, fio.
//!
//! Each test is skipped, and says so, where its program is missing.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tapdisk_control::message::{Flags, Params};
use tapdisk_tests::{Daemon, Host, Ran, Random, has_program};

const MIB: usize = 1 << 20;

/// A host, a daemon, and an image that it serves.
struct Served {
    host: Host,
    daemon: Daemon,
    minor: u16,
    image: PathBuf,
}

impl Served {
    fn new(engine: &str, content: &[u8]) -> Self {
        let host = Host::new();
        let image = host.image_of("disk", content);
        let daemon = host.daemon(&["--queue", engine]);
        let (minor, _) = host.serve(&daemon, &format!("aio:{}", image.display()));
        Self { host, daemon, minor, image }
    }

    /// The same, 8 MiB, of which only the MiB at 1 MiB and a page at 5 MiB are not a hole.
    fn sparse() -> Self {
        let host = Host::new();
        let image = host.image("disk", 8 << 20);
        let file = std::fs::OpenOptions::new().write(true).open(&image).unwrap();
        file.write_all_at(&noise(MIB), 1 << 20).unwrap();
        file.write_all_at(&noise(4096), 5 << 20).unwrap();
        let daemon = host.daemon(&[]);
        let (minor, _) = host.serve(&daemon, &format!("aio:{}", image.display()));
        Self { host, daemon, minor, image }
    }

    fn socket(&self) -> PathBuf {
        self.host.nbd_socket(self.daemon.pid, self.minor)
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket().display())
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Ran {
        self.host.run(program, arguments)
    }

    /// Closes the disk: all that was written is in the image, which is returned.
    fn close(self) -> Vec<u8> {
        self.daemon.client.close(self.minor, false, None).unwrap();
        std::fs::read(&self.image).unwrap()
    }
}

/// Bytes without a pattern.
fn noise(len: usize) -> Vec<u8> {
    let mut random = Random::new(7);
    let words = len.div_ceil(8);
    let mut bytes: Vec<u8> = (0..words).flat_map(|_| random.draw().to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}

fn assert_same(found: &[u8], wanted: &[u8]) {
    let differs = found.iter().zip(wanted).position(|(found, wanted)| found != wanted);
    assert_eq!((found.len(), differs), (wanted.len(), None), "the first byte that differs");
}

#[test]
fn nbdinfo_finds_the_export() {
    if !has_program("nbdinfo") {
        return;
    }
    let served = Served::new("aio", &noise(8 * MIB));
    let text = served.run("nbdinfo", &["--json", &served.uri()]).expect_success();
    let info: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!(info["structured"], true);
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], 8 << 20);
    assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]));
    assert_eq!(export["is_read_only"], false);
    for can in ["can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"] {
        assert_eq!(export[can], true, "{can} in {text}");
    }
    // Any name is the export; a listing has one.
    let uri = format!("nbd+unix:///any%20name?socket={}", served.socket().display());
    assert_eq!(served.run("nbdinfo", &["--size", &uri]).expect_success(), "8388608\n");
    let list = served.run("nbdinfo", &["--list", "--json", &served.uri()]).expect_success();
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["exports"].as_array().map(Vec::len), Some(1));
}

/// The extents of `nbdinfo --map` as (offset, length, type).
fn map_of(served: &Served) -> Vec<(u64, u64, u64)> {
    let map = served.run("nbdinfo", &["--map", "--json", &served.uri()]).expect_success();
    let map: Value = serde_json::from_str(&map).unwrap();
    let number = |extent: &Value, key: &str| extent[key].as_u64().unwrap();
    map.as_array()
        .unwrap()
        .iter()
        .map(|extent| (number(extent, "offset"), number(extent, "length"), number(extent, "type")))
        .collect()
}

/// Bits of `base:allocation`.
const HOLE_AND_ZERO: u64 = 3;
const DATA: u64 = 0;

#[test]
fn nbdinfo_maps_data_and_holes() {
    if !has_program("nbdinfo") {
        return;
    }
    let served = Served::sparse();
    let mib = 1 << 20;
    assert_eq!(
        map_of(&served),
        [
            (0, mib, HOLE_AND_ZERO),
            (mib, mib, DATA),
            (2 * mib, 3 * mib, HOLE_AND_ZERO),
            (5 * mib, 4096, DATA),
            (5 * mib + 4096, 3 * mib - 4096, HOLE_AND_ZERO),
        ]
    );
}

#[test]
fn nbdcopy_copies_in_and_out() {
    if !has_program("nbdcopy") {
        return;
    }
    for engine in ["aio", "io_uring", "sync"] {
        let content = noise(16 * MIB);
        let served = Served::new(engine, &vec![0xee; 16 * MIB]);
        let source = served.host.image_of("source", &content);
        let back = served.host.path("back");
        let (source, back) = (source.to_str().unwrap(), back.to_str().unwrap());
        served.run("nbdcopy", &["--flush", source, &served.uri()]).expect_success();
        served.run("nbdcopy", &[&served.uri(), back]).expect_success();
        assert_same(&std::fs::read(back).unwrap(), &content);
        assert_same(&served.close(), &content);
    }
}

#[test]
fn nbdcopy_leaves_holes_where_there_are_some() {
    if !has_program("nbdcopy") {
        return;
    }
    let served = Served::sparse();
    // In, with zeros for holes: what was there before is gone.
    let source = served.host.image("source", 8 << 20);
    let file = std::fs::OpenOptions::new().write(true).open(&source).unwrap();
    file.write_all_at(&noise(MIB), 3 << 20).unwrap();
    let source = source.to_str().unwrap().to_owned();
    served.run("nbdcopy", &["--flush", &source, &served.uri()]).expect_success();
    let back = served.host.path("back");
    let back = back.to_str().unwrap();
    served.run("nbdcopy", &[&served.uri(), back]).expect_success();
    let content = std::fs::read(&source).unwrap();
    assert_same(&std::fs::read(back).unwrap(), &content);
    assert_same(&served.close(), &content);
}

#[test]
fn qemu_img_converts_both_ways_and_compares() {
    if !has_program("qemu-img") {
        return;
    }
    let content = noise(8 * MIB);
    let served = Served::new("io_uring", &vec![0; 8 * MIB]);
    let uri = served.uri();
    let info = served.run("qemu-img", &["info", "--output=json", &uri]).expect_success();
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!((&info["virtual-size"], &info["format"]), (&(8 << 20).into(), &"raw".into()));
    let source = served.host.image_of("source", &content);
    let source = source.to_str().unwrap();
    let compare = |with: &str| {
        served.run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &uri, with]).status
    };
    assert_eq!(compare(source), 1, "before the copy");
    let convert = ["convert", "-n", "-f", "raw", "-O", "raw", source, &uri];
    served.run("qemu-img", &convert).expect_success();
    assert_eq!(compare(source), 0, "after it");
    let back = served.host.path("back.qcow2");
    let back = back.to_str().unwrap();
    served.run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, back]).expect_success();
    let compare = ["compare", "-f", "raw", "-F", "qcow2", &uri, back];
    served.run("qemu-img", &compare).expect_success();
    assert_same(&served.close(), &content);
}

#[test]
fn qemu_img_maps_data_and_holes() {
    if !has_program("qemu-img") {
        return;
    }
    let served = Served::sparse();
    let text = served.run("qemu-img", &["map", "--output=json", "-f", "raw", &served.uri()]);
    let map: Value = serde_json::from_str(&text.expect_success()).unwrap();
    let extents: Vec<(u64, u64, bool)> = map
        .as_array()
        .unwrap()
        .iter()
        .map(|extent| {
            let number = |key: &str| extent[key].as_u64().unwrap();
            (number("start"), number("length"), extent["data"].as_bool().unwrap())
        })
        .collect();
    let mib = 1 << 20;
    assert_eq!(
        extents,
        [
            (0, mib, false),
            (mib, mib, true),
            (2 * mib, 3 * mib, false),
            (5 * mib, 4096, true),
            (5 * mib + 4096, 3 * mib - 4096, false),
        ]
    );
}

#[test]
fn qemu_io_writes_zeroes_discards_and_verifies() {
    if !has_program("qemu-io") {
        return;
    }
    let served = Served::new("sync", &noise(8 * MIB));
    let steps = [
        "write -P 0x11 0 1M",
        "write -f -P 0x22 64k 4k",
        "write -z 1M 512k",
        "write -z -u 2M 1M",
        "discard 4M 1M",
        "flush",
        "read -P 0x11 0 64k",
        "read -P 0x22 64k 4k",
        "read -P 0x11 68k 956k",
        "read -P 0 1M 512k",
        "read -P 0 2M 1M",
        "aio_write -P 0x33 6M 64k",
        "aio_write -P 0x44 7M 64k",
        "aio_flush",
        "read -P 0x33 6M 64k",
    ];
    let uri = served.uri();
    let mut arguments = vec!["-f", "raw", &uri];
    arguments.extend(steps.iter().flat_map(|step| ["-c", step]));
    let text = served.run("qemu-io", &arguments).expect_success();
    assert!(!text.contains("verification failed"), "{text}");
    let found = served.close();
    assert_same(&found[..64 << 10], &[0x11; 64 << 10]);
    assert_same(&found[64 << 10..68 << 10], &[0x22; 4 << 10]);
    assert_same(&found[2 * MIB..3 * MIB], &vec![0; MIB]);
    assert_same(&found[7 * MIB..][..64 << 10], &[0x44; 64 << 10]);
    assert_same(&found[3 * MIB..4 * MIB], &noise(8 * MIB)[3 * MIB..4 * MIB]);
}

/// Runs a script in libnbd's shell. It is written in the distribution's Python, which other
/// versions in the path do not replace.
fn nbdsh(host: &Host, socket: &Path, script: &str) {
    let mut command = host.command("nbdsh");
    command.env("PATH", "/usr/bin:/bin");
    let connect = format!(
        "import errno\nh.add_meta_context('base:allocation')\nh.set_strict_mode(0)\n\
         h.connect_unix({:?})",
        socket.to_str().unwrap()
    );
    let ran: Ran = command.arg("-c").arg(connect).arg("-c").arg(script).output().unwrap().into();
    ran.expect_success();
}

#[test]
fn nbdsh_speaks_every_command() {
    if !has_program("nbdsh") {
        return;
    }
    let served = Served::sparse();
    nbdsh(
        &served.host,
        &served.socket(),
        r"
assert h.get_size() == 8 << 20
assert h.can_multi_conn() and h.can_fua() and h.can_flush() and h.can_trim() and h.can_zero()
assert not h.is_read_only()
assert h.get_structured_replies_negotiated()
h.pwrite(b'A' * 512, 512)
h.pwrite(b'B' * 4096, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(512, 512) == b'A' * 512
assert h.pread(1024, 4096) == b'B' * 1024
h.flush()
h.zero(4096, 4096)
assert h.pread(4096, 4096) == bytes(4096)
h.zero(4096, 8192, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.trim(1 << 20, 1 << 20)
assert h.pread(1 << 20, 6 << 20) == bytes(1 << 20)
extents = []
h.block_status(8 << 20, 0, lambda name, offset, found, error: extents.append((name, found)))
name, found = extents[0]
assert name == 'base:allocation' and sum(found[0::2]) <= 8 << 20
assert set(found[1::2]) <= {0, 2, 3}
one = []
h.block_status(8 << 20, 0, lambda n, o, found, e: one.append(found), nbd.CMD_FLAG_REQ_ONE)
assert len(one[0]) == 2
for call in [
    lambda: h.pread(4096, (8 << 20) - 512),
    lambda: h.pwrite(bytes(4096), (8 << 20) - 512),
    lambda: h.trim(4096, 8 << 20),
    lambda: h.pread(512, 1 << 62),
]:
    try:
        call()
        raise SystemExit('a request past the end was taken')
    except nbd.Error as error:
        assert error.errnum in (errno.EINVAL, errno.ENOSPC), error
assert h.pread(512, 512) == b'A' * 512
h.shutdown()
",
    );
}

#[test]
fn nbdsh_sees_other_connections_writes_after_their_flush() {
    if !has_program("nbdsh") {
        return;
    }
    let served = Served::new("io_uring", &noise(MIB));
    let script = format!(
        r"
other = nbd.NBD()
other.connect_unix({:?})
for number in range(50):
    data = bytes([number]) * 4096
    h.pwrite(data, number * 4096)
    other.flush()
    assert other.pread(4096, number * 4096) == data
other.shutdown()
h.shutdown()
",
        served.socket().to_str().unwrap()
    );
    nbdsh(&served.host, &served.socket(), &script);
}

#[test]
fn nbdsh_finds_a_read_only_export_closed_to_writes() {
    if !has_program("nbdsh") {
        return;
    }
    let host = Host::new();
    let content = noise(MIB);
    let image = host.image_of("disk", &content);
    let daemon = host.daemon(&[]);
    let minor = host.attach(&daemon);
    let path = format!("aio:{}", image.display());
    let params = Params { path: path.into(), flags: Flags::READ_ONLY, ..Params::default() };
    daemon.client.open(minor, params).unwrap();
    nbdsh(
        &host,
        &host.nbd_socket(daemon.pid, minor),
        r"
assert h.is_read_only()
before = h.pread(4096, 0)
for call in [
    lambda: h.pwrite(bytes(4096), 0),
    lambda: h.zero(4096, 0),
    lambda: h.trim(4096, 0),
]:
    try:
        call()
        raise SystemExit('a write was taken')
    except nbd.Error as error:
        assert error.errnum == errno.EPERM, error
assert h.pread(4096, 0) == before
h.flush()
h.shutdown()
",
    );
    daemon.client.close(minor, false, None).unwrap();
    assert_same(&std::fs::read(&image).unwrap(), &content);
}

/// fio, with a checksum of every block that it writes, read back and compared.
fn fio(engine: &str, job: &[&str]) {
    let served = Served::new(engine, &vec![0; 16 * MIB]);
    let list = served.run("fio", &["--enghelp"]).expect_success();
    if !list.split_whitespace().any(|name| name == "nbd") {
        return tapdisk_tests::skip("this fio has no nbd engine");
    }
    let uri = format!("--uri={}", served.uri());
    let mut arguments = vec!["--name=peer", "--ioengine=nbd", &uri];
    arguments.extend(["--verify=crc32c", "--verify_fatal=1", "--randseed=11", "--fallocate=none"]);
    arguments.extend(job);
    let text = served.run("fio", &arguments).expect_success();
    assert!(!text.contains("verify:"), "{text}");
}

#[test]
fn fio_verifies_small_requests_at_depth_32() {
    if !has_program("fio") {
        return;
    }
    for engine in ["aio", "io_uring", "sync"] {
        fio(engine, &["--rw=randrw", "--bs=4k", "--iodepth=32", "--size=16m", "--fsync=64"]);
    }
}

#[test]
fn fio_verifies_large_requests() {
    if !has_program("fio") {
        return;
    }
    for engine in ["aio", "io_uring", "sync"] {
        fio(engine, &["--rw=randrw", "--bs=1m", "--iodepth=8", "--size=16m"]);
        fio(engine, &["--rw=write", "--bsrange=512-256k", "--iodepth=16", "--size=16m"]);
    }
}
