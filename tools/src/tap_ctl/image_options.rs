//! The options that `open` and `create` share.

use std::ffi::OsStr;

use tapdisk_control::message::{Flags, Params};

use crate::command::{Failure, Options};

/// What `--help` says about them.
macro_rules! image_help {
    () => {
        "  -a type:path  the image, for example vhd:/srv/a.vhd or aio:/dev/vg/lv
  -R            read only
  -D            through the page cache instead of O_DIRECT
  -r            keep what is read from the parent in the leaf (local cache)
  -e minor      use the chain of this disk of the same tapdisk as the parent
  -2 type:path  a second image: every write goes to both
  -s            with -2: use the second image only once the first is out of space
  -t seconds    for how long a failing request is tried again, 0 to 65535; default 120
  -C file       log the blocks that are written (changed block tracking)
  --shared      others may write the image too: open it although it is open for writing elsewhere,
                and do not keep them from it
"
    };
}
pub(crate) use image_help;

/// The parameters that the options make.
pub(crate) fn params(options: &Options, path: &OsStr) -> Result<Params, Failure> {
    let mut params = Params { path: path.to_owned(), ..Params::default() };
    for (option, flag) in [
        (b'R', Flags::READ_ONLY),
        (b'D', Flags::NO_O_DIRECT),
        (b'r', Flags::ADD_LOCAL_CACHE),
        (b's', Flags::STANDBY),
    ] {
        if options.has(option) {
            params.flags = params.flags | flag;
        }
    }
    if options.has_long("--shared") {
        params.flags = params.flags | Flags::SHARED;
    }
    if let Some(parent) = options.unsigned::<u16>(b'e')? {
        params.flags = params.flags | Flags::REUSE_PARENT;
        params.parent = parent.into();
    }
    if let Some(secondary) = options.argument(b'2') {
        params.flags = params.flags | Flags::SECONDARY;
        params.secondary = secondary.to_owned();
    }
    params.request_timeout_s = options.unsigned(b't')?.unwrap_or(0);
    params.log = options.argument(b'C').map(OsStr::to_owned);
    Ok(params)
}
