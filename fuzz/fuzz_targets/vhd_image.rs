//! A whole image: loaded, checked, listed and read as tools do, whatever is in it.
#![no_main]

use tapdisk_fuzz as _;
use vhd::chain::{Chain, Member};
use vhd::check::{CheckOptions, check, stats};
use vhd::image::{Image, LoadOptions};
use vhd::testing::mend;
use vhd::units::Timestamp;

/// Bytes of a disk that are read: from its start, and around each block up to this many.
const READ_MAX: usize = 64 << 10;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((flags, file)) = input.split_first() else { return };
    let mut file = file.to_vec();
    if flags & 1 == 0 {
        mend(&mut file);
    }
    let options = CheckOptions {
        ignore_end_footer: flags & 2 != 0,
        ignore_times: flags & 4 != 0,
        ignore_overlap: flags & 8 != 0,
        read_data: flags & 16 != 0,
        ..CheckOptions::default()
    };
    let report = check(&file, options, Timestamp(1 << 29));
    let load = LoadOptions {
        footer_copy_only: flags & 32 != 0,
        for_inspection: flags & 64 != 0,
        any_bit_order: flags & 128 != 0,
    };
    let Ok(image) = Image::load(&file, load) else { return };
    let _ = (image.hidden(), image.is_encrypted(), image.batmap(), image.end_of_data());
    for number in 0..9 {
        let _ = image.locator_path(number);
    }
    let is_same = report.footer.as_ref() == Some(image.footer());
    if report.is_valid() && is_same && image.header().is_some() {
        // What is sound can be listed and read.
        let bat = image.bat().expect("a sound image has a table");
        assert_eq!(image.allocated_count(), Ok(bat.allocated_count()));
        let counts = stats(&image, &[]).expect("a sound image has bitmaps");
        assert!(counts.written <= counts.allocated);
    }
    read(image);
});

fn read(image: Image<&Vec<u8>>) {
    let Ok(mut chain) = Chain::of(vec![(Member::Vhd(image), "a.vhd".into())]) else { return };
    let size = chain.virtual_size();
    let mut at = 0;
    for _ in 0..256 {
        if at >= size {
            break;
        }
        let Ok(extent) = chain.locate(at, size - at) else { break };
        assert!(extent.start == at && extent.length > 0 && extent.end() <= size);
        at = extent.end();
    }
    let mut buffer = vec![0; usize::try_from(size).unwrap_or(READ_MAX).min(READ_MAX)];
    let _ = chain.read_at(0, &mut buffer);
    let last = size.saturating_sub(buffer.len() as u64);
    let _ = chain.read_at(last, &mut buffer);
}
