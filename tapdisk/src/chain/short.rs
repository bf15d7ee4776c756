//! The short way: which requests are one I/O of whose end nobody hears but their door, and where
//! that goes. The vbd asks before all else.

use std::sync::Arc;

use vhd::engine::Table;

use super::Chain;
use crate::image::Mapping;
use crate::queue::FileId;
use crate::request::{Op, Request};

/// Which requests may be one I/O of whose end nobody hears but their door.
pub(super) enum ShortWay {
    /// None: a layer wants to see them, or there is no file.
    None,
    /// All: the bytes of this file are those of the disk.
    Flat(FileId),
    /// Those that the table finds in this file of the leaf's, and those of [`ShortWay::Reads`].
    Placed(FileId, Arc<Table>),
    /// Reads of what is in one run.
    Reads,
}

impl Chain {
    pub(super) fn find_short_way(mut self) -> Self {
        let has_file = self.images.iter().any(|(image, _)| image.file().is_some());
        self.short_way = match (self.images.as_slice(), self.leaf_file()) {
            _ if !self.layers.is_empty() || !has_file => ShortWay::None,
            ([(image, _)], _) if let Some(file) = image.flat() => ShortWay::Flat(file),
            ([(leaf, _), ..], Some(file)) if let Some(table) = leaf.places() => {
                ShortWay::Placed(file, table)
            }
            _ => ShortWay::Reads,
        };
        self
    }

    /// Whether [`Chain::short`] may have an answer.
    #[must_use]
    #[inline(always)]
    pub fn has_short_way(&self) -> bool {
        !matches!(self.short_way, ShortWay::None)
    }

    /// Where all of a read or write without FUA is in one file, and how many images above that one
    /// do not have it; if nothing has to be asked before its I/O and nothing be told after. The
    /// request is of whole sectors inside the disk. `None`: perhaps, but [`Chain::advance`] has to
    /// look closer. Changes nothing that matters: a read may be mapped as often as one likes.
    #[inline(always)]
    pub fn short(&mut self, slot: usize, request: &Request) -> Option<(FileId, u64, usize)> {
        match &self.short_way {
            ShortWay::None => return None,
            ShortWay::Flat(file) => return Some((*file, request.offset, 0)),
            ShortWay::Placed(file, table) => {
                let (sector, count) = (request.offset >> 9, request.len >> 9);
                if let Some(sector) = table.find(sector, count) {
                    return Some((*file, sector << 9, 0));
                }
            }
            ShortWay::Reads => {}
        }
        // Taken apart: what another function returns lies in memory.
        let (file, offset, layer) = self.short_in_images(slot, request)?;
        Some((file, offset, layer))
    }

    #[inline(never)]
    fn short_in_images(&mut self, slot: usize, request: &Request) -> Option<(FileId, u64, usize)> {
        if request.op != Op::Read {
            return None;
        }
        match self.map(slot, request, 0) {
            (index, Mapping::Data { file, offset, len, layer }) if len == request.len => {
                Some((file, offset, index + layer))
            }
            _ => None,
        }
    }

    /// From now on the end of every request is looked at, also of one that is nothing but an I/O.
    pub fn look_at_ends(&mut self) {
        self.short_way = ShortWay::None;
    }
}
