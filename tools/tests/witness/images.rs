//! Random images, made by our programs and by our format layer.

use vhd::header::BlockSize;
use vhd::testing::{Creator, Spec};
use vhd::units::Uuid;

use crate::model::{Model, Random};
use crate::{Folder, vhd_util};

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Fixed,
    Dynamic,
    Child,
}

/// An image with what its disk holds, and its ancestors, the parent first.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) name: String,
    pub(crate) ancestors: Vec<String>,
    pub(crate) kind: Kind,
    pub(crate) model: Model,
    /// What libvhdi can be asked for: sectors from the start. It takes the first size of a disk for
    /// the size, and drops sectors of a parent that share eight with a sector of the child.
    pub(crate) libvhdi_sectors: u64,
    operation: &'static str,
}

/// How many there are of what.
#[derive(Debug, Default)]
pub(crate) struct Kinds {
    fixed: usize,
    dynamic: usize,
    children: usize,
    deep: usize,
    changed: usize,
}

impl Kinds {
    pub(crate) fn of(all: &[Made]) -> Self {
        let count = |is: &dyn Fn(&&Made) -> bool| all.iter().filter(is).count();
        Self {
            fixed: count(&|it| it.kind == Kind::Fixed),
            dynamic: count(&|it| it.kind == Kind::Dynamic),
            children: count(&|it| it.kind == Kind::Child),
            deep: count(&|it| it.ancestors.len() > 1),
            changed: count(&|it| !it.operation.is_empty()),
        }
    }

    pub(crate) fn are_all_there(&self) -> bool {
        [self.fixed, self.dynamic, self.children, self.deep, self.changed].iter().all(|it| *it > 5)
    }
}

/// Makes the image of a seed.
pub(crate) fn make(folder: &Folder, seed: u64) -> Made {
    let mut random = Random::new(seed);
    match random.below(6) {
        0 => converted(folder, seed, &mut random, Kind::Fixed),
        1 => converted(folder, seed, &mut random, Kind::Dynamic),
        2 | 3 => composed(folder, seed, &mut random),
        _ => chain(folder, seed, &mut random),
    }
}

/// From raw, by vhd-util.
fn converted(folder: &Folder, seed: u64, random: &mut Random, kind: Kind) -> Made {
    let sectors = 1 + random.below(12 << 11);
    let model = Model::random(random, sectors, 1);
    let (raw, name) = (format!("{seed}.raw"), format!("{seed}.vhd"));
    model.write(&folder.path(&raw));
    let to = if kind == Kind::Fixed { "fixed" } else { "dynamic" };
    vhd_util(folder, &format!("convert -f raw -n {raw} -N {name} -O {to}"));
    std::fs::remove_file(folder.path(&raw)).unwrap();
    let mut made =
        Made { name, ancestors: Vec::new(), kind, libvhdi_sectors: sectors, operation: "", model };
    change(folder, random, &mut made);
    made
}

fn identity(seed: u64, level: u64) -> Uuid {
    Uuid::from_random((u128::from(seed) << 32 | u128::from(level)).to_be_bytes())
}

/// A block size; 2 MiB more often than others, which make small files.
fn block_size(random: &mut Random) -> BlockSize {
    let exponent = if random.below(4) == 0 { 21 } else { 12 + random.below(8) };
    BlockSize::new(1 << exponent).unwrap()
}

fn spec(random: &mut Random, model: &Model, uuid: Uuid) -> Spec {
    Spec {
        block_size: block_size(random),
        sectors: model.bytes.clone(),
        is_descending: random.below(3) == 0,
        uuid,
        ..Spec::new(model.sectors * 512)
    }
}

/// By the format layer: bitmaps that are not full, blocks in any order, other creators.
fn composed(folder: &Folder, seed: u64, random: &mut Random) -> Made {
    let sectors = 1 + random.below(5 << 11);
    let model = Model::random(random, sectors, 1);
    let mut spec = spec(random, &model, identity(seed, 0));
    spec.creator = [Creator::Tap, Creator::Tap, Creator::Qemu, Creator::Microsoft]
        [usize::try_from(random.below(4)).unwrap()];
    let name = format!("{seed}.vhd");
    std::fs::write(folder.path(&name), spec.make()).unwrap();
    let mut made = Made {
        name,
        ancestors: Vec::new(),
        kind: Kind::Dynamic,
        libvhdi_sectors: sectors,
        operation: "",
        model,
    };
    if spec.creator == Creator::Tap {
        change(folder, random, &mut made);
    }
    made
}

