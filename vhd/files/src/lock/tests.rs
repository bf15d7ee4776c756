//! The law of locks: one writer, any number of readers, and a name for who is in the way.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::*;

/// A file of its own, removed at the end.
struct Image {
    path: PathBuf,
}

impl Image {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vhd-files-{}-{name}", std::process::id()));
        File::create(&path).unwrap().set_len(4096).unwrap();
        Self { path }
    }

    fn writer(&self) -> File {
        OpenOptions::new().read(true).write(true).open(&self.path).unwrap()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // One that is gone already is what was wanted.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn a_second_writer_is_refused_and_told_who_has_the_image() {
    let image = Image::new("second");
    let first = image.writer();
    assert_eq!(lock_for_writing(&first, &image.path, Policy::Auto), Ok(Outcome::Locked));
    let error = lock_for_writing(&image.writer(), &image.path, Policy::Auto).unwrap_err();
    assert_eq!(error.errno(), Errno::EAGAIN);
    assert_eq!(error.holder().unwrap().pid, std::process::id());
    let text = error.to_string();
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    assert!(text.contains(image.path.to_str().unwrap()), "{text}");
}

#[test]
fn the_lock_ends_with_the_last_descriptor() {
    let image = Image::new("end");
    let first = image.writer();
    lock_for_writing(&first, &image.path, Policy::Auto).unwrap();
    let copy = first.as_fd().try_clone_to_owned().unwrap();
    drop(first);
    assert!(lock_for_writing(&image.writer(), &image.path, Policy::Auto).is_err());
    drop(copy);
    let next = image.writer();
    assert_eq!(lock_for_writing(&next, &image.path, Policy::Auto), Ok(Outcome::Locked));
}

#[test]
fn an_unlocked_file_may_stay_open() {
    let image = Image::new("unlock");
    let (first, second) = (image.writer(), image.writer());
    lock_for_writing(&first, &image.path, Policy::Auto).unwrap();
    unlock(&first);
    assert_eq!(lock_for_writing(&second, &image.path, Policy::Auto), Ok(Outcome::Locked));
}

#[test]
fn to_lock_again_changes_nothing() {
    let image = Image::new("again");
    let writer = image.writer();
    for _ in 0..2 {
        assert_eq!(lock_for_writing(&writer, &image.path, Policy::Always), Ok(Outcome::Locked));
    }
}

#[test]
fn a_reader_is_in_nobodys_way() {
    let image = Image::new("reader");
    let _reader = File::open(&image.path).unwrap();
    let writer = image.writer();
    assert_eq!(lock_for_writing(&writer, &image.path, Policy::Auto), Ok(Outcome::Locked));
    assert!(File::open(&image.path).is_ok());
}

#[test]
fn a_file_that_is_open_for_reading_cannot_be_locked_for_writing() {
    let image = Image::new("mode");
    let reader = File::open(&image.path).unwrap();
    let error = lock_for_writing(&reader, &image.path, Policy::Auto).unwrap_err();
    assert_eq!((error.errno(), error.holder()), (Errno::EBADF, None));
}

#[test]
fn without_a_lock_two_may_write() {
    let image = Image::new("never");
    let (first, second) = (image.writer(), image.writer());
    lock_for_writing(&first, &image.path, Policy::Auto).unwrap();
    assert_eq!(lock_for_writing(&second, &image.path, Policy::Never), Ok(Outcome::NotWanted));
}

#[test]
fn storage_without_locks_is_written_unless_a_lock_is_a_must() {
    let image = Image::new("unsupported");
    let file = image.writer();
    let answer = |errno, policy| settle(Err(errno), &file, &image.path, policy);
    for errno in [Errno::ENOLCK, Errno::EINVAL, Errno::ENOSYS, Errno::EOPNOTSUPP] {
        assert_eq!(answer(errno, Policy::Auto), Ok(Outcome::Unsupported(errno)));
        assert_eq!(answer(errno, Policy::Always).unwrap_err().errno(), errno);
    }
    assert_eq!(answer(Errno::EIO, Policy::Auto).unwrap_err().errno(), Errno::EIO);
}

#[test]
fn a_holder_that_cannot_be_seen_is_said_to_be_elsewhere() {
    let image = Image::new("unseen");
    // Nobody here has a lock: as if another host had it.
    let error = settle(Err(Errno::EACCES), &image.writer(), &image.path, Policy::Auto).unwrap_err();
    assert_eq!((error.errno(), error.holder()), (Errno::EAGAIN, None));
    assert!(error.to_string().contains("another host"), "{error}");
}

#[test]
fn a_policy_is_one_of_three_words() {
    assert_eq!("auto".parse(), Ok(Policy::Auto));
    assert_eq!("always".parse(), Ok(Policy::Always));
    assert_eq!("never".parse(), Ok(Policy::Never));
    for other in ["", "Auto", "off", "never "] {
        let error = other.parse::<Policy>().unwrap_err();
        assert!(error.to_string().contains("auto, always or never"), "{error}");
    }
}

#[test]
fn a_half_taken_lock_is_given_back() {
    let image = Image::new("half");
    let (other, writer, third) = (image.writer(), image.writer(), image.writer());
    let (start, len) = RANGES[1];
    set(&other, libc::F_RDLCK, start, len).unwrap();
    assert!(lock_for_writing(&writer, &image.path, Policy::Auto).is_err());
    unlock(&other);
    assert_eq!(lock_for_writing(&third, &image.path, Policy::Auto), Ok(Outcome::Locked));
}

#[test]
fn an_error_names_the_path_once_and_the_cause() {
    let error = LockError { path: Path::new("/x/y").into(), kind: Kind::Failed(Errno::ENOLCK) };
    assert_eq!(
        error.to_string(),
        "Cannot lock the image for writing (/x/y): No record locks available"
    );
}
