//! Definitions of metrics, and the only way to record one.
//!
//! Each crate defines its metrics with [`define_metrics!`](crate::define_metrics), which makes a
//! [`MetricDef`] constant of each and the list of them all; the program registers the lists and
//! makes `docs/reference/metrics.md` from them. [`counter!`](crate::counter),
//! [`gauge!`](crate::gauge) and [`histogram!`](crate::histogram) take such a constant and check,
//! when the code is compiled, that kind and label names are those of the definition. A metric that
//! is emitted but not documented, or documented with other labels, does not compile.
//!
//! # How it fails
//! A label value outside its closed set panics in debug builds and is recorded as it is in release
//! builds: a wrong label must not take the service down.

use metrics::SharedString;

/// Kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution; the name ends in its unit.
    Histogram,
}

/// Values that a label can have. Both kinds are bounded: a label must never hold a tenant, user,
/// content or tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelValues {
    /// A closed set, known when the program is compiled.
    Closed(&'static [&'static str]),
    /// Bounded by what the text names, for example the clusters of the shard map.
    BoundedBy(&'static str),
}

/// One label of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelDef {
    /// Name of the label.
    pub name: &'static str,
    /// Its possible values.
    pub values: LabelValues,
}

impl LabelDef {
    /// A label whose values are the variants of `L`.
    pub const fn of<L: LabelEnum>(name: &'static str) -> Self {
        Self { name, values: LabelValues::Closed(L::VALUES) }
    }

    /// A label whose values are bounded by `by`, for example `"clusters of the shard map"`.
    pub const fn bounded(name: &'static str, by: &'static str) -> Self {
        Self { name, values: LabelValues::BoundedBy(by) }
    }
}

/// One metric, as the documentation lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricDef {
    /// `tagfast_<subject>_<unit>[_total]`.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: MetricKind,
    /// Its labels, in the order in which the macros take them.
    pub labels: &'static [LabelDef],
    /// What it says and when to worry.
    pub help: &'static str,
}

/// An enum whose variants are the values of a label. Made by [`label_enum!`](crate::label_enum).
pub trait LabelEnum: Copy {
    /// The texts of all variants.
    const VALUES: &'static [&'static str];

    /// The text of this variant.
    fn as_str(self) -> &'static str;
}

/// A value of a label that [`LabelDef::bounded`] defines.
#[derive(Debug, Clone)]
pub struct Bounded<T>(pub T);

/// What the macros accept as the value of a label.
pub trait LabelValue {
    /// The text of the value.
    fn into_text(self) -> SharedString;
}

impl<L: LabelEnum> LabelValue for L {
    fn into_text(self) -> SharedString {
        SharedString::const_str(self.as_str())
    }
}

impl<T: Into<SharedString>> LabelValue for Bounded<T> {
    fn into_text(self) -> SharedString {
        self.0.into()
    }
}

/// Fails the compilation when a macro is used with another kind or other labels than `def` has.
pub const fn assert_matches(def: &MetricDef, kind: MetricKind, labels: &[&str]) {
    assert!(def.kind as u8 == kind as u8, "the metric is of another kind");
    assert!(def.labels.len() == labels.len(), "the metric has another number of labels");
    let mut label = 0;
    while label < labels.len() {
        let (defined, given) = (def.labels[label].name.as_bytes(), labels[label].as_bytes());
        assert!(defined.len() == given.len(), "the metric has another label here");
        let mut byte = 0;
        while byte < given.len() {
            assert!(defined[byte] == given[byte], "the metric has another label here");
            byte += 1;
        }
        label += 1;
    }
}

/// The text of the value of label number `index` of `def`.
pub fn label_text(def: &MetricDef, index: usize, value: impl LabelValue) -> SharedString {
    let text = value.into_text();
    if let LabelValues::Closed(values) = def.labels[index].values {
        debug_assert!(
            values.contains(&text.as_ref()),
            "{}: label {} has no value {text:?}",
            def.name,
            def.labels[index].name
        );
    }
    text
}

