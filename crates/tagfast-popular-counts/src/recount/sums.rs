//! The sums of a file beside the states that they sum up, in one snapshot.
//!
//! How it fails: memory is bounded by the tags of a slice, so a file with very many tags is read
//! several times.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};

use tagfast_domain::Tagging;
use tagfast_popular::Window;
use tagfast_popular::windows::WindowStarts;

use crate::partition_file::{self, PartitionFile};

/// Tags that are compared at a time. Too high: memory; too low: the states are read again and
/// again.
const SLICE_TAGS_MAX: u64 = 200_000;
/// Maximum number of rows in a report.
pub(super) const REPORT_ROWS_MAX: usize = 1000;
/// Rows that are kept while shards are compared: drift that another shard makes up for needs no
/// row.
const KEPT_ROWS_MAX: usize = 10 * REPORT_ROWS_MAX;

/// Drift of tags: (tenant, tag) -> (counted, true).
#[derive(Debug, Default)]
pub(super) struct DriftRows(BTreeMap<(String, String), (i64, i64)>);

impl DriftRows {
    fn add(&mut self, tenant: &str, tag: &str, counted: i64, real: i64) {
        let key = (tenant.to_owned(), tag.to_owned());
        let full = self.0.len() >= KEPT_ROWS_MAX;
        let row = match self.0.get_mut(&key) {
            Some(row) => row,
            None if full => return,
            None => self.0.entry(key).or_default(),
        };
        row.0 += counted;
        row.1 += real;
    }

    /// Adds a content whose counted tags are wrong.
    pub(super) fn add_content(&mut self, tenant: &str, counted: &[Tagging], real: &[Tagging]) {
        counted.iter().for_each(|tagging| self.add(tenant, tagging.name.as_str(), 1, 0));
        real.iter().for_each(|tagging| self.add(tenant, tagging.name.as_str(), 0, 1));
    }

    /// Adds all rows of another one.
    pub(super) fn join(&mut self, other: Self) {
        for ((tenant, tag), (counted, real)) in other.0 {
            self.add(&tenant, &tag, counted, real);
        }
    }

    /// The rows of a report: (tenant, tag, counted, true).
    pub(super) fn into_report(self) -> Vec<(String, String, i64, i64)> {
        let differ = self.0.into_iter().filter(|(_, (counted, real))| counted != real);
        differ.take(REPORT_ROWS_MAX).map(|((t, n), (a, b))| (t, n, a, b)).collect()
    }
}

/// Sums of one tag in the order of `Window::ALL`.
#[derive(Default)]
struct Sums {
    counted: [i64; 4],
    real: [i64; 4],
}

/// Compares the sums of a file; with `repair` wrong ones are computed again. Returns how many are
/// wrong, one for each tag and window, and the rows of those over all time.
pub(super) fn compare_sums(
    file: &PartitionFile,
    repair: bool,
) -> rusqlite::Result<(u64, DriftRows)> {
    if !repair {
        return file.read(compare);
    }
    file.write(|tx| {
        let found = compare(tx)?;
        if found.0 > 0 {
            partition_file::recompute(tx)?;
        }
        Ok(found)
    })
}

fn compare(conn: &rusqlite::Connection) -> rusqlite::Result<(u64, DriftRows)> {
    let tags: i64 = conn.query_row("SELECT count(*) FROM pop_count", [], |row| row.get(0))?;
    let (mut wrong, mut rows) = (0, DriftRows::default());
    let (slices, hasher) = (tags.unsigned_abs() / SLICE_TAGS_MAX + 1, RandomState::new());
    for slice in 0..slices {
        let in_slice = |tenant: &str, tag: &str| hasher.hash_one((tenant, tag)) % slices == slice;
        for ((tenant, tag), Sums { counted, real }) in sums_of(conn, in_slice)? {
            let differ = |window: &Window| counted[window.index()] != real[window.index()];
            wrong += Window::ALL.iter().filter(|window| differ(window)).count() as u64;
            if differ(&Window::All) {
                let all = Window::All.index();
                rows.add(&tenant, &tag, counted[all], real[all]);
            }
        }
    }
    Ok((wrong, rows))
}

/// The sums of the tags of a slice, by tenant and tag.
fn sums_of(
    conn: &rusqlite::Connection,
    in_slice: impl Fn(&str, &str) -> bool,
) -> rusqlite::Result<HashMap<(String, String), Sums>> {
    let starts = partition_file::read_starts(conn)?.unwrap_or(WindowStarts::UNBOUNDED);
    let mut sums: HashMap<(String, String), Sums> = HashMap::new();
    let mut select = conn.prepare("SELECT tenant, tag, n0, n1, n2, n3 FROM pop_count")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let (tenant, tag): (String, String) = (row.get(0)?, row.get(1)?);
        if in_slice(&tenant, &tag) {
            let of = sums.entry((tenant, tag)).or_default();
            for (n, counted) in of.counted.iter_mut().enumerate() {
                *counted = row.get(2 + n)?;
            }
        }
    }
    let mut select = conn.prepare("SELECT k, state FROM pop_state WHERE length(state) > 0")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let Some(tenant) = partition_file::tenant_of(row.get_ref(0)?.as_blob()?) else { continue };
        for tagging in partition_file::decode_tags(row.get_ref(1)?.as_blob()?)? {
            let tag = tagging.name.as_str();
            if !in_slice(tenant.as_str(), tag) {
                continue;
            }
            let of = sums.entry((tenant.as_str().to_owned(), tag.to_owned())).or_default();
            for window in starts.windows(tagging.at) {
                of.real[window.index()] += 1;
            }
        }
    }
    Ok(sums)
}
