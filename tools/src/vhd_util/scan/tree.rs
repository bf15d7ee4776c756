//! The order of a tree: parents before their children, those that are seen before hidden ones.

use std::collections::HashMap;
use std::path::Path;

use super::Row;

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Which row.
    pub(super) row: usize,
    /// How many ancestors of it are in the scan.
    pub(super) depth: usize,
    /// It has a parent, which is not in the scan.
    pub(super) is_orphan: bool,
}

/// The lines of all rows that are images. Images that are their own ancestors come last: no root
/// leads to them.
pub(super) fn lines(rows: &[Row]) -> Vec<Line> {
    let by_path: HashMap<&Path, usize> = rows
        .iter()
        .enumerate()
        .filter(|(_, row)| row.result.is_ok())
        .filter_map(|(index, row)| Some((row.target.canonical.as_deref()?, index)))
        .collect();
    let parent_of = |row: &Row| {
        let parent = row.result.as_ref().ok()?.parent.as_ref()?;
        Some(by_path.get(parent.path.as_deref().unwrap_or(&parent.name)).copied())
    };
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); rows.len()];
    let mut roots = Vec::new();
    for (index, row) in rows.iter().enumerate().filter(|(_, row)| row.result.is_ok()) {
        match parent_of(row) {
            Some(Some(parent)) => children[parent].push(index),
            parent => roots.push((index, parent.is_some())),
        }
    }
    let is_hidden = |index: usize| rows[index].result.as_ref().is_ok_and(|it| it.hidden != 0);
    let name = |index: usize| rows[index].target.canonical.as_deref();
    // As ever: here it is the hidden ones that come first.
    roots.sort_by_key(|(index, _)| (!is_hidden(*index), name(*index)));
    for children in &mut children {
        children.sort_by_key(|index| (is_hidden(*index), name(*index)));
    }
    let mut lines = Vec::new();
    let mut is_done = vec![false; rows.len()];
    let mut waiting: Vec<Line> = roots
        .iter()
        .rev()
        .map(|(row, is_orphan)| Line { row: *row, depth: 0, is_orphan: *is_orphan })
        .collect();
    let mut rest = 0..rows.len();
    loop {
        while let Some(line) = waiting.pop() {
            if std::mem::replace(&mut is_done[line.row], true) {
                continue;
            }
            lines.push(line);
            let depth = line.depth + 1;
            let below = children[line.row].iter().rev();
            waiting.extend(below.map(|row| Line { row: *row, depth, is_orphan: false }));
        }
        match rest.find(|row| !is_done[*row] && rows[*row].result.is_ok()) {
            Some(row) => waiting.push(Line { row, depth: 0, is_orphan: false }),
            None => return lines,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Facts, Parent, Target};
    use super::*;

    fn row(name: &str, parent: Option<&str>, hidden: u8) -> Row {
        let mut target = Target::missing(Path::new(name));
        target.canonical = Some(name.into());
        let parent = parent.map(|name| {
            let path = Some(name.into());
            Parent { name: name.into(), path, is_raw: false }
        });
        let (marker, keyhash) = (0, String::new());
        Row { target, result: Ok(Facts { capacity: 0, hidden, marker, keyhash, parent }) }
    }

    fn order(rows: &[Row]) -> Vec<(usize, usize, bool)> {
        lines(rows).iter().map(|line| (line.row, line.depth, line.is_orphan)).collect()
    }

    #[test]
    fn children_follow_their_parent_and_hidden_ones_come_last() {
        let rows = [
            row("leaf", Some("mid"), 0),
            row("base", None, 1),
            row("hidden", Some("base"), 1),
            row("mid", Some("base"), 0),
            row("orphan", Some("gone"), 0),
        ];
        let wanted = [(1, 0, false), (3, 1, false), (0, 2, false), (2, 1, false), (4, 0, true)];
        assert_eq!(order(&rows), wanted);
    }

    #[test]
    fn images_that_are_their_own_ancestors_are_listed_once() {
        let rows = [row("a", Some("b"), 0), row("b", Some("a"), 0), row("self", Some("self"), 0)];
        assert_eq!(order(&rows), [(0, 0, false), (1, 1, false), (2, 0, false)]);
    }
}
