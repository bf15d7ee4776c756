//! Encrypted images: their sectors, decrypted and encrypted by somebody else's AES-XTS.

use std::fs;
use std::process::Command;

use vhd::header::BlockSize;
use vhd::testing::Spec;
use vhd::units::Uuid;

use crate::model::{Model, Random};
use crate::{Folder, vhd_util};

/// Decrypts a raw file in place: 512-byte sectors, the tweak is the sector's number (plain).
const PROGRAM: &str = "
import sys
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
key, name = open(sys.argv[1], 'rb').read(), sys.argv[2]
data = open(name, 'rb').read()
with open(name, 'wb') as out:
    for at in range(0, len(data), 512):
        tweak = (at // 512).to_bytes(16, 'little')
        cipher = Cipher(algorithms.AES(key), modes.XTS(tweak)).decryptor()
        out.write(cipher.update(data[at:at + 512]) + cipher.finalize())
";

/// Encrypts what a dynamic or differencing image holds, in place, and gives it the hash of the key:
/// from the layout alone.
const ENCRYPT: &str = "
import hashlib, struct, sys
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
key, name = open(sys.argv[1], 'rb').read(), sys.argv[2]
data = bytearray(open(name, 'rb').read())
table, entries, size = struct.unpack_from('>QxxxxII', data, 512 + 16)
bitmap = max(1, size // 512 // 8 // 512)
for block in range(entries):
    place, = struct.unpack_from('>I', data, table + 4 * block)
    if place == 0xffffffff:
        continue
    for number in range(size // 512):
        if data[place * 512 + number // 8] & 0x80 >> number % 8:
            sector, at = block * (size // 512) + number, (place + bitmap + number) * 512
            tweak = sector.to_bytes(16, 'little')
            cipher = Cipher(algorithms.AES(key), modes.XTS(tweak)).encryptor()
            data[at:at + 512] = cipher.update(bytes(data[at:at + 512])) + cipher.finalize()
batmap, nonce = table + (4 * entries + 511) // 512 * 512, bytes([7]) * 32
assert data[batmap:batmap + 8] == b'tdbatmap'
data[batmap + 29:batmap + 94] = b'\\1' + nonce + hashlib.sha256(nonce + key).digest()
open(name, 'wb').write(data)
";

fn run(folder: &Folder, python: &str, program: &str, key: &str, image: &str) {
    let mut command = Command::new(python);
    let command = command.args(["-c", program, key, image]).current_dir(&folder.0);
    assert!(command.status().unwrap().success(), "{image}");
}

/// A raw image, and two children that somebody else has encrypted.
struct Chain {
    key: String,
    base: String,
    names: [String; 2],
    /// What each of the three shows.
    models: [Model; 3],
}

impl Chain {
    fn make(folder: &Folder, python: &str, seed: u64) -> Self {
        let mut random = Random::new(seed + 40_000);
        let sectors = 2 + random.below(3 << 11);
        let own = [0, 1, 2].map(|_| Model::random(&mut random, sectors, 1));
        let [key, base] = ["key", "raw"].map(|kind| format!("{seed}.chain.{kind}"));
        let size = if seed.is_multiple_of(2) { 32 } else { 64 };
        let bytes: Vec<u8> = (0..size).map(|_| random.byte()).collect();
        fs::write(folder.path(&key), bytes).unwrap();
        own[0].write(&folder.path(&base));
        let names = [0, 1].map(|level| format!("{seed}.chain.{level}.vhd"));
        let identity = |level: u64| Uuid::from_random(u128::from(seed << 8 | level).to_be_bytes());
        for (level, name) in (0..).zip(&names) {
            let sectors = own[usize::try_from(level).unwrap() + 1].bytes.clone();
            let exponent = 12 + random.below(10);
            let parent = match level {
                0 => (Uuid::NIL, format!("./{base}")),
                _ => (identity(level - 1), format!("./{}", names[0])),
            };
            let spec = Spec {
                uuid: identity(level),
                parent: Some(parent),
                sectors,
                block_size: BlockSize::new(1 << exponent).unwrap(),
                ..Spec::new(own[0].sectors * 512)
            };
            fs::write(folder.path(name), spec.make()).unwrap();
            run(folder, python, ENCRYPT, &key, name);
        }
        let middle = own[0].under(&own[1]);
        let top = middle.under(&own[2]);
        let [first, ..] = own;
        Self { key, base, names, models: [first, middle, top] }
    }

    /// We, with the key, find in an image what the model says.
    fn finds(&self, folder: &Folder, image: usize, model: &Model) {
        let (name, key) = (&self.names[image], &self.key);
        let plain = format!("{name}.plain");
        vhd_util(folder, &format!("convert -n {name} -N {plain} -O raw -k {key}"));
        assert!(fs::read(folder.path(&plain)).unwrap() == model.data(), "{name}");
        fs::remove_file(folder.path(&plain)).unwrap();
    }
}

/// What was filled with a key needs no parent, and another AES finds in it what the model says;
/// what was merged into a parent that is in the key or in none, too.
pub(crate) fn fills_and_merges(folder: &Folder, python: &str, chains: u64) {
    for seed in 1..=chains {
        let chain = Chain::make(folder, python, seed);
        let (key, base, [middle, top]) = (&chain.key, &chain.base, &chain.names);
        chain.finds(folder, 0, &chain.models[1]);
        chain.finds(folder, 1, &chain.models[2]);
        if seed.is_multiple_of(3) {
            vhd_util(folder, &format!("coalesce -n {top}"));
            chain.finds(folder, 0, &chain.models[2]);
            vhd_util(folder, &format!("coalesce -n {middle} --key={key}"));
            let merged = fs::read(folder.path(base)).unwrap();
            assert!(merged == chain.models[2].data(), "{base}");
            continue;
        }
        vhd_util(folder, &format!("fill -n {top} --key={key}"));
        chain.finds(folder, 1, &chain.models[2]);
        // All that the image holds, as it is stored: it holds every sector now.
        let model = &chain.models[2];
        let out = vhd_util(folder, &format!("read -r 0 -c {} -n {top}", model.sectors));
        let stored = format!("{seed}.chain.stored");
        fs::write(folder.path(&stored), out).unwrap();
        run(folder, python, PROGRAM, key, &stored);
        assert!(fs::read(folder.path(&stored)).unwrap() == model.data(), "{top}");
        let map = String::from_utf8(vhd_util(folder, &format!("map -n {top}"))).unwrap();
        assert!(map.lines().all(|line| line.split(' ').nth(2) == Some("0")), "{map}");
    }
}

pub(crate) fn decrypts(folder: &Folder, python: &str) {
    for (seed, bits, size) in [(1, 256, 32), (2, 512, 64)] {
        let mut random = Random::new(seed + 30_000);
        let model = Model::random(&mut random, 3 << 12, 1);
        let [raw, plain, secret, stored] =
            ["raw", "plain", "secret", "stored"].map(|name| format!("{seed}.{name}"));
        model.write(&folder.path(&raw));
        let key: Vec<u8> = (0..size).map(|_| random.byte()).collect();
        let key_name = format!("{seed},aes-xts-plain,{bits}.key");
        fs::write(folder.path(&key_name), key).unwrap();
        vhd_util(folder, &format!("convert -f raw -n {raw} -N {plain}"));
        // Blocks that are not there are not encrypted: all are.
        vhd_util(folder, &format!("fill -n {plain}"));
        vhd_util(folder, &format!("copy -n {plain} -N {secret} -k {key_name}"));
        let out = vhd_util(folder, &format!("read -r 0 -c {} -n {secret}", model.sectors));
        assert!(out != model.data());
        fs::write(folder.path(&stored), out).unwrap();
        run(folder, python, PROGRAM, &key_name, &stored);
        assert!(fs::read(folder.path(&stored)).unwrap() == model.data(), "{bits} bits");
    }
}
