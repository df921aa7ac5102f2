//! The parts of the manual that the grammar of the arguments does not know.

/// A part of a page: its heading, and terms with what they mean.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// In capitals, as manual pages have it.
    pub heading: &'static str,
    /// Each term with a sentence or more.
    pub entries: &'static [(&'static str, &'static str)],
}

/// Something to type.
#[derive(Clone, Copy, Debug)]
pub struct Example {
    /// The command whose page has it; `None` for the page of the program.
    pub command: Option<&'static str>,
    /// The purpose, which stands above the lines.
    pub says: &'static str,
    /// The lines, without a prompt.
    pub lines: &'static [&'static str],
}

/// How a command ends; 78 is `EX_CONFIG` of sysexits.h.
const EXIT_STATUS: Section = Section {
    heading: "EXIT STATUS",
    entries: &[
        ("0", "A clean stop, or all is well."),
        (
            "1",
            "A person is needed: the message says for what. Also where check finds an error, and \
             where setup leaves something undone.",
        ),
        ("2", "Wrong usage."),
        (
            "78",
            "The configuration is invalid. All its problems are printed at once, each with line, \
             column and cure. Another start cannot cure it.",
        ),
        (
            "141",
            "Whoever read what it prints went away, as head does. What a command was to do it has \
             done. Nothing is printed about it.",
        ),
        ("130", "A second SIGTERM or SIGINT while it stopped. Nothing is lost."),
    ],
};

const SIGNALS: Section = Section {
    heading: "SIGNALS",
    entries: &[
        (
            "SIGTERM, SIGINT",
            "Stop: wait up to 10 s for what is on its way, confirm it, and exit with 0. A second \
             one ends the process at once.",
        ),
        (
            "SIGHUP",
            "Read the configuration again. What is wrong with the new one is logged, and the old \
             one stays in force then. walsweep reload sends it, and waits for the outcome.",
        ),
    ],
};

const FILES: Section = Section {
    heading: "FILES",
    entries: &[
        (
            "/etc/walsweep/config.toml",
            "The configuration of the service and of the container. Commands that are typed read \
             config.toml in the current folder, unless told otherwise.",
        ),
        (
            "/etc/walsweep/pg.password, /etc/walsweep/redis.password",
            "Passwords and nothing else, of root, with mode 0600. The unit hands copies on, which \
             the configuration names as ${CREDENTIALS_DIRECTORY}/pg.password and \
             ${CREDENTIALS_DIRECTORY}/redis.password.",
        ),
        ("/etc/default/walsweep", "Environment variables of the service, if it is there."),
        (
            "/usr/share/doc/walsweep/examples/config.toml",
            "Every option with its default, and the rules of a whole site.",
        ),
        (
            "the file of [audit], and the same with .1, .2 and so on",
            "The audit trail, written by run and read by why, if the configuration names it.",
        ),
        ("~/.pgpass", "Passwords for Postgres, as libpq reads it, where nothing else names one."),
    ],
};

const ENVIRONMENT: Section = Section {
    heading: "ENVIRONMENT",
    entries: &[
        ("WALSWEEP_CONFIG", "The configuration file, where --config names none."),
        ("WALSWEEP_SETUP_AS", "The URL of --as, for setup and teardown."),
        ("any other", "Replaces ${NAME} in a text of the configuration."),
        ("CREDENTIALS_DIRECTORY", "Set by systemd: where the passwords of the unit are."),
        ("PGPASSWORD, PGPASSFILE", "As libpq has them, where the configuration has no password."),
        ("HOME", "Where .pgpass is looked for."),
        ("SSL_CERT_FILE, SSL_CERT_DIR", "Certificates to trust instead of the system's."),
        (
            "NO_COLOR, TERM",
            "Where the first is not empty, or the second is dumb, status prints no colours; it \
             prints them on a terminal alone.",
        ),
        ("RUST_LOG", "What is logged, instead of log.level, as tracing-subscriber reads it."),
        (
            "NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID",
            "Set by systemd for Type=notify and WatchdogSec=. run says that it is ready as soon \
             as it streams, sweeps, stands by for another walsweep, or waits for a server, and \
             after 10 s in any case. It gives signs of life while /healthz is 200.",
        ),
        (
            "WALSWEEP_PG_BIN, WALSWEEP_REDIS_SERVER",
            "Where demo finds the programs of Postgres, and redis-server.",
        ),
    ],
};

