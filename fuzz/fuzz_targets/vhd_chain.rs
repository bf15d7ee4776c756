//! A child and a parent, opened through the gate and checked: no name leads elsewhere, no loop
//! lasts, and what is found does not depend on who asks.
#![no_main]

use std::path::Path;

use tapdisk_fuzz as _;
use vhd::chain::{Chain, ChainOptions};
use vhd::check::{CheckOptions, check_chain};
use vhd::gate::Gate;
use vhd::testing::{MemoryHost, mend};
use vhd::units::Timestamp;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let [flags, middle, files @ ..] = input else { return };
    let (child, parent) = files.split_at((usize::from(*middle) * 512).min(files.len()));
    let (mut child, mut parent) = (child.to_vec(), parent.to_vec());
    if flags & 1 == 0 {
        mend(&mut child);
        mend(&mut parent);
    }
    let host = MemoryHost::default().with("/d/child.vhd", child).with("/d/parent.vhd", parent);
    let path = Path::new("/d/child.vhd");
    let gate = Gate::of_child(&host, path).expect("there is a child");
    let options = ChainOptions {
        as_stored: flags & 2 != 0,
        any_parent_uuid: flags & 4 != 0,
        ..ChainOptions::default()
    };
    if let Ok(mut chain) = Chain::open(&host, path, &gate, options) {
        assert!(chain.members().len() <= 2);
        let size = chain.virtual_size();
        let mut at = 0;
        for _ in 0..256 {
            if at >= size {
                break;
            }
            let Ok(extent) = chain.locate(at, size - at) else { break };
            assert!(extent.start == at && extent.length > 0);
            at = extent.end();
        }
        let mut buffer = vec![0; usize::try_from(size).unwrap_or(1 << 16).min(1 << 16)];
        let _ = chain.read_at(0, &mut buffer);
    }
    let options = CheckOptions { ignore_end_footer: flags & 8 != 0, ..CheckOptions::default() };
    let checked = check_chain(&host, path, &gate, options, true, Timestamp(1 << 29));
    assert!(checked.is_ok_and(|all| (1..=2).contains(&all.len())));
});
