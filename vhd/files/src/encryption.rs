//! Keys of encrypted images, and the encryption of their sectors.
//!
//! The data of an encrypted VHD - not its metadata - is in AES-XTS, each sector of 512 bytes by
//! itself. The tweak is the number of the sector in the disk, 32 bits, little-endian ("plain", as
//! dm-crypt calls it). The image holds no key, but in the batmap's header a [`KeyHash`] by which
//! the right one is recognised. A key is a file of its bytes, two AES keys one after the other:
//! `<name of the image>,aes-xts-plain,256.key` with 32 bytes, or `512` with 64.
//!
//! XTS does not authenticate: who can write to the storage can damage sectors or put back older
//! ones, but learns nothing of their contents beyond whether they changed.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use aes::cipher::{Array, KeyInit};
use aes::{Aes128, Aes256};
use sha2::{Digest, Sha256};
use vhd::batmap::KeyHash;
use xts_mode::Xts128;

/// Bytes that are encrypted together.
pub const SECTOR_SIZE: usize = 512;

/// A key: two AES keys, of 128 or of 256 bits each.
#[derive(Clone)]
pub struct Key {
    bytes: Vec<u8>,
}

/// It is never printed.
impl fmt::Debug for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Key of {} bits", self.bits())
    }
}

/// Why there is no key.
#[derive(Debug)]
pub enum KeyError {
    /// Not 32 or 64 bytes but this many, or more.
    Length(usize),
    /// The file's name does not say that it is one for this image.
    Name {
        /// The name.
        found: PathBuf,
        /// What it must be.
        wanted: PathBuf,
    },
    /// It could not be read.
    Io(io::Error),
}

impl fmt::Display for KeyError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(found) => write!(out, "The key has {found} bytes, wanted 32 or 64"),
            Self::Name { found, wanted } => write!(
                out,
                "The key file is called {}, wanted {}",
                found.display(),
                wanted.display()
            ),
            Self::Io(error) => write!(out, "The key cannot be read: {error}"),
        }
    }
}

impl std::error::Error for KeyError {}

impl Key {
    /// From its bytes.
    ///
    /// # Errors
    /// Not 32 or 64 of them.
    pub fn new(bytes: Vec<u8>) -> Result<Self, KeyError> {
        match bytes.len() {
            32 | 64 => Ok(Self { bytes }),
            length => Err(KeyError::Length(length)),
        }
    }

    /// From a stream that ends behind it.
    ///
    /// # Errors
    /// Not 32 or 64 bytes; the stream's.
    pub fn read(stream: impl Read) -> Result<Self, KeyError> {
        let mut bytes = Vec::new();
        stream.take(65).read_to_end(&mut bytes).map_err(KeyError::Io)?;
        Self::new(bytes)
    }

