//! create, snapshot, copy, convert and key: what makes images.

use std::fs;

use vhd::footer::{DiskType, Footer};
use vhd::testing::Spec;
use vhd::units::Uuid;

use crate::bench::Bench;

fn footer(bench: &Bench, name: &str) -> Footer {
    Footer::parse(bench.read(name).last_chunk().unwrap()).unwrap()
}

fn parent() -> Spec {
    Spec { uuid: Uuid([9; 16]), ..Spec::new(6 << 20).with(0, 3, 1).with(4096, 4096, 1) }
}

#[test]
fn create_makes_a_dynamic_or_fixed_disk_of_whole_blocks() {
    let bench = Bench::new("making-create");
    assert_eq!(bench.vhd_text("create -n d -s 5"), "");
    assert_eq!(
        bench.vhd_text("query -vsafmdS -n d"),
        "6\n3584\nhidden: 0\nmarker: 0\nchain depth: 1\n0\n6\n"
    );
    assert_eq!(bench.vhd_text("check -n d"), "d is valid\n");
    bench.vhd_ok("create --debug -n f -s 5 -r");
    assert_eq!(bench.vhd_text("query -vsf -n f"), "6\n6291968\nhidden: 0\n");
    assert_eq!(bench.vhd_text("check -n f"), "", "nothing is said of a fixed disk");
    let (dynamic, fixed) = (footer(&bench, "d"), footer(&bench, "f"));
    assert_eq!((dynamic.disk_type, fixed.disk_type), (DiskType::Dynamic, DiskType::Fixed));
    assert_ne!(dynamic.uuid, fixed.uuid);
    // 2 TiB need no more metadata than storage managers count with.
    bench.vhd_ok("create -n m -s 2 -S 2097152");
    assert_eq!(bench.vhd_text("query -vsS -n m"), "2\n4327936\n2097152\n");
}

#[test]
fn create_takes_the_place_of_what_is_there_and_says_what_it_cannot_do() {
    let bench = Bench::new("making-create-errors");
    fs::write(bench.path("a"), [1; 100_000]).unwrap();
    bench.vhd_ok("create -n a -s 2");
    assert_eq!(bench.read("a").len(), 3584);
    let (status, out) = bench.vhd("create -n x -s 50 -S 40");
    assert_eq!((status, out.as_str()), (22, "Error: <-S size> must be greater than <-s size>\n"));
    for wrong in ["create", "create -n x", "create -s 5", "create -n x -s 5 more", "create -Z"] {
        let (status, out) = bench.vhd(wrong);
        assert!(
            status == 22 && out.starts_with("options: <-n name> <-s size (MB)>"),
            "{wrong}: {out}"
        );
    }
    let (status, _, error) = bench.run("vhd-util", &["create", "-n", "no/x", "-s", "5"]);
    assert_eq!((status, error.as_str()), (2, "no/x: failed to create: -2\n"));
    assert!(!bench.path("x").exists());
}

#[test]
fn a_snapshot_shows_what_its_parent_does_and_knows_where_it_is() {
    let bench = Bench::new("making-snapshot");
    fs::create_dir(bench.path("sub")).unwrap();
    bench.make("p", &parent());
    for (child, stored) in [("c", "./p"), ("sub/c", "../p")] {
        bench.vhd_ok(&format!("snapshot -n {child} -p p"));
        let path = fs::canonicalize(bench.path("p")).unwrap();
        assert_eq!(
            bench.vhd_text(&format!("query -p -n {child}")),
            format!("{}\n", path.display())
        );
        assert_eq!(bench.vhd_text(&format!("query -pu -n {child}")), format!("{stored}\n"));
        assert_eq!(bench.vhd_text(&format!("query -vda -n {child}")), "6\nchain depth: 2\n0\n");
        assert!(bench.vhd_ok(&format!("read -r 0 -c 12288 -n {child}")) == parent().disk());
        assert_eq!(bench.vhd_text(&format!("check -n {child}")), format!("{child} is valid\n"));
    }
    // From another directory.
    let child = bench.path("sub/c");
    let elsewhere = bench.path("sub");
    let mut query = bench.command("vhd-util", &["query", "-d", "-n", child.to_str().unwrap()]);
    let output = query.current_dir(elsewhere).output().unwrap();
    assert_eq!(output.stdout, b"chain depth: 2\n");
}

