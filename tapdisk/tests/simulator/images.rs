//! The images that the simulated disks begin with, and those that snapshots put on top.

use std::path::{Path, PathBuf};

use vhd::header::BlockSize;
use vhd::plan::create::{self, Kind, create};
use vhd::plan::{File, Plan, memory::Storage};
use vhd::testing::{Random, Spec};
use vhd::testing::{Value, bytes_of, value};
use vhd::units::{Timestamp, Uuid};

/// An image that is written, and what it is known by.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) kind: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) uuid: Uuid,
}

impl Place {
    /// As commands name it.
    pub(crate) fn text(&self) -> String {
        format!("{}:{}", self.kind, self.path.display())
    }
}

fn uuid(random: &mut Random) -> Uuid {
    let half = |random: &mut Random| random.next().to_be_bytes();
    let bytes = [half(random), half(random)].concat();
    Uuid::from_random(bytes.try_into().expect("twice eight bytes"))
}

/// A raw image with data, or a VHD that is empty, alone or on a raw image with data.
pub(crate) fn first(random: &mut Random, folder: &Path, sectors: u64) -> (Place, Vec<Value>) {
    let name = |name: &str| folder.join(name);
    let is_raw = random.one_in(3);
    if !is_raw && random.one_in(2) {
        let place = Place { kind: "vhd", path: name("0.vhd"), uuid: uuid(random) };
        write(&place.path, &spec(random, &place, sectors, None).make());
        return (place, vec![0; usize_of(sectors)]);
    }
    // A parent may be smaller than its child.
    let base = if is_raw { sectors } else { 1 + random.below(sectors) };
    let values: Vec<Value> =
        (0..sectors).map(|at| if at < base { value(at, 1) } else { 0 }).collect();
    let raw = Place { kind: "aio", path: name("base.raw"), uuid: Uuid::NIL };
    let bytes: Vec<u8> =
        values[..usize_of(base)].iter().flat_map(|value| bytes_of(*value)).collect();
    write(&raw.path, &bytes);
    if is_raw {
        return (raw, values);
    }
    (child(random, &raw, name("0.vhd"), sectors), values)
}

/// A new image on top of another, made as our tools make it or with blocks of another size.
pub(crate) fn child(random: &mut Random, parent: &Place, path: PathBuf, sectors: u64) -> Place {
    let place = Place { kind: "vhd", path, uuid: uuid(random) };
    let name = parent.path.file_name().and_then(|name| name.to_str()).expect("a name of ours");
    if random.one_in(8) {
        let parent = create::Parent {
            uuid: parent.uuid,
            timestamp: Timestamp(1000),
            path: format!("./{name}"),
            keyhash: None,
        };
        let kind = Kind::Differencing { metadata_size: None, parent };
        let spec =
            create::Spec { kind, size: sectors * 512, uuid: place.uuid, now: Timestamp(1000) };
        let mut storage = Storage::default();
        let mut plan = create(&storage, &spec).expect("a small image");
        while let Some(step) = plan.next(&storage).expect("a plan that nothing is in the way of") {
            storage.perform(&step);
        }
        write(&place.path, storage.bytes(File::Image).expect("it was made"));
    } else {
        let parent = (parent.uuid, format!("./{name}"));
        write(&place.path, &spec(random, &place, sectors, Some(parent)).make());
    }
    place
}

fn spec(random: &mut Random, place: &Place, sectors: u64, parent: Option<(Uuid, String)>) -> Spec {
    let block_size = BlockSize::new(512 << random.below(6)).expect("a power of two");
    Spec { block_size, parent, uuid: place.uuid, ..Spec::new(sectors * 512) }
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("a folder in memory");
}

fn usize_of(number: u64) -> usize {
    usize::try_from(number).expect("a small disk")
}
