//! What is written to a leaf before its first request and after its last: see docs/durability.md,
//! "Open and close". The steps are the engine's; here they are done, one after the other.

use nix::errno::Errno;
use vhd::batmap::{self, BatmapHeader};
use vhd::bits;
use vhd::engine::{Engine, FileStep};
use vhd_files::file::ImageFile;

use crate::error::DiskError;

/// What a leaf with blocks needs at close.
pub(super) struct Session {
    pub(super) file: ImageFile,
    pub(super) footer: [u8; 512],
    /// Bytes of the disk.
    pub(super) virtual_size: u64,
    pub(super) blocks: u32,
    /// The batmap's header and where it is, of an image that has a batmap.
    pub(super) batmap: Option<(u64, BatmapHeader)>,
}

/// Does steps in order.
pub(super) fn run(file: &ImageFile, steps: &[FileStep]) -> Result<(), DiskError> {
    for step in steps {
        let (done, what) = match step {
            FileStep::Flush => (file.sync(), "Cannot make the image durable"),
            FileStep::Write { offset, bytes } => {
                (file.write_all_at(bytes, *offset), "Cannot write the image's metadata")
            }
            FileStep::SetLength { length } => {
                (file.set_length(*length), "Cannot set the length of the image")
            }
        };
        done.map_err(|error| DiskError::io(&error, what).at(file.path()))?;
    }
    Ok(())
}

impl Session {
    /// What follows the last change; an error also when an fdatasync failed before: what was
    /// written may be lost, although it can be read.
    pub(super) fn close(&self, engine: &Engine) -> Result<(), DiskError> {
        let batmap = if engine.is_changed() { self.batmap_of(engine) } else { Vec::new() };
        run(&self.file, &engine.closing(&self.footer, self.file.is_device(), batmap))?;
        engine.lost().map_or(Ok(()), |errno| {
            let what = "The storage may have lost what was written since the image was opened";
            Err(DiskError::new(Errno::from_raw(errno.0), what).at(self.file.path()))
        })
    }

    /// The batmap as it is now, and its header.
    fn batmap_of(&self, engine: &Engine) -> Vec<(u64, Vec<u8>)> {
        let Some((header_offset, mut header)) = self.batmap else { return Vec::new() };
        let room = u64::from(header.sectors) << 9;
        let size = batmap::map_size(self.blocks).min(room);
        let summed = batmap::summed_size(self.virtual_size);
        if summed > size {
            // Made for a smaller disk: no bit of it can be believed by anybody.
            return Vec::new();
        }
        let mut map = vec![0; usize::try_from(size).expect("64 bits")];
        for block in 0..self.blocks {
            if engine.is_whole(block) {
                bits::set(&mut map, block, true);
            }
        }
        header.checksum = header.checksum_of(&map[..usize::try_from(summed).expect("64 bits")]);
        vec![(header.offset, map), (header_offset, header.emit().to_vec())]
    }
}
