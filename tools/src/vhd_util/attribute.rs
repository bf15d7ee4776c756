//! Attributes of files: where the marker and the key hash of an image are that has no batmap.

use std::path::Path;

/// What their names start with.
const PREFIX: &str = "user.com.citrix.xenclient.backend.";

/// The value of an attribute; `None` if it is not set, or the file system has none.
pub(crate) fn get(path: &Path, name: &str) -> Option<Vec<u8>> {
    xattr::get(path, format!("{PREFIX}{name}")).ok().flatten()
}

/// Sets one.
pub(crate) fn set(path: &Path, name: &str, value: &[u8]) -> std::io::Result<()> {
    xattr::set(path, format!("{PREFIX}{name}"), value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_absent_until_it_is_set() {
        let path = std::env::temp_dir().join(format!("tools-attribute-{}", std::process::id()));
        std::fs::write(&path, b"").unwrap();
        assert_eq!(get(&path, "marker"), None);
        match set(&path, "marker", &[7]) {
            Ok(()) => assert_eq!(get(&path, "marker"), Some(vec![7])),
            Err(error) => println!("skipped: no attributes here: {error}"),
        }
        std::fs::remove_file(path).unwrap();
    }
}