#[test]
fn a_snapshot_skips_empty_children_unless_it_may_not() {
    let bench = Bench::new("making-empty");
    bench.make("p", &parent());
    bench.vhd_ok("snapshot -n empty -p p");
    bench.vhd_ok("snapshot -n skips -p empty");
    assert_eq!(bench.vhd_text("query -pu -n skips"), "./p\n");
    bench.vhd_ok("snapshot -n stays -p empty -e");
    assert_eq!(bench.vhd_text("query -pu -n stays"), "./empty\n");
    // An empty disk that is no child is a parent.
    bench.vhd_ok("create -n dynamic -s 4");
    bench.vhd_ok("snapshot -n c -p dynamic");
    assert_eq!(bench.vhd_text("query -pu -n c"), "./dynamic\n");
    fs::write(bench.path("raw"), vec![7; 3 << 20]).unwrap();
    bench.vhd_ok("snapshot -n onraw -p raw -m");
    bench.vhd_ok("snapshot -n skipstoraw -p onraw");
    assert_eq!(bench.vhd_text("query -pu -n skipstoraw"), "./raw\n");
    assert_eq!(bench.vhd_ok("read -r 6143 -c 1 -n skipstoraw"), [7; 512]);
}

#[test]
fn a_snapshot_has_limits() {
    let bench = Bench::new("making-limits");
    bench.make("p", &parent());
    bench.vhd_ok("snapshot -n a -p p -e");
    let (status, out) = bench.vhd("snapshot -n b -p a -e -l 2");
    assert_eq!(
        (status, out.as_str()),
        (28, "snapshot depth exceeded: current depth: 2, limit: 2\n")
    );
    assert!(!bench.path("b").exists());
    bench.vhd_ok("snapshot -n b -p a -e -l 3");
    assert_eq!(bench.vhd("snapshot -n x -p p -S 4").0, 22, "tables smaller than the parent");
    bench.vhd_ok("snapshot -n large -p p -S 100");
    assert_eq!(bench.vhd_text("query -vS -n large"), "6\n100\n");
    assert_eq!(bench.vhd("snapshot -n x -p none").0, 2);
    bench.make("nil", &Spec { uuid: Uuid::NIL, ..parent() });
    assert_eq!(bench.vhd("snapshot -n x -p nil").0, 22, "a parent without identity");
    assert_eq!(bench.vhd("snapshot -n x").0, 22);
    assert!(!bench.path("x").exists());
}

#[test]
fn a_copy_has_the_blocks_and_another_identity() {
    let bench = Bench::new("making-copy");
    bench.make("a", &parent());
    bench.vhd_ok("copy -n a -N b");
    assert!(bench.vhd_ok("read -r 0 -c 12288 -n b") == parent().disk());
    assert_eq!(bench.vhd_text("query -va -n b"), bench.vhd_text("query -va -n a"));
    assert_ne!(footer(&bench, "a").uuid, footer(&bench, "b").uuid);
    let (status, out) = bench.vhd("copy -n a -N b");
    let text = "VHD file b already exists, chose a different name\n";
    assert_eq!((status, out.as_str()), (22, text));
    assert_eq!(bench.vhd("copy -n a").0, 22);
    bench.make("c", &Spec::child_of(&parent(), "a"));
    let (status, out) = bench.vhd("copy -n c -N d");
    assert_eq!((status, out.as_str()), (22, "error creating d: -22\n"));
    assert!(!bench.path("d").exists());
}

#[test]
fn convert_goes_from_every_format_to_every_other() {
    let bench = Bench::new("making-convert");
    let disk = parent().disk();
    fs::write(bench.path("raw"), &disk).unwrap();
    bench.make("vhd", &parent());
    for (from, options) in [("raw", "-f raw"), ("vhd", ""), ("vhd", "-f vhd")] {
        for (to, wish) in
            [("dynamic", ""), ("dynamic", "-O dynamic"), ("fixed", "-O fixed"), ("raw", "-O raw")]
        {
            assert_eq!(bench.vhd_text(&format!("convert -n {from} {options} -N new {wish}")), "");
            let read = if to == "raw" {
                bench.read("new")
            } else {
                bench.vhd_ok("read -r 0 -c 12288 -n new")
            };
            assert!(read == disk, "{from} to {to}");
            if to != "raw" {
                bench.vhd_ok("check -b -n new");
            }
            fs::remove_file(bench.path("new")).unwrap();
        }
    }
    // Only what is not zero is stored: blocks 0 and 2.
    bench.vhd_ok("convert -n raw -f raw -N new");
    assert_eq!(bench.vhd_text("query -a -n new"), "2\n");
    // A disk of no whole blocks, and of no whole sectors.
    fs::write(bench.path("odd"), [5; 700]).unwrap();
    bench.vhd_ok("convert -n odd -f raw -N fixed -O fixed");
    assert_eq!(footer(&bench, "fixed").current_size, 1024);
    let fixed = bench.read("fixed");
    assert!(fixed[..700] == [5; 700] && fixed[700..1024] == [0; 324]);
}

