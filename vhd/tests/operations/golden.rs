//! Journals that the reference left, where `TAPDISK_GOLDEN` names a folder that has some.

use std::path::Path;
use std::process::Command;

use vhd::plan::File;
use vhd::plan::memory::Storage;
use vhd::plan::revert::revert;

use crate::law::{image, run};
use crate::view;

/// The files of a case.
fn unpack(golden: &Path, case: &str) -> Storage {
    let archive = golden.join("images").join(format!("{case}.tar.xz"));
    let file = |name: &str| {
        let tar = Command::new("tar").arg("-xJOf").arg(&archive).arg(name).output();
        let tar = tar.expect("there is a tar");
        assert!(tar.status.success(), "{name} of {}", archive.display());
        tar.stdout
    };
    Storage::default().with(File::Image, file("./a.vhd")).with(File::Journal, file("./jrn"))
}

#[test]
fn what_the_reference_interrupted_is_reverted_to_the_same_disk() {
    let Some(golden) = std::env::var_os("TAPDISK_GOLDEN") else {
        println!("skipped: TAPDISK_GOLDEN is not set");
        return;
    };
    for point in ["begin", "data-moved", "metadata-moved", "end"] {
        let mut storage = unpack(Path::new(&golden), &format!("poison-{point}"));
        assert_eq!(image(&storage), Err("poisoned".into()), "{point}");
        run(&mut storage, revert).unwrap();
        assert_eq!(storage.bytes(File::Journal), None);
        view::check(storage.bytes(File::Image).unwrap()).unwrap();
        // Every sector that was written holds its number, so that none can be in another's place.
        let (mut written, view) = (0, image(&storage).unwrap());
        for (number, sector) in (0_u64..).zip(view.data.chunks(512)) {
            if sector.iter().any(|byte| *byte != 0) {
                assert_eq!(sector[8..16], number.to_be_bytes(), "{point}: sector {number}");
                written += 1;
            }
        }
        assert!(written > 4096, "{point}: {written} sectors");
    }
}
