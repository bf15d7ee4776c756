//! The laws of chains.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::*;
use crate::header::Header;
use crate::locator::{Locator, Platform};
use crate::testing::{MemoryFile, MemoryHost, Spec, put, specs};
use crate::units::Uuid;
use proptest::prelude::*;

const LEAF: &str = "/vhds/0.vhd";

fn open(host: &MemoryHost) -> Result<Chain<MemoryFile>> {
    let gate = Gate::of_child(host, Path::new(LEAF))?;
    Chain::open(host, Path::new(LEAF), &gate, ChainOptions::default())
}

/// Images that are each other's parents, the leaf first, and perhaps a raw one below.
fn host_of(specs: &[Spec], raw: Option<Vec<u8>>) -> MemoryHost {
    let mut host = MemoryHost::default();
    for (at, spec) in specs.iter().enumerate() {
        let mut spec = spec.clone();
        spec.uuid = Uuid([u8::try_from(at + 1).unwrap(); 16]);
        let is_last = at + 1 == specs.len();
        if !is_last {
            let parent = Uuid([u8::try_from(at + 2).unwrap(); 16]);
            spec.parent = Some((parent, format!("./{}.vhd", at + 1)));
        } else if raw.is_some() {
            spec.parent = Some((Uuid::NIL, String::from("./raw.img")));
        }
        host = host.with(&format!("/vhds/{at}.vhd"), spec.make());
    }
    match raw {
        Some(raw) => host.with("/vhds/raw.img", raw),
        None => host,
    }
}

/// What the disk holds, sector by sector, the simple way.
fn flat(specs: &[Spec], raw: Option<&[u8]>) -> Vec<u8> {
    let mut below = raw.map(<[u8]>::to_vec).unwrap_or_default();
    for spec in specs.iter().rev() {
        below.resize(usize::try_from(spec.size).unwrap(), 0);
        for (sector, byte) in &spec.sectors {
            put(&mut below, sector * 512, &[*byte; 512]);
        }
    }
    below
}

proptest! {
    #[test]
    fn reads_what_the_layers_hold_of_any_depth_and_any_creators(
        specs in proptest::collection::vec(specs(96 << 10), 1..5),
        raw in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..9000)),
        reads in proptest::collection::vec((any::<u64>(), any::<u64>()), 1..20),
    ) {
        // QEMU's images without a parent say that they hold the zeros of their blocks.
        let host = host_of(&specs, raw.clone());
        let wanted = flat(&specs, raw.as_deref());
        let mut chain = open(&host).unwrap();
        prop_assert_eq!(chain.virtual_size(), wanted.len() as u64);
        let mut all = vec![0xaa; wanted.len()];
        chain.read_at(0, &mut all).unwrap();
        prop_assert!(all == wanted);
        for (offset, length) in reads {
            let start = offset % wanted.len() as u64;
            let end = start + length % (wanted.len() as u64 - start + 1);
            let range = usize::try_from(start).unwrap()..usize::try_from(end).unwrap();
            let mut some = vec![0xaa; range.len()];
            chain.read_at(start, &mut some).unwrap();
            prop_assert!(some == wanted[range]);
        }
    }

    #[test]
    fn extents_cover_the_disk_without_gaps(
        specs in proptest::collection::vec(specs(64 << 10), 1..4),
    ) {
        let mut chain = open(&host_of(&specs, None)).unwrap();
        let size = chain.virtual_size();
        let mut at = 0;
        while at < size {
            let extent = chain.locate(at, size - at).unwrap();
            prop_assert_eq!(extent.start, at);
            prop_assert!(extent.length > 0 && extent.end() <= size);
            at = extent.end();
        }
    }
}

#[test]
fn refuses_to_read_past_the_end() {
    let mut chain = open(&host_of(&[Spec::new(1 << 20)], None)).unwrap();
    for (offset, length) in [((1 << 20) - 1, 2), (1 << 20, 1), (u64::MAX, 1)] {
        let error = chain.read_at(offset, &mut vec![0; length]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::PastEnd { .. }), "{error}");
    }
    assert_eq!(chain.read_at(1 << 20, &mut []), Ok(()));
}

#[test]
fn data_reaches_to_the_end_of_a_file_that_lost_its_footer() {
    let mut spec = Spec { end: crate::testing::End::Nothing, ..Spec::new(4 << 20) };
    spec.sectors.extend([(4095, 0x11), (0, 0x22)]);
    let mut chain = open(&host_of(&[spec], None)).unwrap();
    let mut last = [0; 512];
    chain.read_at(4095 * 512, &mut last).unwrap();
    assert_eq!(last, [0x11; 512]);
}

#[test]
fn refuses_a_parent_that_is_not_the_one_that_the_child_was_made_of() {
    let specs = [Spec::new(1 << 20), Spec::new(1 << 20)];
    let mut host = host_of(&specs, None);
    host.files.insert("/vhds/1.vhd".into(), Spec::new(1 << 20).make().into());
    let wanted = ErrorKind::ParentUuid { found: Uuid([7; 16]), wanted: Uuid([2; 16]) };
    assert_eq!(open(&host).unwrap_err().kind(), &wanted);
    let options = ChainOptions { any_parent_uuid: true, ..ChainOptions::default() };
    assert!(Chain::open(&host, Path::new(LEAF), &Gate::everywhere(), options).is_ok());
}

#[test]
fn an_image_that_is_its_own_parent_is_an_error() {
    let spec = Spec { uuid: Uuid([7; 16]), ..Spec::child_of(&Spec::new(1 << 20), "0.vhd") };
    let host = MemoryHost::default().with(LEAF, spec.make());
    assert_eq!(open(&host).unwrap_err().kind(), &ErrorKind::ChainLoop);
}

