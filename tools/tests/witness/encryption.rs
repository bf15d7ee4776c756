//! Encrypted images: their sectors, decrypted by somebody else's AES-XTS.

use std::fs;
use std::process::Command;

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
        let mut program = Command::new(python);
        let program = program.args(["-c", PROGRAM, &key_name, &stored]).current_dir(&folder.0);
        assert!(program.status().unwrap().success());
        assert!(fs::read(folder.path(&stored)).unwrap() == model.data(), "{bits} bits");
    }
}
