//! What tap-ctl says when it is called wrongly or asked how: programs compare it.

use crate::bench::Bench;

const TAP_CTL: &str = "usage: tap-ctl COMMAND [OPTIONS]\nCOMMAND := { list | allocate | free | create | \
    destroy | spawn | attach | detach | open | close | pause | unpause | stats }\n";
const ATTACH: &str = "usage: attach <-p pid> <-m minor>\n";
const LIST: &str = "usage: list [-h] [-p pid] [-m minor] [-t type] [-f file]\n\nLists tapdisks in the \
    following format:\n     pid minor state       type file\n";
const CLOSE: &str = "usage: close <-p pid> <-m minor> [-f force] [-t timeout secs]\n";
const OPEN: &str = "usage: open <-p pid> <-m minor> <-a type:/path/to/file> [-R readonly] [-e <minor> \
    stack on existing tapdisk for the parent chain] [-r turn on read caching into leaf node] [-2 <path> \
    use secondary image (in mirror mode if no -s)] [-s fail over to the secondary image on ENOSPC] [-t \
    request timeout in seconds] [-D no O_DIRECT] [-C </path/to/logfile> insert log layer to track \
    changed blocks] [-E read encryption key from stdin]\n";
const CREATE: &str = "usage: create <-a type:/path/to/file> [-d device name] [-R readonly] [-e <minor> \
    stack on existing tapdisk for the parent chain] [-r turn on read caching into leaf node] [-2 <path> \
    use secondary image (in mirror mode if no -s)] [-s fail over to the secondary image on ENOSPC] [-t \
    request timeout in seconds] [-D no O_DIRECT] [-C <path/to/logfile> insert log layer to track changed \
    blocks]\n";
const UNPAUSE: &str = "usage: unpause <-p pid> <-m minor> [-a type:/path/to/file] [-2 secondary] [-c \
    </path/to/logfile> insert log layer to track changed blocks]\n";
const STATS: &str = "usage: stats <-p pid> <-m minor>\n\nPrints a Python dictionary with the VBD stats. \
    The images are listed in reverse order (leaf to root)\n";

#[test]
fn without_a_known_command_the_usage_is_printed_and_nothing_has_failed() {
    let bench = Bench::new("u1");
    let calls: [&[&str]; 8] = [
        &[],
        &["-h"],
        &["help"],
        &["nosuch"],
        &[""],
        &["List"],
        &["--debug"],
        &["--debug", "query"],
    ];
    for arguments in calls {
        assert_eq!(bench.run(arguments), (0, TAP_CTL.into(), String::new()), "{arguments:?}");
    }
}

#[test]
fn h_prints_the_usage_of_a_command() {
    let bench = Bench::new("u2");
    for (command, usage) in [
        ("list", LIST),
        ("allocate", "usage: allocate\n"),
        ("free", "usage: free <-m minor>\n"),
        ("create", CREATE),
        ("destroy", "usage: destroy <-p pid> <-m minor> [-t timeout secs]\n"),
        ("spawn", "usage: spawn\n"),
        ("detach", "usage: detach <-p pid> <-m minor>\n"),
        ("open", OPEN),
        ("close", CLOSE),
        ("pause", "usage: pause <-p pid> <-m minor> [-t timeout secs]\n"),
        ("unpause", UNPAUSE),
        ("stats", STATS),
    ] {
        assert_eq!(bench.run(&[command, "-h"]), (0, usage.into(), String::new()), "{command}");
    }
    assert_eq!(bench.run(&["attach", "-h"]), (0, String::new(), ATTACH.into()));
}

#[test]
fn a_wrong_call_is_answered_with_the_usage_and_22() {
    let bench = Bench::new("u3");
    let calls: [(&[&str], &str, &str); 12] = [
        (&["attach", "-Z"], "attach: invalid option -- 'Z'\n", ATTACH),
        (&["attach", "--nosuch"], "attach: invalid option -- '-'\n", ATTACH),
        (&["attach", "-p"], "attach: option requires an argument -- 'p'\n", ATTACH),
        (&["attach", "-p", "1"], "", ATTACH),
        (&["attach", "-m", "1"], "", ATTACH),
        (&["attach", "-p", "-1", "-m", "1"], "", ATTACH),
        (&["list", "-m"], "list: option requires an argument -- 'm'\n", LIST),
        (&["close", "-p", "5"], "", CLOSE),
        (&["open", "-p", "1", "-m", "1"], "", OPEN),
        (&["create"], "", CREATE),
        (&["unpause", "-p", "5"], "", UNPAUSE),
        (&["stats", "-m", "3"], "", STATS),
    ];
    for (arguments, complaint, usage) in calls {
        let stderr = format!("{complaint}{usage}Invalid argument\n");
        assert_eq!(bench.run(arguments), (22, String::new(), stderr), "{arguments:?}");
    }
}

#[test]
fn help_starts_with_the_usage_and_says_more() {
    let bench = Bench::new("u4");
    for command in ["list", "attach", "open", "stats", "top", "major", "check"] {
        let (status, stdout, stderr) = bench.run(&[command, "--help"]);
        assert_eq!((status, stderr.as_str()), (0, ""), "{command}");
        assert!(stdout.starts_with(&format!("usage: {command}")), "{stdout}");
        assert!(stdout.contains("\n\n"), "{stdout}");
    }
    let (status, stdout, _) = bench.run(&["--help"]);
    assert_eq!(status, 0);
    assert!(stdout.starts_with(TAP_CTL) && stdout.contains("top, major, check"), "{stdout}");
}

#[test]
fn a_key_that_is_neither_32_nor_64_bytes_is_refused_before_anything_is_asked() {
    let bench = Bench::new("u5");
    let stderr = "Unsupported keysize, use either 256 bit or 512 bit key\n";
    let arguments = ["open", "-E", "-p", "1", "-m", "1", "-a", "vhd:/x"];
    assert_eq!(bench.run(&arguments), (1, String::new(), stderr.into()));
}

#[test]
fn numbers_that_cannot_be_minors_are_not_cut_to_ones_that_can() {
    let bench = Bench::new("u6");
    for minor in ["65536", "70000", "-2", "99999999999"] {
        let (status, stdout, stderr) = bench.run_explaining(&["attach", "-p", "1", "-m", minor]);
        assert_eq!((status, stdout.as_str()), (22, ""));
        assert!(stderr.contains(minor), "{stderr}");
    }
}

#[test]
fn major_never_knew_character_devices() {
    let bench = Bench::new("u7");
    assert_eq!(bench.run(&["major", "-c"]), (22, String::new(), "Invalid argument\n".into()));
}
