//! Layers: what looks at the requests of a disk on their way to its images and back, for tests and
//! diagnosis. Never an `if` in the core; chosen on the command line.

mod fault;
mod integrity;

use nix::errno::Errno;

use crate::error::DiskError;
use crate::memory::Memory;
use crate::request::{DiskInfo, Request};
use crate::status::Status;

/// What a layer says to a request on its way down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Pass,
    /// It ends here.
    Fail(Errno),
    /// It never ends, as with storage that hangs; only a forced close gets it out.
    Hold,
}

/// One layer. `slot` names the request between `before` and `after`: below the number of slots.
pub trait Layer: Send {
    /// What `describe` and the log call it.
    fn name(&self) -> &'static str;

    /// A request goes down.
    fn before(&mut self, slot: usize, request: &Request, memory: &mut Memory) -> Verdict;

    /// A request that passed comes back; returns how it ends for those above.
    fn after(
        &mut self,
        slot: usize,
        request: &Request,
        status: Status,
        memory: &mut Memory,
    ) -> Status;
}

/// A layer as the command line names it: `fault:percent=5,errno=EIO`, `stuck:after=100`,
/// `integrity`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerSpec {
    /// Fails or holds requests.
    Fault(fault::FaultSpec),
    /// Compares what is read with what was written.
    Integrity,
}

impl std::str::FromStr for LayerSpec {
    type Err = DiskError;

    fn from_str(text: &str) -> Result<Self, DiskError> {
        let (name, options) = text.split_once(':').unwrap_or((text, ""));
        match name {
            "fault" => fault::FaultSpec::parse(options, Verdict::Fail(Errno::EIO)).map(Self::Fault),
            "stuck" => fault::FaultSpec::parse(options, Verdict::Hold).map(Self::Fault),
            "integrity" if options.is_empty() => Ok(Self::Integrity),
            _ => Err(DiskError::new(
                Errno::EINVAL,
                format!("Found layer {text:?} where fault:…, stuck:… or integrity was wanted"),
            )),
        }
    }
}

impl LayerSpec {
    /// Makes the layer for a disk with so many slots.
    ///
    /// # Errors
    /// When the layer cannot hold a disk of this size.
    pub fn build(&self, info: DiskInfo, slots: usize) -> Result<Box<dyn Layer>, DiskError> {
        match self {
            Self::Fault(spec) => Ok(Box::new(fault::Fault::new(spec.clone()))),
            Self::Integrity => Ok(Box::new(integrity::Integrity::new(info, slots)?)),
        }
    }
}
