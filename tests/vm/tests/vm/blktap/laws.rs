//! The laws of the ABI, the same that the simulated kernel keeps.

use super::{LAWS, LONG, Lab};

#[test]
fn the_driver_keeps_the_laws_of_the_abi() {
    let Some(lab) = Lab::enter() else { return };
    let line = format!("BLKTAP_KERNEL=driver exec {LAWS} --test-threads=1 --nocapture");
    let ran = lab.run_within(LONG, ["sh", "-c", &line]).unwrap();
    assert_eq!(ran.status, 0, "{}\n{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("test result: ok."), "{}", ran.stdout);
    lab.leave();
}

#[test]
fn the_module_comes_and_goes() {
    let Some(lab) = Lab::enter() else { return };
    for _ in 0..3 {
        lab.sh("rmmod blktap && [ ! -e /dev/blktap ] && insmod /lib/modules/blktap.ko");
    }
    lab.leave();
}