    /// From a file, of any name.
    ///
    /// # Errors
    /// Not 32 or 64 bytes; the file system's.
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        Self::read(File::open(path).map_err(KeyError::Io)?)
    }

    /// The key of an image: of the file in `directory` that is called after it, the longer one
    /// first. `None` if there is no such file.
    ///
    /// # Errors
    /// A file that is there but cannot be read, or does not hold as many bits as its name says.
    pub fn of_image(directory: &Path, image: &Path) -> Result<Option<Self>, KeyError> {
        for bits in [512, 256] {
            let path = directory.join(file_name(image, bits));
            match Self::from_file(&path) {
                Ok(key) if key.bits() == bits => return Ok(Some(key)),
                Ok(key) => {
                    let wanted = directory.join(file_name(image, key.bits()));
                    return Err(KeyError::Name { found: path, wanted });
                }
                Err(KeyError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Its length in bits: 256 or 512, of which half are each AES key's.
    #[must_use]
    pub fn bits(&self) -> usize {
        self.bytes.len() * 8
    }

    /// What an image with this key holds, for a nonce.
    #[must_use]
    pub fn hash(&self, nonce: [u8; 32]) -> KeyHash {
        let hash = Sha256::new().chain_update(nonce).chain_update(&self.bytes).finalize();
        KeyHash { nonce, hash: hash.into() }
    }

    /// Is it the one that an image was made with?
    #[must_use]
    pub fn opens(&self, keyhash: &KeyHash) -> bool {
        self.hash(keyhash.nonce).hash == keyhash.hash
    }
}

/// What the key file of an image is called.
#[must_use]
pub fn file_name(image: &Path, bits: usize) -> OsString {
    let mut name = image.file_name().unwrap_or_default().to_owned();
    name.push(format!(",aes-xts-plain,{bits}.key"));
    name
}

enum Cipher {
    Aes128(Box<Xts128<Aes128>>),
    Aes256(Box<Xts128<Aes256>>),
}

/// Encrypts and decrypts sectors.
pub struct Encryption(Cipher);

impl fmt::Debug for Encryption {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Encryption")
    }
}

impl Encryption {
    /// With a key.
    #[must_use]
    pub fn new(key: &Key) -> Self {
        let (data, tweak) = key.bytes.split_at(key.bytes.len() / 2);
        let aes128 = |key: &[u8]| Aes128::new(&array(key));
        let aes256 = |key: &[u8]| Aes256::new(&array(key));
        Self(match key.bytes.len() {
            32 => Cipher::Aes128(Box::new(Xts128::new(aes128(data), aes128(tweak)))),
            _ => Cipher::Aes256(Box::new(Xts128::new(aes256(data), aes256(tweak)))),
        })
    }

    /// Encrypts whole sectors in place; `sector` is the number of the first one in the disk.
    ///
    /// # Panics
    /// A part of a sector.
    pub fn encrypt(&self, sector: u64, data: &mut [u8]) {
        for (sector, data) in sectors(sector, data) {
            match &self.0 {
                Cipher::Aes128(xts) => xts.encrypt_sector(data, Array(tweak(sector))),
                Cipher::Aes256(xts) => xts.encrypt_sector(data, Array(tweak(sector))),
            }
        }
    }

    /// Decrypts whole sectors in place; `sector` is the number of the first one in the disk.
    ///
    /// # Panics
    /// A part of a sector.
    pub fn decrypt(&self, sector: u64, data: &mut [u8]) {
        for (sector, data) in sectors(sector, data) {
            match &self.0 {
                Cipher::Aes128(xts) => xts.decrypt_sector(data, Array(tweak(sector))),
                Cipher::Aes256(xts) => xts.decrypt_sector(data, Array(tweak(sector))),
            }
        }
    }
}

fn array<Size: aes::cipher::array::ArraySize>(key: &[u8]) -> Array<u8, Size> {
    Array::try_from(key).expect("a key has two halves of 16 or of 32 bytes")
}

fn sectors(first: u64, data: &mut [u8]) -> impl Iterator<Item = (u64, &mut [u8])> {
    assert!(data.len().is_multiple_of(SECTOR_SIZE), "whole sectors are encrypted");
    (first..).zip(data.chunks_exact_mut(SECTOR_SIZE))
}

/// The sector's number in 32 bits, as all programs that know these images have it. A VHD has fewer
/// sectors than that can count.
fn tweak(sector: u64) -> [u8; 16] {
    let mut tweak = [0; 16];
    let [low @ .., _, _, _, _] = sector.to_le_bytes();
    tweak[..4].copy_from_slice(&low);
    tweak
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(length: u8) -> Key {
        Key::new((0..length).collect()).unwrap()
    }

    #[test]
    fn a_key_has_32_or_64_bytes() {
        for length in [0, 16, 31, 33, 63, 65, 200] {
            let error = Key::read(&vec![0; length][..]).unwrap_err();
            assert!(
                matches!(error, KeyError::Length(found) if found == length.min(65)),
                "{length}"
            );
        }
        assert_eq!(Key::read(&[0; 32][..]).unwrap().bits(), 256);
        assert_eq!(Key::read(&[0; 64][..]).unwrap().bits(), 512);
    }

    #[test]
    fn a_key_is_not_printed() {
        assert_eq!(format!("{:?}", key(32)), "Key of 256 bits");
    }

    #[test]
    fn a_key_opens_what_it_was_made_with_and_nothing_else() {
        let keyhash = key(32).hash([9; 32]);
        assert!(key(32).opens(&keyhash));
        assert!(!key(64).opens(&keyhash));
        assert!(!key(32).opens(&KeyHash { nonce: [8; 32], ..keyhash }));
    }

    /// Of IEEE 1619-2007, annex B, vector 4 (AES-128, data unit 0), the first 32 bytes: the key and
    /// the data are those of the standard.
    #[test]
    fn the_first_sector_is_that_of_the_standard() {
        let halves = ["27182818284590452353602874713526", "31415926535897932384626433832795"];
        let bytes = halves.concat();
        let bytes = (0..32).map(|at| u8::from_str_radix(&bytes[at * 2..at * 2 + 2], 16).unwrap());
        let encryption = Encryption::new(&Key::new(bytes.collect()).unwrap());
        let mut data: Vec<u8> = (0..=255).chain(0..=255).collect();
        encryption.encrypt(0, &mut data);
        let wanted = [
            0x27, 0xa7, 0x47, 0x9b, 0xef, 0xa1, 0xd4, 0x76, 0x48, 0x9f, 0x30, 0x8c, 0xd4, 0xcf,
            0xa6, 0xe2, 0xa9, 0x6e, 0x4b, 0xbe, 0x32, 0x08, 0xff, 0x25, 0x28, 0x7d, 0xd3, 0x81,
            0x96, 0x16, 0xe8, 0x9c,
        ];
        assert_eq!(data[..32], wanted);
    }

    #[test]
    fn what_was_encrypted_is_decrypted_wherever_it_was_cut() {
        for length in [32, 64] {
            let encryption = Encryption::new(&key(length));
            let plain: Vec<u8> = (0..=250).cycle().take(8 * SECTOR_SIZE).collect();
            let mut data = plain.clone();
            encryption.encrypt(0xffff_fffc, &mut data);
            assert_ne!(data, plain);
            let (first, second) = data.split_at_mut(3 * SECTOR_SIZE);
            encryption.decrypt(0xffff_fffc, first);
            encryption.decrypt(0xffff_ffff, second);
            assert_eq!(data, plain);
        }
    }

    #[test]
    fn a_key_file_is_called_after_its_image_and_its_bits() {
        let directory = std::env::temp_dir().join(format!("vhd-key-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let image = Path::new("/srv/a.vhd");
        assert!(Key::of_image(&directory, image).unwrap().is_none());
        let name = directory.join("a.vhd,aes-xts-plain,256.key");
        std::fs::write(&name, [1; 32]).unwrap();
        assert_eq!(Key::of_image(&directory, image).unwrap().unwrap().bits(), 256);
        std::fs::write(&name, [1; 64]).unwrap();
        let error = Key::of_image(&directory, image).unwrap_err().to_string();
        assert!(error.contains("256.key, wanted") && error.ends_with("512.key"), "{error}");
        std::fs::write(&name, [1; 33]).unwrap();
        assert!(matches!(Key::of_image(&directory, image), Err(KeyError::Length(33))));
        std::fs::remove_dir_all(directory).unwrap();
    }
}
