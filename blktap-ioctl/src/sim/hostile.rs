//! A driver that keeps no rule: any byte anywhere, at any time, from any thread.

use super::kernel::Kernel;
use crate::abi::ENTRY_SIZE;
use crate::ring::Index;

/// The ring's page, written without regard to what is right, nor to what else is going on.
#[derive(Clone, Copy, Debug)]
pub struct Hostile<'a> {
    kernel: &'a Kernel,
}

impl<'a> Hostile<'a> {
    pub(super) fn new(kernel: &'a Kernel) -> Self {
        Self { kernel }
    }

    /// Publishes an entry under the driver's own index, with any content. No request stands behind
    /// it: the response counts as a violation.
    pub fn publish(&self, entry: &[u8; ENTRY_SIZE]) {
        self.kernel.wake_after(|state| state.publish_raw(&words(entry)));
    }

    /// Overwrites the entry of request `index` (modulo 32) without publishing it.
    pub fn write_entry(&self, index: u32, entry: &[u8; ENTRY_SIZE]) {
        self.kernel.unlocked_pages().write_entry(index, &words(entry));
    }

    /// Sets the published producer index; the driver's own stays.
    pub fn set_req_prod(&self, value: u32) {
        self.kernel.wake_after(|state| state.pages.set_index(Index::Requests, value));
    }

    /// Sets the index of responses, which only the server should write.
    pub fn set_rsp_prod(&self, value: u32) {
        self.kernel.unlocked_pages().set_index(Index::Responses, value);
    }

    /// Sets the message byte.
    pub fn set_message(&self, message: u8) {
        self.kernel.wake_after(|state| state.pages.set_message(message));
    }

    /// Writes 4 bytes of the ring's page; `offset` is below 4096 and a multiple of 4.
    ///
    /// # Panics
    /// When it is not.
    pub fn write_ring_word(&self, offset: usize, value: u32) {
        self.kernel.unlocked_pages().write_ring_word(offset, value);
    }

    /// The published indices: of requests and of responses.
    #[must_use]
    pub fn indices(&self) -> (u32, u32) {
        let state = self.kernel.lock();
        (state.pages.index(Index::Requests), state.pages.index(Index::Responses))
    }

    /// The 16 bytes of response `index` (modulo 32).
    #[must_use]
    pub fn response(&self, index: u32) -> [u8; 16] {
        let mut bytes = [0; 16];
        let words = self.kernel.unlocked_pages().response(index);
        for (target, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *target = word.to_ne_bytes();
        }
        bytes
    }

    /// Copies out of the data area, at `offset` bytes from its start.
    ///
    /// # Panics
    /// When it is not inside.
    pub fn read_data(&self, offset: u32, bytes: &mut [u8]) {
        self.kernel.unlocked_pages().copy_out(offset as usize, bytes);
    }
}

fn words(entry: &[u8; ENTRY_SIZE]) -> [u64; ENTRY_SIZE / 8] {
    let mut words = [0; ENTRY_SIZE / 8];
    for (word, bytes) in words.iter_mut().zip(entry.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    words
}