#[test]
fn convert_refuses_what_it_cannot_do_and_leaves_nothing() {
    let bench = Bench::new("making-convert-errors");
    bench.make("a", &parent());
    fs::write(bench.path("zero"), []).unwrap();
    for (wrong, status) in [
        ("convert -n a", 22),
        ("convert -n a -N b -f vmdk", 22),
        ("convert -n a -N b -O qcow2", 22),
        ("convert -n none -N b", 2),
        ("convert -n a -N a", 17),
        ("convert -n zero -f raw -N b", 22),
        ("convert -n zero -N b", 32),
        ("convert -n a -f qcow2 -N b", 5),
    ] {
        let (found, _) = bench.vhd(wrong);
        assert!(found == status || wrong.contains("qcow2") && found != 0, "{wrong}: {found}");
        assert!(!bench.path("b").exists(), "{wrong}");
    }
    let names: Vec<_> = fs::read_dir(&bench).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "nothing is left: {names:?}");
    // A command of ours: its error is told to everybody.
    let (_, _, error) = bench.run("vhd-util", &["convert", "-n", "none", "-N", "b"]);
    assert!(error.starts_with("vhd-util convert: none: No such file or directory"), "{error}");
}

#[test]
fn a_key_is_recognised_by_a_hash_that_only_an_empty_image_may_get() {
    let bench = Bench::new("making-key");
    bench.vhd_ok("create -n a -s 4");
    assert_eq!(bench.vhd_text("key -p -n a"), "none\n");
    fs::write(bench.path("k,aes-xts-plain,256.key"), [7; 32]).unwrap();
    fs::write(bench.path("o,aes-xts-plain,512.key"), [8; 64]).unwrap();
    fs::write(bench.path("short,aes-xts-plain,256.key"), [7; 31]).unwrap();
    bench.vhd_ok("key -s -n a -k k,aes-xts-plain,256.key");
    // SHA-256 of 32 zeros and the key.
    let wanted = crate::telling::sha256(&[[0; 32], [7; 32]].concat());
    assert_eq!(bench.vhd_text("key -p -n a"), format!("{} {wanted}\n", "0".repeat(64)));
    assert_eq!(bench.vhd_text("key -C -k k,aes-xts-plain,256.key"), format!("{wanted}\n"));
    assert_eq!(bench.vhd("key -c -n a -k k,aes-xts-plain,256.key").0, 0);
    assert_eq!(bench.vhd("key -c -n a -k o,aes-xts-plain,512.key").0, 22);
    assert_eq!(bench.vhd("key -s -n a -k short,aes-xts-plain,256.key").0, 22);
    let (nonce, hash) = ("ab".repeat(32), "cd".repeat(32));
    bench.vhd_ok(&format!("key -s -n a -N {nonce} -H {hash}"));
    assert_eq!(bench.vhd_text("key -p -n a"), format!("{nonce} {hash}\n"));
    assert_eq!(bench.vhd("key -s -n a -H xy").0, 22);
    // Its children have the same key, and their data no other.
    bench.vhd_ok("snapshot -n c -p a");
    assert_eq!(bench.vhd_text("key -p -n c"), format!("{nonce} {hash}\n"));
    bench.make("full", &parent());
    assert_eq!(bench.vhd("key -s -n full -k k,aes-xts-plain,256.key").0, 22);
    assert_eq!(bench.vhd_text("key -p -n full"), "none\n");
}

#[test]
fn an_encrypted_copy_is_nothing_without_its_key() {
    let bench = Bench::new("making-encrypted");
    bench.make("a", &parent());
    fs::write(bench.path("k,aes-xts-plain,512.key"), [7; 64]).unwrap();
    bench.vhd_ok("copy -n a -N e -k k,aes-xts-plain,512.key");
    bench.vhd_ok("key -c -n e -k k,aes-xts-plain,512.key");
    let stored = bench.vhd_ok("read -r 0 -c 3 -n e");
    assert!(stored != parent().disk()[..1536] && stored[..512] != stored[512..1024]);
    for command in ["convert -n e -N raw -O raw", "copy -n e -N e2", "fill -n e"] {
        let why = bench.vhd_why(command, 13);
        assert!(why.contains("e: ") && why.contains("encrypt"), "{command}: {why}");
    }
    assert_eq!(bench.vhd_text("check -n e"), "e is valid\n");
    fs::write(bench.path("o,aes-xts-plain,512.key"), [8; 64]).unwrap();
    let why = bench.vhd_why("convert -n e -N raw -O raw -k o,aes-xts-plain,512.key", 22);
    assert!(why.contains("not made with this key"), "{why}");
    assert!(!bench.path("raw").exists());
    bench.vhd_ok("convert -n e -N raw -O raw -k k,aes-xts-plain,512.key");
    assert!(bench.read("raw") == parent().disk());
    assert_eq!(bench.vhd("convert -n a -N b -k k,aes-xts-plain,512.key").0, 22, "not encrypted");
    assert_eq!(bench.vhd("convert -n raw -f raw -N b -k k,aes-xts-plain,512.key").0, 22);
    // A child of it: what it does not hold is read, and decrypted, from there.
    bench.vhd_ok("snapshot -n c -p e");
    bench.vhd_ok("convert -n c -N raw2 -O raw -k k,aes-xts-plain,512.key");
    assert!(bench.read("raw2") == parent().disk());
}

