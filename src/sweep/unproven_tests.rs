//! Where nothing shows that Redis kept every removal, every connection is followed by a sweep of
//! everything (I7), and what is written there is never evidence.

use std::rc::Rc;

use super::partial_tests::{expected, prints};
use super::proof::ward::{Found, Ward};
use super::tests::rules;
use super::{Broken, Doubt, Watermark};
use crate::lsn::Lsn;

fn ward() -> Ward {
    let prints = prints(&rules());
    Ward::new(expected(&prints), Lsn(500), Rc::new(prints), (None, Doubt::none()))
}

fn found(mark: Option<&Watermark>, is_unproven: bool) -> Found {
    Found { watermark: mark.map(Watermark::to_value), is_unproven, ..Found::default() }
}

/// Why everything is in doubt after a connection; `None` if nothing is.
fn doubt(ward: &mut Ward, found: Found) -> Option<Broken> {
    match ward.connected(found, Lsn(100)) {
        Ok(_) => None,
        Err(Doubt::Everything(broken)) => Some(broken),
        Err(Doubt::Keys(_)) => panic!("a part alone"),
    }
}

#[test]
fn neither_a_good_watermark_nor_one_that_stands_is_evidence_without_proof() {
    let mark = expected(&prints(&rules()));
    let marked = Watermark { is_unproven: true, ..mark.clone() };
    for (is_unproven, found_first, first, again) in [
        (false, &mark, None, None),
        (true, &mark, Some(Broken::Unproven), Some(Broken::Unproven)),
        // Written where there was no proof, read where there is.
        (false, &marked, Some(Broken::Unproven), Some(Broken::Unproven)),
        (true, &marked, Some(Broken::Unproven), Some(Broken::Unproven)),
    ] {
        let mut ward = ward();
        assert_eq!(doubt(&mut ward, found(Some(found_first), is_unproven)), first);
        if first.is_some() {
            // While the sweep is owed, another connection begins it again, and nothing is written.
            assert_eq!(doubt(&mut ward, found(Some(found_first), is_unproven)), None);
            assert_eq!(ward.next(Lsn(200)), None);
            ward.shown();
            ward.paid();
        }
        assert_eq!(doubt(&mut ward, found(Some(found_first), is_unproven)), again);
    }
    assert!(!Broken::Unproven.is_fenced(), "it says of commits what any watermark does");
}

/// The watermark's word on the history and the rules counts as ever, for its fence.
#[test]
fn another_doubt_is_told_as_that_and_widened_to_everything() {
    let mark = expected(&prints(&rules()));
    let behind = Watermark { lsn: Lsn(50), ..mark.clone() };
    let other_rules = Watermark { rules: "0".repeat(32), ..mark };
    for (mark, expected) in [
        (None, Broken::WatermarkMissing),
        (Some(&behind), Broken::WatermarkBehind),
        (Some(&other_rules), Broken::OtherRules),
    ] {
        assert_eq!(doubt(&mut ward(), found(mark, true)), Some(expected));
        assert!(expected.is_fenced());
    }
}

/// A sweep of a part is no sweep of what may be lost.
#[test]
fn a_sweep_of_a_part_becomes_one_of_everything() {
    let prints = prints(&rules());
    let mark = expected(&prints);
    let keys = |doubt| matches!(doubt, Err(Doubt::Keys(_)));
    let all = rules().prints(&std::collections::BTreeSet::from(["list".to_owned()]));
    let before =
        super::Prints::new(all, std::collections::BTreeMap::new(), super::Tables::default(), &[]);
    let under = Watermark { rules: before.digest(), ..mark };
    let of_before = |is_unproven| Found {
        details: Some(before.to_value()),
        ..found(Some(&under), is_unproven)
    };
    let mut ward = ward();
    assert!(keys(ward.connected(of_before(false), Lsn(100))), "a rule was suspended");
    assert_eq!(doubt(&mut ward, of_before(true)), Some(Broken::Unproven));
    assert!(ward.owes());
}

#[test]
fn what_is_written_says_whether_there_is_proof() {
    for is_unproven in [true, false, true] {
        let mut ward = ward();
        let mark = expected(&prints(&rules()));
        if ward.connected(found(Some(&mark), is_unproven), Lsn(100)).is_err() {
            ward.shown();
            ward.paid();
        }
        let (standing, value) = ward.next(Lsn(200)).unwrap();
        assert_eq!(standing, Some(mark.to_value()), "it replaces what was found");
        let written = Watermark::from_value(&value).unwrap();
        assert_eq!((written.lsn, written.is_unproven), (Lsn(200), is_unproven));
    }
}
