//! What tests rely on when they run something in a machine.

use std::time::{Duration, Instant};

use tapdisk_vm::{Machine, VmError};

use crate::blktap::MACHINE;

const BOUND: Duration = Duration::from_secs(60);

#[test]
fn a_command_gives_its_outputs_and_its_status() {
    let Some(machine) = MACHINE.lend() else { return };
    let ran = machine.sh("echo out; echo err >&2; exit 3").unwrap();
    assert_eq!((ran.status, &*ran.stdout, &*ran.stderr), (3, "out\n", "err\n"));
    let missing = machine.run(["no-such-program"]).unwrap();
    assert_eq!(missing.status, 127, "{missing:?}");
    let ended = machine.sh("kill -9 $$").unwrap();
    assert_eq!(ended.status, 128 + 9);
}

#[test]
fn large_output_arrives_whole() {
    let Some(machine) = MACHINE.lend() else { return };
    let ran = machine.sh("seq 1 100000").unwrap();
    let wanted: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    assert!(ran.stdout == wanted, "{} bytes", ran.stdout.len());
}

#[test]
fn commands_run_side_by_side_and_read_what_is_written_to_them() {
    let Some(machine) = MACHINE.lend() else { return };
    let mut cat = machine.start(["cat"]).unwrap();
    assert_eq!(machine.run(["true"]).unwrap().status, 0);
    cat.write_input(b"first\n").unwrap();
    cat.wait_for("first\n", BOUND).unwrap();
    cat.close_input().unwrap();
    assert_eq!(cat.wait(BOUND).unwrap().stdout, "first\n");
}

#[test]
fn a_command_ends_with_all_that_it_started_when_it_is_dropped() {
    let Some(machine) = MACHINE.lend() else { return };
    let mut load = machine.start(["sh", "-c", "sleep 1234 & echo up; wait"]).unwrap();
    load.wait_for("up", BOUND).unwrap();
    drop(load);
    let gone = "while pgrep -f 'sleep 1234' >/dev/null; do usleep 10000; done";
    machine.run_within(BOUND, ["sh", "-c", gone]).unwrap().expect_success();
}

#[test]
fn files_pass_both_ways() {
    let Some(machine) = MACHINE.lend() else { return };
    std::fs::write(machine.share().join("to"), "from outside").unwrap();
    machine.sh("cat /share/to >/share/back && echo +inside >>/share/back").unwrap();
    let back = std::fs::read_to_string(machine.share().join("back")).unwrap();
    assert_eq!(back, "from outside+inside\n");
}

#[test]
fn storage_has_direct_io_and_our_programs_run() {
    let Some(machine) = MACHINE.lend() else { return };
    let direct = "dd if=/dev/zero of=/sr/direct bs=4096 count=1 oflag=direct";
    machine.sh(direct).unwrap().expect_success();
    let version = machine.run(["tapdisk", "--version"]).unwrap().expect_success();
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
}

#[test]
fn a_machine_ends_in_order() {
    let machine = match Machine::plain().label("ends").boot() {
        Ok(machine) => machine,
        Err(VmError::Unavailable(reason)) => return tapdisk_vm::skip(&reason),
        Err(error) => panic!("{error}"),
    };
    machine.power_off().unwrap();
}

#[test]
fn a_hang_is_ended_and_told() {
    let machine = match Machine::plain().label("hangs").boot() {
        Ok(machine) => machine,
        Err(VmError::Unavailable(reason)) => return tapdisk_vm::skip(&reason),
        Err(error) => panic!("{error}"),
    };
    let start = Instant::now();
    let error = machine.run_within(Duration::from_millis(100), ["sleep", "9999"]).unwrap_err();
    assert!(error.to_string().contains("sleep 9999"), "{error}");
    assert!(machine.console().contains("sysrq"), "who waits was asked");
    assert!(start.elapsed() < BOUND * 2);
    assert!(machine.is_gone());
}

#[test]
fn a_module_is_built_and_loaded() {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hello");
    let module = match tapdisk_vm::build_module(&source, "hello") {
        Ok(module) => module,
        Err(VmError::Unavailable(reason)) => return tapdisk_vm::skip(&reason),
        Err(error) => panic!("{error}"),
    };
    let Some(machine) = MACHINE.lend() else { return };
    std::fs::copy(module, machine.share().join("hello.ko")).unwrap();
    machine.run(["insmod", "/share/hello.ko"]).unwrap().expect_success();
    machine.sh("dmesg | grep 'hello from a module'").unwrap().expect_success();
    machine.run(["rmmod", "hello"]).unwrap().expect_success();
}
