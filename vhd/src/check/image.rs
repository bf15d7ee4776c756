//! The parts of one image, in the order in which readers rely on them.

use super::blocks;
use super::finding::{Finding, FindingKind as Kind};
use super::{CheckOptions, Report};
use crate::bits;
use crate::error::{Error, ErrorKind, Part, errno};
use crate::footer::{self, DiskType, FOOTER_SIZE, FOOTER_SIZE_SHORT, Footer};
use crate::header::{self, HEADER_SIZE, Header};
use crate::image::{Batmap, Image, LoadOptions};
use crate::read_at::ReadAt;
use crate::units::{BlockIndex, SECTOR_SIZE, Timestamp};

/// Clocks of hosts that share storage differ; so long a time ahead is no fault, in seconds.
const FUTURE_SLACK: u32 = 1800;

/// Checks one image, but for what its locators lead to. `now` is the time.
///
/// Parents are checked by [`check_chain`](super::check_chain).
pub fn check<R: ReadAt>(source: R, options: CheckOptions, now: Timestamp) -> Report {
    let now = if options.ignore_times { Timestamp(u32::MAX) } else { now };
    let mut checker = Checker {
        source: &source,
        options,
        now,
        data_end: 0,
        report: Report { findings: Vec::new(), footer: None, header: None, has_end_footer: false },
    };
    if let Err(finding) = checker.run() {
        checker.report.findings.push(finding);
    }
    checker.report
}

/// Old creators hid a disk by the copy alone, and without changing its checksum.
fn is_same_but_hidden(footer: &Footer, copy: &[u8; FOOTER_SIZE]) -> bool {
    let hidden = Footer::fields(copy).hidden;
    footer.is_of_old_hidden() && Footer { hidden, ..*footer } == Footer::fields(copy)
}

struct Checker<'a, R> {
    source: &'a R,
    options: CheckOptions,
    now: Timestamp,
    /// Where blocks must end, in bytes: at the footer, or at the end of the file.
    data_end: u64,
    report: Report,
}

