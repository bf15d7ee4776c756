//! What a request costs in a kernel, in short: printed in each run, with one law about it.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use tapdisk_vm::VmError;
use tapdisk_vm::bench::{Group, NULL, Scope, instructions, rates};

/// For each pattern, how many times the instructions of the kernel's null_blk a request of tapdev
/// may take at most: twice what docs/performance.md has. Times depend on who else uses the
/// machine, so that nothing is said about them.
const RATIOS_MAX: [(&str, f64); 2] =
    [("4k random read, depth 32", 2.0 * 2.38), ("128k read, depth 8", 2.0 * 11.59)];

#[test]
fn a_request_through_the_driver_takes_few_instructions() {
    let mut text = String::new();
    let mut show = |part: &str| text.push_str(part);
    let measured = instructions(Scope::Short, &mut show)
        .and_then(|counts| rates(Scope::Short, &mut show).map(|rates| (counts, rates)));
    let (counts, rates) = match measured {
        Ok(measured) => measured,
        Err(VmError::Unavailable(reason)) => return tapdisk_vm::skip(&reason),
        Err(error) => panic!("{error}\n{text}"),
    };
    // At once and not with `println!`, so that it stands in the log of a run that passes, too.
    writeln!(text).unwrap();
    io::stdout().write_all(text.as_bytes()).unwrap();
    for (count, (pattern, most)) in counts.iter().zip(RATIOS_MAX) {
        assert_eq!(count.pattern, pattern);
        let ratio = count.ratio(NULL).unwrap();
        // Less than without tapdisk would be a measurement of something else.
        assert!(ratio > 1.0 && ratio < most, "{pattern}: {ratio}, not 1 to {most}\n{text}");
    }
    assert_eq!(counts.len(), RATIOS_MAX.len());
    assert_eq!(rates.len(), RATIOS_MAX.len());
    let is_whole =
        |group: &Group| group.rows.iter().all(|row| row.1.iter().all(|rate| *rate > 0.0));
    assert!(rates.iter().all(is_whole), "{text}");
}
