//! Disks that are read from one end to the other: raw, a chain of VHDs, qcow2.

use std::path::Path;

use imago::file::File as QcowFile;
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, StorageOpenOptions};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use vhd::chain::{Chain, ChainOptions, Member};
use vhd::read_at::ReadAt;
use vhd_files::encryption::{Encryption, Key};
use vhd_files::file::ImageFile;

use super::image;
use super::perform::open_for_reading;
use crate::console::Failure;

/// What a disk is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Its bytes.
    Raw,
    /// A VHD, with its parents.
    Vhd,
    /// QEMU's format, without parents.
    Qcow2,
}

/// A disk to read.
#[derive(Debug)]
pub(super) enum Source {
    Raw(ImageFile),
    Vhd(Box<Chain<ImageFile>>),
    /// Stored in a key; parents that are raw are not.
    Encrypted(Box<Chain<ImageFile>>, Encryption),
    Qcow2(Box<FormatAccess<QcowFile>>),
}

impl Source {
    /// Opens one.
    pub(super) fn open(path: &Path, format: Format) -> Result<Self, Failure> {
        match format {
            Format::Raw => Ok(Self::Raw(open_for_reading(path)?)),
            Format::Vhd => {
                let chain = image::chain(path, ChainOptions::default());
                Ok(Self::Vhd(Box::new(chain.map_err(|error| image::failure(path, &error))?)))
            }
            Format::Qcow2 => {
                let failed = |error| Failure::io(&path.display().to_string(), &error);
                // The file is opened here; what it names is not opened at all.
                let options = StorageOpenOptions::new().filename(path);
                let file = <QcowFile as imago::Storage>::open(options).map_err(failed)?;
                let image = Qcow2::<QcowFile>::builder(file).open(DenyImplicitOpenGate::default());
                Ok(Self::Qcow2(Box::new(FormatAccess::new(image.map_err(failed)?))))
            }
        }
    }

    /// Opens a VHD that is encrypted. All images of its chain have one key.
    pub(super) fn open_encrypted(path: &Path, key: &Key) -> Result<Self, Failure> {
        let options = ChainOptions { as_stored: true, ..ChainOptions::default() };
        let chain = image::chain(path, options).map_err(|error| image::failure(path, &error))?;
        for (member, path) in chain.members() {
            let Member::Vhd(image) = member else { continue };
            let header = image.batmap_header().map_err(|error| image::failure(path, &error))?;
            if !header.and_then(|it| it.keyhash).is_some_and(|keyhash| key.opens(&keyhash)) {
                let why = format!("{}: It was not made with this key", path.display());
                return Err(Failure::new(Errno::EINVAL, why));
            }
        }
        Ok(Self::Encrypted(Box::new(chain), Encryption::new(key)))
    }

    /// In bytes.
    pub(super) fn size(&self) -> Result<u64, Failure> {
        match self {
            Self::Raw(file) => file.length().map_err(|error| image::failure(file.path(), &error)),
            Self::Vhd(chain) | Self::Encrypted(chain, _) => Ok(chain.virtual_size()),
            Self::Qcow2(image) => Ok(image.size()),
        }
    }

    /// Fills the buffer; past the end there are zeros.
    pub(super) fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Failure> {
        let left = self.size()?.saturating_sub(offset);
        let there = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let (now, past) = buffer.split_at_mut(there);
        past.fill(0);
        if now.is_empty() {
            return Ok(());
        }
        let failed = |error: vhd::Error| Failure::Errno {
            errno: error.errno(),
            explanation: format!("Cannot read the disk at {offset}: {error}"),
        };
        match self {
            Self::Raw(file) => file.read_at(offset, now).map_err(failed),
            Self::Vhd(chain) => chain.read_at(offset, now).map_err(failed),
            Self::Encrypted(chain, encryption) => {
                decrypt(chain, encryption, offset, now).map_err(failed)
            }
            Self::Qcow2(image) => image
                .read(now, offset)
                .map_err(|error| Failure::io(&format!("Cannot read the disk at {offset}"), &error)),
        }
    }

    /// Whether bytes are known to be zero, without reading them.
    pub(super) fn is_hole(&mut self, offset: u64, length: u64) -> Result<bool, Failure> {
        let left = self.size()?.saturating_sub(offset);
        let length = length.min(left);
        match self {
            _ if length == 0 => Ok(true),
            Self::Raw(file) => {
                Ok(next_data(file, offset).is_none_or(|data| data >= offset + length))
            }
            Self::Vhd(chain) | Self::Encrypted(chain, _) => {
                let located = chain.locate(offset, length);
                let extent = located.map_err(|error| Failure::Errno {
                    errno: error.errno(),
                    explanation: format!("Cannot find the disk's byte {offset}: {error}"),
                })?;
                Ok(extent.stored.is_none() && extent.length >= length)
            }
            Self::Qcow2(_) => Ok(false),
        }
    }
}

/// Reads whole sectors; what no image stores is zero, and in no key.
fn decrypt(
    chain: &mut Chain<ImageFile>,
    encryption: &Encryption,
    offset: u64,
    buffer: &mut [u8],
) -> vhd::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        let (at, left) = (offset + done as u64, (buffer.len() - done) as u64);
        let extent = chain.locate(at, left)?;
        let length = usize::try_from(extent.length.min(left)).expect("no longer than the buffer");
        let piece = &mut buffer[done..done + length];
        match extent.stored {
            None => piece.fill(0),
            Some(stored) => {
                chain.read_stored(stored, piece)?;
                let member = chain.members().nth(stored.image);
                if member.is_some_and(|(member, _)| matches!(member, Member::Vhd(_))) {
                    encryption.decrypt(at >> 9, piece);
                }
            }
        }
        done += length;
    }
    Ok(())
}

/// Where the next bytes are that are stored; `Some(offset)` where the file system cannot tell.
fn next_data(file: &ImageFile, offset: u64) -> Option<u64> {
    let at = i64::try_from(offset).ok()?;
    match lseek(file.file(), at, Whence::SeekData) {
        Ok(data) => u64::try_from(data).ok(),
        Err(Errno::ENXIO) => None,
        Err(_) => Some(offset),
    }
}

/// Whether all bytes are zero.
pub(super) fn is_zero(data: &[u8]) -> bool {
    data.iter().all(|byte| *byte == 0)
}
