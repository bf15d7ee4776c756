//! A snapshot whose pause or exchange fails: the disk goes on, and nothing that a guest may have
//! written is removed.

use std::path::PathBuf;
use std::sync::Mutex;

use tapdisk_control::message::{MessageId, Request, Response};

use crate::bench::{Bench, PID, Server, answer_list, refuse, send};

const P: &str = "7654321";

/// A disk on a raw image, and a server that answers its n-th pause or resume by `answers`: with an
/// errno, 0 for success; nothing, where there is no more, but that it hangs up.
struct Rig {
    /// Before the directories, which its end needs.
    server: Server,
    bench: Bench,
    new: PathBuf,
}

impl Rig {
    fn new(name: &str, answers: &'static [i32]) -> Self {
        let bench = Bench::new(name);
        let base = bench.path("base");
        std::fs::File::create(&base).unwrap().set_len(4 << 20).unwrap();
        let (image, new) = (format!("aio:{}", base.display()), bench.path("new.vhd"));
        let answers = Mutex::new(answers.iter());
        let server = Server::start(&bench, PID, move |request, stream| {
            let done = match request {
                Request::Pause { .. } => Response::Pause,
                Request::Resume { .. } => Response::Resume,
                _ => return answer_list(request, stream, PID, &[(3, 0, &image)]),
            };
            match answers.lock().unwrap().next() {
                Some(0) => send(stream, &done),
                Some(errno) => refuse(stream, *errno),
                None => {}
            }
        });
        Self { server, bench, new }
    }

    /// Takes a snapshot: its exit status, what was asked for it, whether the new image is there.
    fn snapshot(&self) -> (i32, Vec<MessageId>, bool) {
        let new = self.new.to_str().unwrap();
        let (status, ..) = self.bench.run(&["snapshot", "-p", P, "-m", "3", "-n", new]);
        let mut asked = self.server.requests();
        asked.retain(|id| !matches!(id, MessageId::Pid | MessageId::List));
        (status, asked, self.new.exists())
    }
}

#[test]
fn an_image_that_the_disk_may_be_in_is_kept() {
    // The daemon ends between the exchange and its answer: by then guests may have written.
    let rig = Rig::new("s1", &[0]);
    let asked = vec![MessageId::Pause, MessageId::Resume, MessageId::Resume];
    assert_eq!(rig.snapshot(), (71, asked, true));
}

#[test]
fn an_image_that_was_refused_is_removed() {
    let rig = Rig::new("s2", &[0, 22, 0]);
    let asked = vec![MessageId::Pause, MessageId::Resume, MessageId::Resume];
    assert_eq!(rig.snapshot(), (22, asked, false));
}

#[test]
fn a_pause_that_failed_and_came_about_is_undone() {
    // What was written could not be made durable, and the disk is paused.
    let rig = Rig::new("s4", &[5, 0]);
    assert_eq!(rig.snapshot(), (5, vec![MessageId::Pause, MessageId::Resume], false));
}

#[test]
fn the_pause_of_somebody_else_is_left_alone() {
    let rig = Rig::new("s5", &[16]);
    assert_eq!(rig.snapshot(), (16, vec![MessageId::Pause], false));
}