/// The sections of the page of the program.
pub const SECTIONS: &[Section] = &[EXIT_STATUS, SIGNALS, FILES, ENVIRONMENT];

/// The sections of the page of a command.
#[must_use]
pub fn of_command(name: &str) -> &'static [Section] {
    match name {
        "run" => SECTIONS,
        "demo" => &[EXIT_STATUS, SIGNALS, ENVIRONMENT],
        "completions" | "man" => &[EXIT_STATUS],
        _ => &[EXIT_STATUS, FILES, ENVIRONMENT],
    }
}

/// The examples of all pages.
pub const EXAMPLES: &[Example] = &[
    Example {
        command: None,
        says: "Set up a database as a superuser, look, and start:",
        lines: &[
            "walsweep setup --as postgres://postgres@127.0.0.1:5432/app",
            "walsweep check",
            "walsweep run",
        ],
    },
    Example {
        command: Some("run"),
        says: "Run with a file, and log what each transaction removed:",
        lines: &["walsweep run --config /etc/walsweep/config.toml --verbose"],
    },
    Example {
        command: Some("check"),
        says: "Look with the passwords of the service, as root; then the same for a program:",
        lines: &[
            "export CREDENTIALS_DIRECTORY=/etc/walsweep",
            "walsweep check --config /etc/walsweep/config.toml",
            "walsweep check --config /etc/walsweep/config.toml --json",
        ],
    },
    Example {
        command: Some("setup"),
        says: "Print the SQL for whoever may run it; or run it by his login:",
        lines: &[
            "walsweep setup --print > setup.sql",
            "walsweep setup --as postgres://postgres@127.0.0.1:5432/app",
        ],
    },
    Example {
        command: Some("teardown"),
        says: "See what would be dropped, then drop it:",
        lines: &[
            "walsweep teardown --print",
            "walsweep teardown --as postgres://postgres@127.0.0.1:5432/app",
        ],
    },
    Example {
        command: Some("explain"),
        says: "Which keys go when a user moves to another team:",
        lines: &["walsweep explain public.users --op update --old '{\"id\": 1, \"team_id\": 2}' \
                  --new '{\"id\": 1, \"team_id\": 3}'"],
    },
    Example {
        command: Some("sweep"),
        says: "Count keys, then remove them:",
        lines: &["walsweep sweep 'user:*' 'team:*' --dry-run", "walsweep sweep 'user:*' 'team:*'"],
    },
    Example {
        command: Some("coverage"),
        says: "See which keys each rule reaches, and which none does:",
        lines: &["walsweep coverage"],
    },
    Example {
        command: Some("status"),
        says: "Is the process alive, for a health check; and is all well, for a person:",
        lines: &[
            "walsweep status --alive --config /etc/walsweep/config.toml",
            "walsweep status || echo 'look at it'",
        ],
    },
    Example {
        command: Some("status"),
        says: "Look on while it works; and rules that do not fit their table, for a program:",
        lines: &[
            "walsweep status --watch",
            "walsweep status --json | jq '.rules[] | select(.suspended)'",
        ],
    },
    Example {
        command: Some("why"),
        says: "Who removed a key; and the same for a program:",
        lines: &["walsweep why db:leaderboard:all", "walsweep why db:leaderboard:all --json"],
    },
    Example {
        command: Some("probe"),
        says: "See that it works, and how fast; and the same for a program:",
        lines: &["walsweep probe", "walsweep probe --json | jq '.targets[].after_ms'"],
    },
    Example {
        command: Some("reload"),
        says: "Let the running walsweep take over an edited file:",
        lines: &["walsweep reload --config /etc/walsweep/config.toml"],
    },
    Example {
        command: Some("demo"),
        says: "Leave the servers running, and print their addresses:",
        lines: &["walsweep demo --keep"],
    },
    Example {
        command: Some("completions"),
        says: "For bash:",
        lines: &["walsweep completions bash > /etc/bash_completion.d/walsweep"],
    },
    Example {
        command: Some("man"),
        says: "Read a page, and install all:",
        lines: &["walsweep man run | man -l -", "walsweep man --to /usr/local/share/man/man1"],
    },
];
