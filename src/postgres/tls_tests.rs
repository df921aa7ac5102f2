//! Names in certificates.

use super::name_matches;

#[test]
fn a_wildcard_stands_for_exactly_one_label() {
    for (name, host, expected) in [
        ("db.example.com", "DB.example.com", true),
        ("*.example.com", "db.example.com", true),
        ("*.example.com", "a.db.example.com", false),
        ("*.example.com", "example.com", false),
        ("*.com", "example.com", false),
        ("*", "db", false),
        ("db", "db", true),
        ("db", "db2", false),
    ] {
        assert_eq!(name_matches(name, host), expected, "{name} {host}");
    }
}