const KEY: &str = "k,aes-xts-plain,512.key";

/// `e`, encrypted, of what `parent` shows, and `c`, its child of nothing.
fn encrypted(name: &str) -> Bench {
    let bench = Bench::new(name);
    bench.make("a", &parent());
    fs::write(bench.path(KEY), [7; 64]).unwrap();
    fs::write(bench.path("other"), [8; 64]).unwrap();
    bench.vhd_ok(&format!("copy -n a -N e -k {KEY}"));
    bench.vhd_ok("snapshot -n c -p e");
    bench
}

/// With the key, an image shows what `parent` does.
fn shows_parent(bench: &Bench, name: &str) {
    bench.vhd_ok(&format!("convert -n {name} -N plain -O raw -k {KEY}"));
    assert!(bench.read("plain") == parent().disk(), "{name}");
    fs::remove_file(bench.path("plain")).unwrap();
}

#[test]
fn an_encrypted_disk_that_is_filled_or_merged_shows_what_it_did() {
    let bench = encrypted("making-filled");
    for command in ["fill -n c", "fill -n c --key=other"] {
        let status = if command.ends_with("other") { 22 } else { 13 };
        let why = bench.vhd_why(command, status);
        assert!(why.contains("c: "), "{command}: {why}");
        assert_eq!(bench.vhd_text("query -a -n c"), "0\n");
    }
    assert_eq!(bench.vhd(&format!("fill -n a --key={KEY}")).0, 22, "a is in no key");
    assert_eq!(bench.vhd("fill -n c --key=none").0, 22, "no such key");
    bench.vhd_ok(&format!("fill -n c --key={KEY}"));
    assert_eq!(bench.vhd_text("check -b -n c"), "c is valid\n");
    shows_parent(&bench, "c");
    // All of it is there: zeros of the parent, too, and encrypted.
    let stored = bench.vhd_ok("read -r 12000 -c 2 -n c");
    assert!(stored[..512] != stored[512..] && stored.iter().any(|byte| *byte != 0));
    bench.vhd_ok("coalesce -n c");
    shows_parent(&bench, "e");
    shows_parent(&bench, "c");
}

#[test]
fn a_key_may_come_on_standard_input() {
    let bench = encrypted("making-stdin");
    let mut copy = bench.command("vhd-util", &["copy", "-n", "a", "-N", "e2", "-E"]);
    let copy = copy.stdin(fs::File::open(bench.path(KEY)).unwrap()).output().unwrap();
    assert_eq!((copy.status.code(), copy.stdout.len()), (Some(0), 0));
    bench.vhd_ok(&format!("key -c -n e2 -k {KEY}"));
    shows_parent(&bench, "e2");
    // Nothing there is no key.
    assert_eq!(bench.vhd("copy -n a -N e3 -E").0, 22);
    assert!(!bench.path("e3").exists());
}

#[test]
fn what_is_not_in_one_key_is_not_merged() {
    let bench = encrypted("making-keys");
    bench.vhd_ok(&format!("fill -n c --key={KEY}"));
    // Another parent of the same identity, in no key.
    let plain = Spec { uuid: footer(&bench, "e").uuid, ..parent() };
    bench.make("e", &plain);
    let before = bench.read("e");
    for arguments in ["", "--key=other", &format!("--key={KEY}")] {
        let why = bench.vhd_why(&format!("coalesce -n c {arguments}"), 22);
        assert!(why.contains("key"), "{why}");
    }
    assert!(bench.read("e") == before);
    // A raw one, which gets what the disk shows.
    fs::write(bench.path("raw"), vec![1; 6 << 20]).unwrap();
    bench.vhd_ok("modify -n c -p raw -m");
    assert_eq!(bench.vhd("coalesce -n c").0, 13);
    assert_eq!(bench.vhd("coalesce -n c --key=other").0, 22);
    assert!(bench.read("raw") == vec![1; 6 << 20]);
    bench.vhd_ok(&format!("coalesce -n c --key={KEY}"));
    assert!(bench.read("raw") == parent().disk());
    shows_parent(&bench, "c");
}
