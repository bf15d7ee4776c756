//! What disks hold.

use sha2::{Digest, Sha256};
use vhd::chain::{Chain, ChainOptions};
use vhd::gate::Gate;
use vhd::image::LoadOptions;
use vhd_files::file::ImageFile;
use vhd_files::host::LocalHost;

use super::{Unpacked, golden, list, parsed, text};

/// Its last block says that it is there, but the file ends before: that is no disk of zeros.
const TRUNCATED: &str = "op-fill-b";
const CHUNK: u64 = 2 << 20;

/// The digest over the index and digest of each chunk that is not zero.
fn digest(chain: &mut Chain<ImageFile>) -> vhd::Result<String> {
    let size = chain.virtual_size();
    let mut lines = Sha256::new();
    let mut bytes = vec![0; 2 << 20];
    let mut at = 0;
    while at < size {
        let length = CHUNK.min(size - at);
        let extent = chain.locate(at, length)?;
        if extent.stored.is_some() || extent.length < length {
            let piece = &mut bytes[..usize::try_from(length).expect("a chunk")];
            chain.read_at(at, piece)?;
            if piece.iter().any(|byte| *byte != 0) {
                lines.update(format!("{} {}\n", at / CHUNK, hex(&Sha256::digest(&*piece))));
            }
        }
        at += CHUNK;
    }
    Ok(hex(&lines.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_disk_holds_what_other_readers_found() {
    let Some(folder) = golden() else { return };
    let manifest = parsed(&folder.join("manifest.json"));
    let mut count = 0;
    let mut wrong = Vec::new();
    for case in list(&manifest, "cases") {
        let disks = list(case, "disks");
        if disks.is_empty() {
            continue;
        }
        let unpacked = Unpacked::new(&folder, case, "read");
        for disk in disks {
            let leaf = unpacked.0.join(text(disk, "leaf"));
            let load = LoadOptions { for_inspection: true, ..LoadOptions::default() };
            let options = ChainOptions { load, as_stored: true, any_parent_uuid: true };
            let opened = Chain::open(&LocalHost, &leaf, &Gate::everywhere(), options);
            let found =
                opened.and_then(|mut chain| Ok((chain.virtual_size(), digest(&mut chain)?)));
            let size = disk.get("virtual_size").and_then(serde_json::Value::as_u64);
            let wanted = (size.expect("a size"), text(disk, "chunks_sha256").to_owned());
            count += 1;
            if text(case, "id") == TRUNCATED {
                let is_error = found
                    .is_err_and(|error| matches!(error.kind(), vhd::ErrorKind::Truncated { .. }));
                assert!(is_error, "the end of a file is not the data of its last block");
            } else if found.as_ref() != Ok(&wanted) {
                wrong.push(format!("{}: {found:?}, wanted {wanted:?}", leaf.display()));
            }
        }
    }
    println!("{count} disks");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 0, "no disk at all");
}
