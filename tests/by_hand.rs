//! Keys that a person removes.

use crate::support::{Bed, Sidecar, text};

#[tokio::test]
async fn what_no_rule_covers_goes_by_force_alone() {
    let bed = Bed::new(&[]).await;
    let keys = ["item:1", "item:2", "list:team 1:a", "session:1", "session:2"];
    bed.fill(&keys).await;
    let sidecar = Sidecar::new(bed.settings());
    for (args, left) in [
        (&["sweep", "session:*"][..], &keys[..]),
        (&["sweep", "item:1", "*"], &keys),
        (&["sweep", "session:*", "--dry-run"], &keys),
        (&["sweep", "item:[12]", "list:team 1:*"], &["session:1", "session:2"]),
        (&["sweep", "session:1", "--force"], &["session:2"]),
    ] {
        let output = sidecar.command(args);
        let (ended, said) = (output.status.success(), text(&output));
        let is_refused = left == keys && !args.contains(&"--dry-run");
        assert_eq!(ended, !is_refused, "{args:?}: {said}");
        assert_eq!(is_refused, said.contains("no rule covers") && said.contains("`--force`"));
        for key in keys {
            assert_eq!(bed.has(key).await, left.contains(&key), "{args:?}: {key}: {said}");
        }
    }
}
