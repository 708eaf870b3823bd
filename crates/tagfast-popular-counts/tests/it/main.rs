//! The counts against a model: duplicates, reorder, crashes, windows over days, recount, displays,
//! tenants.

mod counting;
mod many_tags;
mod model;
mod recounting;
mod support;