#[test]
fn a_chain_has_at_most_as_many_images_as_the_gate_allows() {
    let specs = vec![Spec::new(1 << 20); 4];
    let host = host_of(&specs, Some(vec![1; 512]));
    let gate = Gate::everywhere().with_depth_max(4);
    let error = Chain::open(&host, Path::new(LEAF), &gate, ChainOptions::default()).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::ChainTooDeep { limit: 4 });
    let gate = gate.with_depth_max(5);
    let chain = Chain::open(&host, Path::new(LEAF), &gate, ChainOptions::default()).unwrap();
    assert_eq!(chain.members().len(), 5);
}

#[test]
fn a_raw_parent_is_never_taken_for_a_vhd() {
    // A guest wrote a VHD into its raw disk: its bytes are data.
    let mut inner = Spec::new(64 << 10);
    inner.sectors.insert(0, 0x55);
    let bytes = inner.make();
    let outer = Spec::new(bytes.len().next_multiple_of(512) as u64);
    let mut chain = open(&host_of(&[outer], Some(bytes.clone()))).unwrap();
    let mut read = vec![0; bytes.len()];
    chain.read_at(0, &mut read).unwrap();
    assert!(read == bytes);
}

#[test]
fn a_parent_that_should_be_a_vhd_and_is_not_is_an_error() {
    let mut host = host_of(&[Spec::new(1 << 20), Spec::new(1 << 20)], None);
    host.files.insert("/vhds/1.vhd".into(), vec![0; 4096].into());
    assert!(matches!(open(&host).unwrap_err().kind(), ErrorKind::Cookie { .. }));
}

#[test]
fn refuses_encrypted_data_unless_it_is_to_be_read_as_it_is_stored() {
    let mut file = Spec::new(4 << 20).make();
    let mut header = crate::batmap::BatmapHeader::new(1536, 2);
    header.keyhash = Some(crate::batmap::KeyHash { nonce: [1; 32], hash: [2; 32] });
    put(&mut file, 2048, &header.emit());
    let host = MemoryHost::default().with(LEAF, file);
    assert_eq!(open(&host).unwrap_err().kind(), &ErrorKind::Encrypted);
    let options = ChainOptions { as_stored: true, ..ChainOptions::default() };
    assert!(Chain::open(&host, Path::new(LEAF), &Gate::everywhere(), options).is_ok());
}

#[test]
fn a_fixed_image_is_read_from_its_start() {
    let mut file: Vec<u8> = (0..=255).cycle().take(1024).collect();
    let footer = crate::footer::Footer::new(
        crate::footer::DiskType::Fixed,
        1024,
        Uuid([1; 16]),
        crate::units::Timestamp(0),
    );
    file.extend(footer.emit());
    let mut chain = open(&MemoryHost::default().with(LEAF, file.clone())).unwrap();
    let mut read = [0; 600];
    chain.read_at(300, &mut read).unwrap();
    assert_eq!(read[..], file[300..900]);
}

/// Four locators of one room each, the first two of them plain text; no batmap, no alignment.
#[test]
fn a_child_as_virtualbox_writes_it_is_read_through() {
    let by_virtualbox = |spec: &Spec| {
        let mut file = Spec { creator: crate::testing::Creator::Qemu, ..spec.clone() }.make();
        let mut footer = spec.footer();
        (footer.creator, footer.creator_host) = (*b"vbox", u32::from_be_bytes(*b"Wi2k"));
        let end = file.len() - 512;
        file[..512].copy_from_slice(&footer.emit());
        file[end..].copy_from_slice(&footer.emit());
        file
    };
    let parent = Spec::new(4 << 20).with(0, 9, 1);
    let child = Spec::child_of(&parent, "p.vhd").with(4, 2, 2);
    let mut file = by_virtualbox(&child);
    let mut header = Header::parse(file[512..1536].first_chunk().unwrap()).unwrap();
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let rooms = [0, 0, 1, 2].map(|room| header.locators[room].offset);
    for (slot, (platform, text)) in [
        (Platform::Wi2r, b"p.vhd".to_vec()),
        (Platform::Wi2k, b"D:\\vm\\p.vhd".to_vec()),
        (Platform::W2ru, utf16("p.vhd")),
        (Platform::W2ku, utf16("D:\\vm\\p.vhd")),
    ]
    .into_iter()
    .enumerate()
    {
        let length = u32::try_from(text.len()).unwrap();
        header.locators[slot] =
            Locator { platform, space: 512, length, reserved: 0, offset: rooms[slot] };
        put(&mut file, rooms[slot], &[0; 512]);
        put(&mut file, rooms[slot], &text);
    }
    file[512..1536].copy_from_slice(&header.emit());
    let host = MemoryHost::default().with(LEAF, file).with("/vhds/p.vhd", by_virtualbox(&parent));
    let mut all = vec![0; 4 << 20];
    open(&host).unwrap().read_at(0, &mut all).unwrap();
    assert!(all == flat(&[child, parent], None));
}

/// 1,024 entries of a table are kept at a time.
#[test]
fn blocks_of_any_number_are_found_in_any_order() {
    let block_size = crate::header::BlockSize::new(512).unwrap();
    let spec = Spec { block_size, ..Spec::new(3000 * 512) };
    let spec = spec.with(5, 1, 1).with(1023, 2, 2).with(2999, 1, 3);
    let mut chain = open(&host_of(std::slice::from_ref(&spec), None)).unwrap();
    let disk = spec.disk();
    for sector in [2999, 5, 1024, 1023, 2998, 0] {
        let mut read = [9; 512];
        chain.read_at(sector * 512, &mut read).unwrap();
        let start = usize::try_from(sector * 512).unwrap();
        assert!(read == disk[start..start + 512], "{sector}");
    }
}
