//! Tests of the embedded store through its public face.

mod backup;
mod bus;
mod crash;
mod directory;
mod letters;
mod migrations;
mod suite;
mod support;
mod writes;
