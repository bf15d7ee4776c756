//! The laws of checking a chain.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::*;
use crate::image::FooterPlace;
use crate::testing::{End, MemoryFile, MemoryHost, Spec, put};
use crate::units::Uuid;

const CHILD: &str = "/vhds/child.vhd";

fn parent() -> Spec {
    Spec { uuid: Uuid([9; 16]), ..Spec::new(4 << 20).with(5, 1, 1) }
}

fn child() -> Spec {
    Spec::child_of(&parent(), "parent.vhd").with(5000, 1, 1)
}

fn host(child: &Spec, parent: Vec<u8>) -> MemoryHost {
    MemoryHost::default().with(CHILD, child.make()).with("/vhds/parent.vhd", parent)
}

fn checked_by(gate: &Gate, host: &MemoryHost, options: CheckOptions) -> Vec<Checked<MemoryFile>> {
    check_chain(host, Path::new(CHILD), gate, options, true, Timestamp(2000)).unwrap()
}

fn checked(host: &MemoryHost, options: CheckOptions) -> Vec<Checked<MemoryFile>> {
    checked_by(&Gate::everywhere(), host, options)
}

fn texts(one: &Checked<MemoryFile>) -> Vec<String> {
    one.report.findings.iter().map(ToString::to_string).collect()
}

/// Why the parent of the first image could not be opened.
fn cause(all: &[Checked<MemoryFile>]) -> ErrorKind {
    let finding = all.last().unwrap().report.invalid().unwrap();
    assert!(finding.to_string().ends_with(": error opening parent"), "{finding}");
    finding.cause().unwrap().kind().clone()
}

#[test]
fn ancestors_are_checked_only_when_that_is_asked_for() {
    let mut damaged = parent().make();
    put(&mut damaged, 1536, &[0, 0, 0, 1]);
    let host = host(&child(), damaged);
    let all = checked(&host, CheckOptions::default());
    assert_eq!((all.len(), texts(&all[0])), (2, vec![]));
    assert_eq!(texts(&all[1]), ["block 0 (offset 0x1) clobbers headers"]);
    assert_eq!(all[1].path, Path::new("/vhds/parent.vhd"));
    let (path, gate, now) = (Path::new(CHILD), Gate::everywhere(), Timestamp(2000));
    let all = check_chain(&host, path, &gate, CheckOptions::default(), false, now).unwrap();
    assert_eq!((all.len(), texts(&all[0])), (1, vec![]));
}

#[test]
fn a_raw_parent_must_be_there_and_is_not_looked_into() {
    let child = Spec { parent: Some((Uuid::NIL, "./parent.vhd".into())), ..child() };
    let all = checked(&host(&child, vec![1; 4 << 20]), CheckOptions::default());
    assert_eq!((all.len(), texts(&all[0])), (1, vec![]));
    let alone = MemoryHost::default().with(CHILD, child.make());
    let all = checked(&alone, CheckOptions::default());
    assert_eq!(texts(&all[0]), ["error resolving ./parent.vhd: -2"]);
}

#[test]
fn the_footer_that_was_checked_is_the_one_that_is_loaded() {
    let whole = checked(&host(&child(), parent().make()), CheckOptions::default());
    assert_eq!(whole[0].image.as_ref().unwrap().footer_place(), FooterPlace::End);
    // What the guest wrote last looks like a footer, but is none that is valid.
    let mut cut = Spec { end: End::Nothing, ..child() }.make();
    let fake = crate::footer::Footer { uuid: Uuid::NIL, ..child().footer() }.emit();
    let end = cut.len() as u64 - 512;
    put(&mut cut, end, &fake);
    let host = host(&child(), parent().make()).with(CHILD, cut);
    let options = CheckOptions { ignore_end_footer: true, ..CheckOptions::default() };
    let all = checked(&host, options);
    assert_eq!((all.len(), all[0].report.is_valid()), (2, true), "{:?}", texts(&all[0]));
    let image = all[0].image.as_ref().unwrap();
    assert_eq!((image.footer_place(), image.footer().uuid), (FooterPlace::Start, child().uuid));
}

#[test]
fn a_chain_has_a_limit() {
    let host = host(&child(), parent().make());
    let gate = Gate::everywhere().with_depth_max(1);
    let all = checked_by(&gate, &host, CheckOptions::default());
    assert_eq!((all.len(), cause(&all)), (1, ErrorKind::ChainTooDeep { limit: 1 }));
    let gate = gate.with_depth_max(2);
    let all = checked_by(&gate, &host, CheckOptions::default());
    assert_eq!((all.len(), texts(&all[1])), (2, vec![]));
}

#[test]
fn a_loop_ends_where_it_comes_back() {
    let back = Spec { uuid: Uuid([9; 16]), ..Spec::child_of(&child(), "child.vhd") };
    let all = checked(&host(&child(), back.make()), CheckOptions::default());
    assert_eq!((all.len(), texts(&all[0]), cause(&all)), (2, vec![], ErrorKind::ChainLoop));
}

#[test]
fn a_parent_of_another_uuid_or_none_is_no_fault_when_it_is_ignored() {
    let options = CheckOptions { ignore_parent_uuid: true, ..CheckOptions::default() };
    let other = Spec { uuid: Uuid([6; 16]), ..parent() };
    let all = checked(&host(&child(), other.make()), options);
    assert_eq!((all.len(), texts(&all[0]), texts(&all[1])), (2, vec![], vec![]));
    let all = checked(&host(&child(), other.make()), CheckOptions::default());
    assert_eq!((all.len(), all[0].report.errno()), (1, 22));
}

/// Its own check says what is wrong with it.
#[test]
fn a_parent_whose_resize_was_interrupted_is_still_the_parent() {
    let mut poisoned = parent().make();
    let footer = crate::footer::Footer { is_poisoned: true, ..parent().footer() }.emit();
    let end = poisoned.len() as u64 - 512;
    put(&mut poisoned, 0, &footer);
    put(&mut poisoned, end, &footer);
    let all = checked(&host(&child(), poisoned), CheckOptions::default());
    assert_eq!((all.len(), texts(&all[0])), (2, vec![]));
    assert_eq!(texts(&all[1]), ["primary footer invalid: invalid cookie"]);
}

/// Microsoft's programs store an absolute path besides.
#[test]
fn one_way_to_the_parent_is_enough_and_the_other_a_note() {
    let mut file = child().make();
    let header = *Image::load(&file, LoadOptions::default()).unwrap().header().unwrap();
    let locator = header.locators[0];
    // As long as `./parent.vhd`, so the length stays right.
    let text = crate::locator::encode(locator.platform, "x/parent.vhd");
    put(&mut file, locator.offset, &text);
    let host = host(&child(), parent().make()).with(CHILD, file);
    let all = checked(&host, CheckOptions::default());
    assert_eq!((all.len(), texts(&all[0])), (2, vec!["error resolving x/parent.vhd: -2".into()]));
    let report = &all[0].report;
    let finding = &report.findings[0];
    assert_eq!((finding.is_note(), report.is_valid(), report.errno()), (true, true, 0));
    assert_eq!((finding.code(), finding.errno(), finding.block()), ("unresolved-parent", 2, None));
    assert!(finding.cause().is_some());
}
