//! Writes copied pieces on a thread of its own, so that the storage reads the next one meanwhile.
//!
//! One piece is under way at a time. Who hands one over asks for the end of the one before, and of
//! the last one before anything else is done: nothing is written behind anybody's back.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use vhd::plan::File;

use crate::buffer::AlignedBuffer;
use crate::file::ImageFile;

/// A piece on its way: what is written, where, and how it ended.
#[derive(Debug)]
struct Piece {
    target: ImageFile,
    buffer: AlignedBuffer,
    length: usize,
    offset: u64,
    written: io::Result<()>,
}

/// The thread, and what it is given.
#[derive(Debug)]
pub(super) struct Behind {
    /// Taken when the thread is to end.
    pieces: Option<SyncSender<Piece>>,
    ended: Receiver<Piece>,
    thread: Option<JoinHandle<()>>,
    /// Where the piece under way goes.
    under_way: Option<File>,
    /// Of the last piece: to be used again.
    target: Option<(File, ImageFile)>,
    spare: Option<AlignedBuffer>,
}

/// How a piece ended that was under way.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) file: File,
    pub(super) offset: u64,
    pub(super) written: io::Result<()>,
}

impl Behind {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no more of them.
    pub(super) fn start() -> io::Result<Self> {
        let (pieces, given) = sync_channel::<Piece>(1);
        let (ends, ended) = sync_channel(1);
        let write = move || {
            for mut piece in given {
                let bytes = piece.buffer.get(..piece.length).expect("it was filled so far");
                piece.written = piece.target.write_all_at(bytes, piece.offset);
                if ends.send(piece).is_err() {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().name("writer".to_owned()).spawn(write)?;
        let (pieces, thread) = (Some(pieces), Some(thread));
        Ok(Self { pieces, ended, thread, under_way: None, target: None, spare: None })
    }

    /// A buffer that nobody uses, if there is one.
    pub(super) fn take_spare(&mut self) -> Option<AlignedBuffer> {
        self.spare.take()
    }

    /// Begins to write `length` bytes of a buffer. Nothing is under way.
    ///
    /// # Errors
    /// There is no second handle for the file.
    pub(super) fn begin(
        &mut self,
        (file, open): (File, &ImageFile),
        offset: u64,
        (buffer, length): (AlignedBuffer, usize),
    ) -> io::Result<()> {
        assert!(self.under_way.is_none(), "one piece at a time");
        let target = match self.target.take() {
            Some((known, target)) if known == file => target,
            _ => open.again()?,
        };
        open.forget_length();
        let piece = Piece { target, buffer, length, offset, written: Ok(()) };
        let pieces = self.pieces.as_ref().expect("the thread has not ended");
        pieces.send(piece).expect("the thread waits for pieces");
        self.under_way = Some(file);
        Ok(())
    }

    /// Waits for the piece under way, if there is one.
    pub(super) fn end(&mut self) -> Option<Ended> {
        let file = self.under_way.take()?;
        let piece = self.ended.recv().expect("the thread answers each piece");
        self.spare = Some(piece.buffer);
        self.target = Some((file, piece.target));
        Some(Ended { file, offset: piece.offset, written: piece.written })
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        self.pieces = None;
        if let Some(thread) = self.thread.take() {
            // It panics nowhere; and if it did, that was said.
            drop(thread.join());
        }
    }
}
