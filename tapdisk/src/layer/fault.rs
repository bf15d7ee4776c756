//! `fault:` and `stuck:`: requests that fail, or that never end, by a seeded draw.
//!
//! Options, separated by commas: `percent=N` of the requests (default 100), `after=N` requests pass
//! first (default 0), `count=N` at most (default no limit), `op=read|write|flush|any` (default
//! any), `errno=EIO|…` (only for `fault`), `seed=N`.

use nix::errno::Errno;

use super::{Layer, Verdict};
use crate::error::DiskError;
use crate::memory::Memory;
use crate::request::{Op, Request};
use crate::status::Status;

/// Which requests, and what happens to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultSpec {
    verdict: Verdict,
    percent: u64,
    after: u64,
    count: u64,
    op: Option<Op>,
    seed: u64,
}

/// The errnos that storage is seen to answer with.
const ERRNOS: &[(&str, Errno)] = &[
    ("EIO", Errno::EIO),
    ("ENOSPC", Errno::ENOSPC),
    ("EAGAIN", Errno::EAGAIN),
    ("EBUSY", Errno::EBUSY),
    ("EINTR", Errno::EINTR),
    ("ETIMEDOUT", Errno::ETIMEDOUT),
    ("ESTALE", Errno::ESTALE),
    ("EOPNOTSUPP", Errno::EOPNOTSUPP),
];

impl FaultSpec {
    pub(super) fn parse(options: &str, verdict: Verdict) -> Result<Self, DiskError> {
        let mut spec = Self { verdict, percent: 100, after: 0, count: u64::MAX, op: None, seed: 1 };
        for option in options.split(',').filter(|option| !option.is_empty()) {
            spec.set(option).ok_or_else(|| {
                DiskError::new(
                    Errno::EINVAL,
                    format!("Found layer option {option:?}, which is unknown"),
                )
            })?;
        }
        Ok(spec)
    }

    fn set(&mut self, option: &str) -> Option<()> {
        let (key, value) = option.split_once('=')?;
        match key {
            "percent" => self.percent = value.parse().ok().filter(|percent| *percent <= 100)?,
            "after" => self.after = value.parse().ok()?,
            "count" => self.count = value.parse().ok()?,
            "seed" => self.seed = value.parse().ok()?,
            "op" => {
                self.op = match value {
                    "any" => None,
                    "read" => Some(Op::Read),
                    "write" => Some(Op::Write),
                    "flush" => Some(Op::Flush),
                    _ => return None,
                }
            }
            "errno" if matches!(self.verdict, Verdict::Fail(_)) => {
                let (_, errno) = ERRNOS.iter().find(|(name, _)| *name == value)?;
                self.verdict = Verdict::Fail(*errno);
            }
            _ => return None,
        }
        Some(())
    }
}

/// The layer.
pub(super) struct Fault {
    spec: FaultSpec,
    random: u64,
}

impl Fault {
    pub(super) fn new(spec: FaultSpec) -> Self {
        // Zero is the one state that xorshift never leaves.
        let random = spec.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { spec, random }
    }

    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

impl Layer for Fault {
    fn name(&self) -> &'static str {
        if self.spec.verdict == Verdict::Hold { "stuck" } else { "fault" }
    }

    fn before(&mut self, _: usize, request: &Request, _: &mut Memory) -> Verdict {
        if self.spec.op.is_some_and(|op| op != request.op) || self.spec.count == 0 {
            return Verdict::Pass;
        }
        if self.spec.after > 0 {
            self.spec.after -= 1;
            return Verdict::Pass;
        }
        if self.draw() % 100 >= self.spec.percent {
            return Verdict::Pass;
        }
        self.spec.count -= 1;
        self.spec.verdict
    }

    fn after(&mut self, _: usize, _: &Request, status: Status, _: &mut Memory) -> Status {
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Segments, Token};

    fn verdicts(options: &str, ops: &[Op]) -> Vec<Verdict> {
        let spec = FaultSpec::parse(options, Verdict::Fail(Errno::EIO)).unwrap();
        let mut fault = Fault::new(spec);
        let mut memory = Memory::new(4096).unwrap();
        let request = |op| Request {
            token: Token::default(),
            op,
            fua: false,
            may_punch: false,
            offset: 0,
            len: 512,
            segments: Segments::NONE,
        };
        ops.iter().map(|op| fault.before(0, &request(*op), &mut memory)).collect()
    }

    #[test]
    fn fails_only_the_named_operation_after_the_named_number_and_count() {
        let ops = [Op::Read, Op::Write, Op::Write, Op::Write, Op::Write];
        let fail = Verdict::Fail(Errno::ENOSPC);
        assert_eq!(
            verdicts("op=write,after=1,count=2,errno=ENOSPC", &ops),
            [Verdict::Pass, Verdict::Pass, fail, fail, Verdict::Pass]
        );
    }

    #[test]
    fn a_seed_reproduces_its_draws() {
        let ops = [Op::Read; 200];
        let first = verdicts("percent=20,seed=7", &ops);
        assert_eq!(first, verdicts("percent=20,seed=7", &ops));
        assert_ne!(first, verdicts("percent=20,seed=8", &ops));
        let failed = first.iter().filter(|verdict| **verdict != Verdict::Pass).count();
        assert!((15..=70).contains(&failed), "{failed} of 200 at 20 percent");
    }

    #[test]
    fn rejects_unknown_options() {
        for bad in ["percent=101", "errno=EWHAT", "op=erase", "what=1", "after"] {
            assert!(FaultSpec::parse(bad, Verdict::Fail(Errno::EIO)).is_err(), "{bad}");
        }
        assert!(FaultSpec::parse("errno=EIO", Verdict::Hold).is_err());
    }
}
