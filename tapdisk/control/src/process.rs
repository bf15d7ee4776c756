//! Whether a tapdisk that has a socket can still answer.

use std::fs;

/// Of a process's flags in /proc: it is on its way out (`PF_EXITING` of the kernel).
const FLAG_EXITING: u64 = 0x4;

/// Whether a process has begun to end. A killed tapdisk whose block device is in use stays like
/// that, sockets included, until the last close of that device: nobody there will ever answer. One
/// that cannot be seen - it is gone, or in another namespace - is not known to end.
pub(crate) fn is_ending(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| says_ending(&stat))
}

/// From the line that /proc has about a process.
fn says_ending(stat: &str) -> bool {
    // Behind the name, which is in parentheses and may hold anything: state, parent, group,
    // session, terminal, the terminal's group, flags.
    let Some((_, rest)) = stat.rsplit_once(") ") else { return false };
    let mut fields = rest.split(' ');
    let is_dead = matches!(fields.next(), Some("Z" | "X"));
    let flags = fields.nth(5).and_then(|flags| flags.parse::<u64>().ok());
    is_dead || flags.is_some_and(|flags| flags & FLAG_EXITING != 0)
}

#[cfg(test)]
mod tests {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn a_process_ends_when_its_state_or_its_flags_say_so() {
        assert!(!says_ending("7 (tapdisk) S 1 7 7 0 -1 4194560 99 0"));
        assert!(says_ending("7 (tapdisk) Z 1 7 7 0 -1 4227084 99 0"));
        assert!(says_ending("7 (a) Z (b) D 1 7 7 0 -1 4194564 99 0"), "the flag 0x4");
        assert!(!says_ending("7 (a) Z (b) D 1 7 7 0 -1 4194560 99 0"));
        assert!(!says_ending(""));
    }

    #[test]
    fn we_run_and_a_child_that_was_killed_does_not() {
        assert!(!is_ending(i32::try_from(std::process::id()).unwrap()));
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(!is_ending(pid));
        child.kill().unwrap();
        // Ended, and not collected.
        let id = Id::Pid(Pid::from_raw(pid));
        waitid(id, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
        assert!(is_ending(pid));
        child.wait().unwrap();
    }
}
