//! A value of each type, as it is in a key.

use redis::AsyncCommands;

use crate::support::{Bed, Sql};

use super::{rule, sidecar};

/// Type, value.
const VALUES: &[(&str, &str)] = &[
    ("smallint", "-7"),
    ("bigint", "9223372036854775807"),
    ("numeric", "12.500"),
    ("numeric(10,3)", "1.5"),
    ("numeric", "NaN"),
    ("numeric", "1e30"),
    ("real", "0.1"),
    ("double precision", "0.1"),
    ("double precision", "-Infinity"),
    ("double precision", "1e-300"),
    ("money", "1234.5"),
    ("boolean", "true"),
    ("boolean", "false"),
    ("text", "a b\tc\\d*e?[f]"),
    ("text", ""),
    ("text", "Zoë ☃ 👍"),
    ("varchar(10)", "ab"),
    ("name", "ab"),
    ("\"char\"", "x"),
    ("bytea", "\\x00ff2a"),
    ("uuid", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"),
    ("date", "2026-02-01"),
    ("date", "infinity"),
    ("date", "0044-03-15 BC"),
    ("time", "04:05:06.7"),
    ("timetz", "04:05:06+02"),
    ("timestamp", "2026-02-01 04:05:06.789"),
    ("timestamptz", "2026-02-01 04:05:06+02"),
    ("interval", "1 year 2 months -3 days 04:05:06"),
    ("json", "{\"b\": 1,  \"a\": [null]}"),
    ("jsonb", "{\"b\": 1,  \"a\": [null]}"),
    ("jsonpath", "$.a[*]"),
    ("xml", "<a b=\"c\">d</a>"),
    ("int[]", "{1,NULL,3}"),
    ("text[]", "{a,\"b c\",\"d,e\",\"\"}"),
    ("boolean[]", "{t,f}"),
    ("mood", "so so"),
    ("posint", "5"),
    ("pair", "(1,\"a b\")"),
    ("int4range", "[1,5]"),
    ("tstzrange", "[2026-01-01 00:00+00,2026-01-02 00:00+00)"),
    ("inet", "192.168.0.1/24"),
    ("cidr", "10.0.0.0/8"),
    ("macaddr", "08-00-2b-01-02-03"),
    ("macaddr8", "08002b0102030405"),
    ("bit(3)", "101"),
    ("varbit", "10101"),
    ("tsvector", "a fat cat"),
    ("tsquery", "fat & cat"),
    ("point", "(1,2.5)"),
    ("box", "(0,0),(1,1)"),
    ("oid", "4294967295"),
    ("regclass", "pg_class"),
    ("pg_lsn", "16/B374D848"),
];

/// The settings that the README names for values in keys.
pub(crate) const SETTINGS: &str = "set datestyle = 'ISO'; set intervalstyle = 'postgres';
    set extra_float_digits = 3; set timezone = 'UTC'; set bytea_output = 'hex'";

/// Settings of the role that must not show in keys.
pub(crate) const ODD: &str = "
    alter role postgres set datestyle = 'SQL, DMY'; alter role postgres set bytea_output = 'escape';
    alter role postgres set intervalstyle = 'iso_8601';
    alter role postgres set timezone = 'Asia/Tokyo';
    alter role postgres set extra_float_digits = -3";

#[tokio::test]
async fn a_value_of_each_type_is_in_keys_what_a_cast_to_text_gives() {
    let bed = Bed::new(&[]).await;
    let mut ddl = String::from(
        "create type mood as enum ('so so', 'ok'); create domain posint as int check (value > 0);
         create type pair as (a int, b text);",
    );
    ddl.push_str("create table kinds (id int primary key");
    for (at, (kind, _)) in VALUES.iter().enumerate() {
        ddl.push_str(&format!(", c{at} {kind}"));
    }
    ddl.push_str("); alter table kinds replica identity full;");
    ddl.push_str(ODD);
    let keys: Vec<String> = (0..VALUES.len()).map(|at| format!("{at}:{{c{at}}}:end")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let sidecar = sidecar(&bed, &ddl, &rule("public.kinds", &keys)).await;
    let sql = Sql::connect(&bed.postgres).await;
    sql.run(SETTINGS).await;
    let mut values: Vec<String> = Vec::new();
    for (at, (kind, value)) in VALUES.iter().enumerate() {
        let value = format!("'{}'::{kind}", value.replace('\'', "''"));
        let shown: String = sql.one(&format!("select ({value})::text")).await;
        let key = format!("{at}:{shown}:end");
        let _: () = bed.cache.clone().set(key.as_bytes(), "cached").await.unwrap();
        let _: () = bed.cache.clone().set(format!("{at}:x{shown}:end"), "cached").await.unwrap();
        values.push(value);
    }
    sql.run(&format!("insert into kinds values (1, {})", values.join(", "))).await;
    bed.settled().await;
    for (at, (kind, value)) in VALUES.iter().enumerate() {
        let left: Vec<String> = bed.cache.clone().keys(format!("{at}:*")).await.unwrap();
        assert_eq!(left.len(), 1, "{kind} {value}: {left:?}");
        assert!(left[0].starts_with(&format!("{at}:x")), "{kind} {value}: {left:?}");
    }
    sidecar.assert_quiet(&["watermark_missing"]);
}
