//! `read --json`: footer, header, locators and batmap as one object.

use serde_json::{Value, json};
use vhd::footer::Footer;
use vhd::image::FooterPlace;

use super::dump;
use super::image::{Image, type_name};

/// What an image says of itself.
pub(crate) fn object(image: &Image) -> Value {
    let place = match image.footer_place() {
        FooterPlace::End => "end",
        FooterPlace::EndShort => "end, of 511 bytes",
        FooterPlace::Start => "copy at the start",
    };
    json!({
        "path": image.path().to_string_lossy(),
        "file_size": image.file_size(),
        "footer_place": place,
        "footer": footer(image),
        "header": header(image),
        "locators": locators(image),
        "batmap": batmap(image),
    })
}

fn checksum(found: u32, computed: u32) -> Value {
    json!({ "found": found, "computed": computed, "is_right": found == computed })
}

fn footer(image: &Image) -> Value {
    let footer = image.footer();
    let raw = image.raw_footer();
    json!({
        "is_poisoned": footer.is_poisoned,
        "features": footer.features,
        "version": footer.version,
        "data_offset": footer.data_offset,
        "created": footer.timestamp.to_unix(),
        "creator": String::from_utf8_lossy(&footer.creator).trim_end_matches('\0'),
        "creator_version": footer.creator_version,
        "creator_host": footer.creator_host,
        "original_size": footer.original_size,
        "current_size": footer.current_size,
        "geometry": {
            "cylinders": footer.geometry.cylinders,
            "heads": footer.geometry.heads,
            "sectors": footer.geometry.sectors,
        },
        "type": type_name(footer.disk_type),
        "type_code": footer.disk_type.code(),
        "uuid": footer.uuid.to_string(),
        "saved": footer.saved,
        "hidden": footer.hidden,
        "checksum": checksum(Footer::stored_checksum(raw), vhd::footer::checksum(raw)),
    })
}

fn header(image: &Image) -> Value {
    let (Some(header), Some(raw)) = (image.header(), image.raw_header()) else {
        return Value::Null;
    };
    let fields = vhd::header::Fields::of(raw);
    json!({
        "table_offset": header.table_offset,
        "table_entries": header.table_entries,
        "block_size": header.block_size.bytes(),
        "parent_uuid": header.parent_uuid.to_string(),
        "parent_changed": header.parent_timestamp.to_unix(),
        "parent_name": header.parent_name.decode().ok(),
        "checksum": checksum(fields.checksum, vhd::header::checksum(raw)),
    })
}

fn locators(image: &Image) -> Value {
    let locators = image.locators();
    let each = locators.iter().map(|named| {
        let code = named.locator.platform.code().to_be_bytes();
        json!({
            "number": named.number,
            "platform": String::from_utf8_lossy(&code),
            "space": named.locator.space,
            "length": named.locator.length,
            "offset": named.locator.offset,
            "name": named.name,
        })
    });
    Value::Array(each.collect())
}

fn batmap(image: &Image) -> Value {
    match image.batmap() {
        Ok(Some(map)) => json!({
            "offset": map.header.offset,
            "sectors": map.header.sectors,
            "version": map.header.version,
            "marker": map.header.marker,
            "keyhash": map.header.keyhash.map(|it| json!({
                "nonce": dump::hex(&it.nonce),
                "hash": dump::hex(&it.hash),
            })),
            "checksum": checksum(map.header.checksum, map.header.checksum_of(&map.map)),
        }),
        Ok(None) => Value::Null,
        Err(error) => json!({ "error": error.to_string() }),
    }
}