impl<R: ReadAt> Checker<'_, R> {
    fn run(&mut self) -> Result<(), Finding> {
        let footer = self.footers()?;
        self.report.footer = Some(footer);
        if footer.disk_type == DiskType::Fixed {
            return Ok(());
        }
        footer.refuse_other_bit_order().map_err(|error| Finding::caused(Kind::Load, error))?;
        let header = self.header(footer.data_offset)?;
        self.report.header = Some(header);
        self.parent_fields(&footer, &header)?;
        self.blocks()
    }

    /// Returns the one that counts.
    fn footers(&mut self) -> Result<Footer, Finding> {
        let length =
            self.source.length().map_err(|error| Finding::caused(Kind::EndOfFile, error))?;
        if length == 0 {
            let kind = ErrorKind::Truncated { part: Part::Footer, found: 0, wanted: 512 };
            return Err(Finding::caused(Kind::EndOfFile, kind.into()).with_errno(errno::EINVAL));
        }
        self.data_end = length;
        let end = self.end_footer(length)?;
        match footer::check(&end.1, self.now) {
            None => {
                self.report.has_end_footer = true;
                self.data_end = end.0;
                let footer = Footer::fields(&end.1);
                if footer.disk_type == DiskType::Fixed {
                    return Ok(footer);
                }
                let copy = self.footer_copy()?;
                let is_same = copy == end.1 || is_same_but_hidden(&footer, &copy);
                if !is_same && !self.options.ignore_end_footer {
                    return Err(Finding::new(Kind::FootersDiffer));
                }
                Ok(footer)
            }
            Some(fault) if !self.options.ignore_end_footer => {
                Err(Finding::new(Kind::EndFooter(fault)))
            }
            Some(fault) => {
                self.report.findings.push(Finding::new(Kind::EndFooter(fault)).into_note());
                let footer = Footer::fields(&self.footer_copy()?);
                if footer.disk_type == DiskType::Fixed {
                    // It has no copy: this is what is written to the disk.
                    return Err(Finding::new(Kind::FooterCopy("invalid type")));
                }
                Ok(footer)
            }
        }
    }

    /// Where the footer at the end begins, and its bytes.
    fn end_footer(&self, length: u64) -> Result<(u64, [u8; FOOTER_SIZE]), Finding> {
        let read = |offset: u64, bytes: &mut [u8]| {
            let read = self.source.read_at(offset, bytes);
            read.map_err(|error| Finding::caused(Kind::ReadEndFooter, error.of(Part::Footer)))
        };
        let mut bytes = [0; FOOTER_SIZE];
        if let Some(offset) = length.checked_sub(FOOTER_SIZE_SHORT as u64)
            && offset.is_multiple_of(SECTOR_SIZE)
        {
            let mut short = [0; FOOTER_SIZE_SHORT];
            read(offset, &mut short)?;
            return Ok((offset, footer::widened(&short)));
        }
        match length.checked_sub(FOOTER_SIZE as u64) {
            Some(offset) if offset.is_multiple_of(SECTOR_SIZE) => {
                read(offset, &mut bytes)?;
                Ok((offset, bytes))
            }
            _ => {
                let wanted = "a multiple of 512, or 511 more";
                let (part, field) = (Part::Footer, "size of the file");
                let kind = ErrorKind::Field { part, field, found: length, wanted };
                Err(Finding::caused(Kind::ReadEndFooter, kind.into()))
            }
        }
    }

    fn footer_copy(&self) -> Result<[u8; FOOTER_SIZE], Finding> {
        let mut bytes = [0; FOOTER_SIZE];
        self.source.read_at(0, &mut bytes).map_err(|error| {
            let error = error.of(Part::FooterCopy).or_at(0);
            Finding::caused(Kind::ReadFooterCopy, error).with_errno(errno::EIO)
        })?;
        match footer::check(&bytes, self.now) {
            Some(fault) => Err(Finding::new(Kind::FooterCopy(fault))),
            None => Ok(bytes),
        }
    }

    fn header(&self, offset: u64) -> Result<Header, Finding> {
        let mut bytes = [0; HEADER_SIZE];
        self.source.read_at(offset, &mut bytes).map_err(|error| {
            let error = error.of(Part::Header).or_at(offset);
            Finding::caused(Kind::ReadHeader, error).with_errno(errno::EIO)
        })?;
        if let Some(fault) = header::check(&bytes, self.data_end) {
            return Err(Finding::new(Kind::Header(fault)));
        }
        Header::parse(&bytes).map_err(|error| Finding::caused(Kind::Load, error.or_at(offset)))
    }

    fn parent_fields(&self, footer: &Footer, header: &Header) -> Result<(), Finding> {
        let has_name = header.parent_name.0.first_chunk() != Some(&[0, 0]);
        let is_free = |locator: &crate::locator::Locator| *locator == crate::locator::Locator::NONE;
        let latest = self.now.0.saturating_add(FUTURE_SLACK);
        let faults = if footer.disk_type == DiskType::Differencing {
            [
                (header.parent_timestamp.0 > latest, "parent creation time in future"),
                (!has_name, "invalid parent name"),
                (false, ""),
                (false, ""),
            ]
        } else {
            [
                (has_name, "invalid non-null parent name"),
                (!header.locators.iter().all(is_free), "invalid non-null parent locators"),
                (!header.parent_uuid.is_nil(), "invalid non-null parent uuid"),
                (header.parent_timestamp.0 != 0, "invalid non-zero parent timestamp"),
            ]
        };
        match faults.iter().find(|(is_true, _)| *is_true) {
            Some((_, fault)) => Err(Finding::new(Kind::ParentFields(fault))),
            None => Ok(()),
        }
    }

    /// The table, the blocks, and the batmap over them.
    fn blocks(&mut self) -> Result<(), Finding> {
        let footer_copy_only = !self.report.has_end_footer;
        let options =
            LoadOptions { for_inspection: true, footer_copy_only, ..LoadOptions::default() };
        let caused = |kind: Kind| move |error: Error| Finding::caused(kind, error);
        let image = Image::load(self.source, options).map_err(caused(Kind::EndOfMetadata))?;
        let batmap = image.batmap().map_err(caused(Kind::EndOfMetadata))?;
        let headers_end = image.layout().map_err(caused(Kind::EndOfMetadata))?.end_of_headers;
        if self.data_end < headers_end && self.report.has_end_footer && batmap.is_none() {
            return Err(Finding::new(Kind::FileSize(self.data_end)));
        }
        let area = blocks::Area { start: headers_end, end: self.data_end };
        let found = blocks::check(&image, area, self.options).map_err(caused(Kind::ReadTable))?;
        let is_sound = found.findings.is_empty();
        self.report.findings.extend(found.findings);
        if is_sound && let Some(batmap) = batmap {
            self.batmap(&image, &batmap, &found.present)?;
        }
        Ok(())
    }

    fn batmap(
        &mut self,
        image: &Image<&R>,
        batmap: &Batmap,
        present: &[u8],
    ) -> Result<(), Finding> {
        if let Some(fault) = image.header().and_then(|header| batmap.header.check(header)) {
            return Err(Finding::new(Kind::Batmap(fault)));
        }
        if batmap.header.end() > self.data_end {
            return Err(Finding::new(Kind::Batmap("invalid batmap size")));
        }
        let full = batmap.map.iter().chain(std::iter::repeat(&0));
        for ((byte, full), there) in (0_u32..).zip(full).zip(present) {
            let wrong = full & !there;
            if wrong != 0 {
                let block = byte.saturating_mul(8).saturating_add(wrong.leading_zeros());
                return Err(Finding::new(Kind::FullButAbsent(BlockIndex(block))));
            }
        }
        if self.options.read_data {
            self.full_blocks(image, batmap)?;
        }
        Ok(())
    }

    /// Are the blocks full that the batmap says are?
    fn full_blocks(&self, image: &Image<&R>, batmap: &Batmap) -> Result<(), Finding> {
        let sectors = image.block_size().map_or(0, crate::header::BlockSize::sectors);
        let mut finding = None;
        let walk = image.for_each_block(|block, place| {
            if finding.is_some() || !bits::get(&batmap.map, block.0) {
                return;
            }
            match image.bitmap(block, place) {
                Ok(bitmap) if bits::is_full(&bitmap, sectors) => {}
                Ok(_) => finding = Some(Finding::new(Kind::FullButNotFull(block))),
                Err(error) => finding = Some(Finding::caused(Kind::ReadBitmap(block), error)),
            }
        });
        walk.map_err(|error| Finding::caused(Kind::ReadTable, error))?;
        finding.map_or(Ok(()), Err)
    }
}