/// Makes an enum whose variants are the values of a label.
///
/// ```text
/// label_enum! {
///     /// Where a view came from.
///     pub enum ReadSource { L1 = "l1", Redis = "redis" }
/// }
/// ```
#[macro_export]
macro_rules! label_enum {
    ($(#[$meta:meta])* $vis:vis enum $name:ident {
        $($(#[$variant_meta:meta])* $variant:ident = $text:literal),+ $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $name { $($(#[$variant_meta])* $variant),+ }

        impl $crate::metric::LabelEnum for $name {
            const VALUES: &'static [&'static str] = &[$($text),+];

            fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
    };
}

/// Defines metrics and the list of them. The doc comment of a metric is its help text.
///
/// A label takes its values from an enum (`source: ReadSource`, made by
/// [`label_enum!`](crate::label_enum)) or is bounded by what a text names (`cluster in "clusters of
/// the shard map"`).
///
/// ```text
/// define_metrics! {
///     /// The metrics of this crate.
///     pub const METRICS;
///
///     /// Views by where they came from.
///     pub(crate) counter READS = "tagfast_cache_reads_total" { source: ReadSource };
///
///     /// Approximate size of the local cache (L1).
///     pub(crate) gauge L1_BYTES = "tagfast_cache_l1_bytes";
/// }
/// ```
#[macro_export]
macro_rules! define_metrics {
    (
        $(#[$list_meta:meta])* $list_vis:vis const $list:ident;
        $(
            $(#[doc = $help:literal])+
            $vis:vis $kind:ident $def:ident = $name:literal
            $({ $($label:ident $(: $enum:ident)? $(in $bound:expr)?),+ $(,)? })?;
        )+
    ) => {
        $(#[$list_meta])*
        $list_vis const $list: &[$crate::MetricDef] = &[$($def),+];

        $(
            $(#[doc = $help])+
            $vis const $def: $crate::MetricDef = $crate::MetricDef {
                name: $name,
                kind: $crate::__metric_kind!($kind),
                labels: &[$($($crate::__label!($label $(: $enum)? $(in $bound)?)),+)?],
                help: concat!($($help),+).trim_ascii(),
            };
        )+
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __metric_kind {
    (counter) => {
        $crate::MetricKind::Counter
    };
    (gauge) => {
        $crate::MetricKind::Gauge
    };
    (histogram) => {
        $crate::MetricKind::Histogram
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __label {
    ($label:ident : $enum:ident) => {
        $crate::LabelDef::of::<$enum>(stringify!($label))
    };
    ($label:ident in $bound:expr) => {
        $crate::LabelDef::bounded(stringify!($label), $bound)
    };
}

/// The counter that a [`MetricDef`] constant defines: `counter!(READS, "source" => source)`.
#[macro_export]
macro_rules! counter {
    ($def:expr $(, $label:literal => $value:expr)* $(,)?) => {
        $crate::__metric!(Counter, register_counter, $def $(, $label => $value)*)
    };
}

/// The gauge that a [`MetricDef`] constant defines.
#[macro_export]
macro_rules! gauge {
    ($def:expr $(, $label:literal => $value:expr)* $(,)?) => {
        $crate::__metric!(Gauge, register_gauge, $def $(, $label => $value)*)
    };
}

/// The histogram that a [`MetricDef`] constant defines.
#[macro_export]
macro_rules! histogram {
    ($def:expr $(, $label:literal => $value:expr)* $(,)?) => {
        $crate::__metric!(Histogram, register_histogram, $def $(, $label => $value)*)
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __metric {
    ($kind:ident, $register:ident, $def:expr) => {{
        const { $crate::metric::assert_matches(&$def, $crate::MetricKind::$kind, &[]) };
        static KEY: $crate::metric::metrics::Key =
            $crate::metric::metrics::Key::from_static_name($def.name);
        $crate::metric::metrics::with_recorder(|recorder| {
            recorder.$register(&KEY, &$crate::metric::METADATA)
        })
    }};
    ($kind:ident, $register:ident, $def:expr $(, $label:literal => $value:expr)+) => {{
        const {
            $crate::metric::assert_matches(&$def, $crate::MetricKind::$kind, &[$($label),+])
        };
        let mut index = 0;
        let labels = vec![$({
            let text = $crate::metric::label_text(&$def, index, $value);
            index += 1;
            $crate::metric::metrics::Label::new($label, text)
        }),+];
        let _ = index;
        let key = $crate::metric::metrics::Key::from_parts($def.name, labels);
        $crate::metric::metrics::with_recorder(|recorder| {
            recorder.$register(&key, &$crate::metric::METADATA)
        })
    }};
}

#[doc(hidden)]
pub use metrics;

#[doc(hidden)]
pub static METADATA: metrics::Metadata<'static> =
    metrics::Metadata::new("tagfast", metrics::Level::INFO, None);

#[cfg(test)]
mod tests {
    use super::*;

    label_enum! {
        /// Where an answer came from.
        pub(super) enum Source { Cache = "cache", Store = "store" }
    }

    define_metrics! {
        /// The metrics of this test.
        const METRICS;

        /// Reads of this test, whose help
        /// takes two lines.
        counter READS = "tagfast_test_reads_total" {
            source: Source,
            cluster in "clusters of the shard map",
        };

        /// Callers that wait.
        gauge WAITING = "tagfast_test_waiting";
    }

    #[test]
    fn definitions_make_the_list_and_their_docs_make_the_help() {
        assert_eq!(METRICS, [READS, WAITING]);
        assert_eq!(READS.help, "Reads of this test, whose help takes two lines.");
        assert_eq!(READS.labels[1].values, LabelValues::BoundedBy("clusters of the shard map"));
        assert_eq!((WAITING.kind, WAITING.labels), (MetricKind::Gauge, &[][..]));
    }

    #[test]
    fn label_sets_come_from_the_enum() {
        assert_eq!(READS.labels[0].values, LabelValues::Closed(&["cache", "store"]));
        assert_eq!(Source::Store.as_str(), "store");
        counter!(READS, "source" => Source::Cache, "cluster" => Bounded("c1")).increment(1);
        gauge!(WAITING).set(1.0);
    }

    #[test]
    fn other_kinds_and_labels_are_refused() {
        let refused = |kind, labels: &'static [&'static str]| {
            std::panic::catch_unwind(move || assert_matches(&READS, kind, labels)).is_err()
        };
        assert!(refused(MetricKind::Gauge, &["source", "cluster"]));
        assert!(refused(MetricKind::Counter, &["source"]));
        assert!(refused(MetricKind::Counter, &["cluster", "source"]));
        assert!(!refused(MetricKind::Counter, &["source", "cluster"]));
    }

    #[test]
    #[cfg(debug_assertions)]
    fn a_value_outside_the_closed_set_is_caught() {
        let caught = std::panic::catch_unwind(|| label_text(&READS, 0, Bounded("disk")));
        assert!(caught.is_err());
    }
}
