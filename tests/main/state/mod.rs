//! The state that sessions begin in: whatever is set for the role or the database, and whatever
//! others put where names are looked up.

mod overloads;
mod settings;
mod statements;
