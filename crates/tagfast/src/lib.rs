//! The parts of the tagfast program.
