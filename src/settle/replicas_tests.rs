//! Standbys whose replay a test decides, on paused time.
