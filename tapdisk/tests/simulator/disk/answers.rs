//! What a disk answers, held against the model.

use vhd::testing::value_of;

use super::{Asked, Commanded, Disk, GUEST, Left, index};
use crate::client::{Ask, Reply};
use crate::faults::Mistake;

impl Disk {
    /// Looks at all of the disk as its last life left it.
    pub(super) fn check_all(&mut self, bytes: &[u8], left: Left) -> Result<(), String> {
        let mut values = Vec::new();
        for (sector, bytes) in (0..).zip(bytes.chunks(512)) {
            let found = value_of(bytes).ok_or(format!("sector {sector} is torn inside"))?;
            let is_right = match left {
                Left::Cut => self.oracle.survives_cut(sector, found),
                Left::Kill | Left::Close => self.oracle.is_current(sector, found, u64::MAX),
            };
            if !is_right {
                let model = self.oracle.describe(sector);
                return Err(format!("{left:?}: {found:#x} at sector {sector}: {model}"));
            }
            values.push(found);
        }
        // A VHD is made durable when it is opened for writing, a raw image is not.
        if left != Left::Kill || self.place.kind == "vhd" {
            self.oracle.restart(&values);
        }
        Ok(())
    }

    /// The clients take what has come.
    pub(super) fn receive(&mut self) -> Result<(), String> {
        let mut replies = Vec::new();
        let asked = &self.asked;
        let length = |number| match asked.get(&number).map(|asked| asked.ask) {
            Some(Ask::Read { count, .. }) => index(count * 512),
            _ => 0,
        };
        for client in &mut self.clients {
            client.receive(length, |reply| replies.push(reply));
        }
        if let Some(guest) = &self.guest {
            guest.receive(|reply| replies.push(reply));
        }
        replies.iter().try_for_each(|reply| self.replied(reply))
    }

    fn replied(&mut self, reply: &Reply) -> Result<(), String> {
        let Some(Asked { ask, began, client }) = self.asked.remove(&reply.number) else {
            return Err(format!("an answer to nobody: {}", reply.number));
        };
        self.counts.requests += 1;
        let is_done = reply.error == 0;
        self.counts.failed += u64::from(!is_done);
        if !is_done && !self.faults.are_there && self.commanded != Some(Commanded::Close) {
            return Err(format!("{ask:?} fails for no reason: {}", reply.error));
        }
        let (first, count) = ask.range();
        if !is_done && (ask == Ask::Flush || ask.is_fua()) {
            if self.faults.mistake == Some(Mistake::FlushAgain)
                && ask == Ask::Flush
                && client != GUEST
            {
                self.number += 1;
                let again = self.clients.iter_mut().find(|other| other.number == client);
                again.expect("it was just told").send(self.number, ask, &[]);
                self.asked.insert(self.number, Asked { ask, began, client });
                return Ok(());
            }
            // What the image lost that was open before is told now. What this one loses it tells
            // with every flush: one that is done promises all.
            if ask == Ask::Flush {
                self.oracle.lost_before(self.resumed);
                self.after_loss.0 = true;
            }
        }
        match ask {
            Ask::Flush if is_done => {
                self.after_loss.1 |= std::mem::take(&mut self.after_loss.0);
                let readers = self.asked.values().map(|asked| asked.began);
                self.oracle.flushed(began, readers.min().unwrap_or(u64::MAX));
            }
            Ask::Read { .. } if is_done => self.check_read(first, began, &reply.data)?,
            Ask::Read { .. } | Ask::Flush => {}
            Ask::Write { .. } | Ask::Zero { .. } | Ask::Trim { .. } => {
                for sector in first..first + count {
                    self.oracle.answer(reply.number, sector, is_done, ask.is_fua());
                }
            }
        }
        Ok(())
    }

    fn check_read(&self, first: u64, began: u64, bytes: &[u8]) -> Result<(), String> {
        for (sector, bytes) in (first..).zip(bytes.chunks(512)) {
            let found = value_of(bytes).ok_or(format!("sector {sector} is torn inside"))?;
            if !self.oracle.is_current(sector, found, began) {
                let model = self.oracle.describe(sector);
                return Err(format!("read {found:#x} at sector {sector}: {model}"));
            }
        }
        Ok(())
    }
}
