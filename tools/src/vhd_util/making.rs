//! What the commands that make images share: the place, the time, and how a failure is told.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use vhd::batmap::KeyHash;
use vhd::plan::create::Parent;
use vhd::plan::modify::NewParent;
use vhd::units::{Timestamp, Uuid};
use vhd_files::execute::OpenFiles;
use vhd_files::file::{ImageFile, OpenError};
use vhd_files::lock::Policy;

use super::image::{self, Image};
use super::perform::{errno_of, not_open};
use crate::console::{Console, Failure};

/// Now.
pub(super) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Timestamp::from_unix(since.map_or(0, |since| since.as_secs()))
}

/// Where an image is to be made: nothing yet, a device, or a file that is empty from now on. One
/// that somebody writes stays as it is.
pub(super) fn place(
    console: &mut Console,
    path: &Path,
    policy: Policy,
) -> Result<OpenFiles, Failure> {
    let error = match ImageFile::open_for_writing(path, policy) {
        Ok((file, _)) => match file.set_length(0) {
            Ok(()) => return Ok(OpenFiles::with_image(file, policy)),
            Err(error) => OpenError::Io(error),
        },
        Err(OpenError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(OpenFiles::with_new_image(path, policy));
        }
        Err(error) => error,
    };
    let failure = not_open(path, &error);
    complain(console, path, errno_of(&failure));
    Err(failure)
}

fn complain(console: &mut Console, path: &Path, errno: i32) {
    console.complain(format!("{}: failed to create: {}\n", path.display(), -errno));
}

/// The failure of an image that cannot be made, which programs know by this line.
pub(super) fn say(console: &mut Console, path: &Path, errno: i32, why: &vhd::Error) -> Failure {
    complain(console, path, errno);
    image::failure(path, why)
}

/// Tells a failure on its way.
pub(super) fn told(
    console: &mut Console,
    path: &Path,
    done: Result<(), Failure>,
) -> Result<(), Failure> {
    done.inspect_err(|failure| complain(console, path, errno_of(failure)))
}

/// What a child stores of its parent.
#[derive(Clone, Debug)]
pub(super) struct ParentNames {
    name: String,
    path: String,
    uuid: Uuid,
    timestamp: Timestamp,
}

impl ParentNames {
    /// Of a parent, for a child in a place that is there; both by canonical paths. A raw parent
    /// has no identity.
    pub(super) fn of(child: &Path, parent: &Path, image: Option<&Image>) -> vhd::Result<Self> {
        let path = vhd::paths::relative(child, parent)?;
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        let modified = std::fs::metadata(parent)?.modified()?;
        let seconds = modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let uuid = image.map_or(Uuid::NIL, |image| image.footer().uuid);
        Ok(Self { name, path, uuid, timestamp: Timestamp::from_unix(seconds) })
    }

    /// As the plan of a new image takes it.
    pub(super) fn into_spec(self, keyhash: Option<KeyHash>) -> Parent {
        Parent { uuid: self.uuid, timestamp: self.timestamp, path: self.path, keyhash }
    }

    /// As the plan of a change takes it.
    pub(super) fn borrowed(&self) -> NewParent<'_> {
        let Self { name, path, uuid, timestamp } = self;
        NewParent { name, path, uuid: *uuid, timestamp: *timestamp }
    }
}
