//! Pages for people, rendered from the OpenAPI document and the table of problem codes. The pages
//! load nothing from other hosts and run no script.
//!
//! | file | content |
//! |---|---|
//! | `html.rs` | the frame of a page, escaping, Markdown |
//! | `example.rs` | the example of a call, from the schema's examples |
//! | `outline.rs` | the outline of a JSON body, from its schema |
//! | `reference.rs` | the reference of all calls |
//! | `problems.rs` | the page of one problem code |

mod example;
mod html;
mod outline;
mod problems;
mod reference;

pub(crate) use html::STYLE;
pub(crate) use problems::problem_page;
pub(crate) use reference::reference_page;
