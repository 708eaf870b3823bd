//! Tests of the domain: identity of tags, the stored format, and the one function that changes a
//! document.

mod apply;
mod codec;
mod former;
mod invisible;
mod join;
mod support;
mod tag;
mod values;
