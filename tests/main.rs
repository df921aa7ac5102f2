//! The program against real servers.

mod support;