/// An operation on an image without a parent, or none.
fn change(folder: &Folder, random: &mut Random, made: &mut Made) {
    let name = &made.name;
    match random.below(8) {
        0 if made.kind == Kind::Dynamic => {
            made.operation = "fill";
            vhd_util(folder, &format!("fill -n {name}"));
        }
        1 if made.kind == Kind::Dynamic => {
            made.operation = "compact";
            vhd_util(folder, &format!("compact -n {name}"));
        }
        2 => {
            made.operation = "resize";
            let old = made.model.sectors;
            let megabytes = (old.div_ceil(2048) + random.below(40)).max(1);
            vhd_util(folder, &format!("resize -n {name} -s {megabytes} -j {name}.j"));
            // The format counts in whole blocks of 2 MiB.
            let out = vhd_util(folder, &format!("query --json -n {name}"));
            let object: serde_json::Value = serde_json::from_slice(&out).unwrap();
            let size = object["virtual_size"].as_u64().unwrap();
            assert!(size >= megabytes << 20 && size < (megabytes + 2) << 20, "{name}: {size}");
            made.model = made.model.clone().resized(size / 512);
        }
        3 => {
            made.operation = "hide";
            vhd_util(folder, &format!("set -n {name} -f hidden -v 1"));
            vhd_util(folder, &format!("repair -n {name}"));
        }
        _ => {}
    }
}

/// A chain of two to four; sometimes its leaf is merged into its parent, which is asked for then.
fn chain(folder: &Folder, seed: u64, random: &mut Random) -> Made {
    let sectors = 1 + random.below(4 << 11);
    // libvhdi needs whole bytes of bitmaps.
    let is_aligned = random.below(3) > 0;
    let unit = if is_aligned { 8 } else { 1 };
    let depth = 2 + random.below(3);
    let (mut names, mut models) = (Vec::new(), Vec::new());
    for level in 0..depth {
        let own = Model::random(random, sectors, unit);
        let mut spec = spec(random, &own, identity(seed, level));
        if level > 0 {
            let parent = format!("./{seed}.{}.vhd", level - 1);
            spec.parent = Some((identity(seed, level - 1), parent));
        }
        names.push(format!("{seed}.{level}.vhd"));
        std::fs::write(folder.path(&names[names.len() - 1]), spec.make()).unwrap();
        let below = models.last().unwrap_or(&Model { sectors, ..Model::default() }).under(&own);
        models.push(below);
    }
    let mut operation = "";
    let (mut leaf, mut model) = (names.pop().unwrap(), models.pop().unwrap());
    match random.below(4) {
        0 => {
            operation = "coalesce";
            vhd_util(folder, &format!("coalesce -n {leaf}"));
            // The child shows what it did; its parent shows the same now.
            crate::images::finds(folder, &leaf, &model);
            leaf = names.pop().unwrap();
        }
        1 => {
            operation = "fill";
            vhd_util(folder, &format!("fill -n {leaf}"));
        }
        2 => {
            operation = "snapshot";
            let child = format!("{seed}.s.vhd");
            vhd_util(folder, &format!("snapshot -n {child} -p {leaf}"));
            // It has whole blocks, or none of its parent's but empty ones.
            let out = vhd_util(folder, &format!("query --json -n {child}"));
            let object: serde_json::Value = serde_json::from_slice(&out).unwrap();
            let parent = object["parent"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
            model = model.resized(object["virtual_size"].as_u64().unwrap() / 512);
            if parent == leaf {
                names.push(leaf);
            } else {
                names.truncate(names.iter().position(|name| *name == parent).unwrap() + 1);
            }
            leaf = child;
        }
        _ => {}
    }
    names.reverse();
    let kind = if names.is_empty() { Kind::Dynamic } else { Kind::Child };
    Made {
        name: leaf,
        ancestors: names,
        kind,
        libvhdi_sectors: if is_aligned { model.sectors.min(sectors) } else { 0 },
        operation,
        model,
    }
}

/// We find what the model says, and nothing wrong.
pub(crate) fn ours_finds(folder: &Folder, made: &Made) {
    vhd_util(folder, &format!("check -b -p -n {}", made.name));
    finds(folder, &made.name, &made.model);
}

pub(crate) fn finds(folder: &Folder, name: &str, model: &Model) {
    let found = vhd_util(folder, &format!("read -r 0 -c {} -n {name}", model.sectors));
    assert!(found == model.data(), "we read something else in {name}: {model:?}");
}
