//! Files and directories that only their owner may use: mode 0600 and 0700.
//!
//! How it fails: what is wider and cannot be narrowed, because it belongs to a different user, is a
//! [`NotPrivate`] that names it.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The bits of a mode that let a group or all users in.
const OTHERS: u32 = 0o077;
/// The bit of a directory in which each user may remove only files of their own.
const STICKY: u32 = 0o1000;

/// A path that other users may use, and that this process may not narrow.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} (mode {mode:04o}) must be its owner's alone, and this process cannot make it so; name a \
     directory below it, or run `chmod go-rwx` on it as its owner", .path.display()
)]
pub struct NotPrivate {
    /// The path.
    pub path: PathBuf,
    /// Its mode.
    pub mode: u32,
    /// Why it could not be narrowed.
    #[source]
    pub source: io::Error,
}

/// Creates a directory with its parents, mode 0700; one that exists stays as it is.
///
/// # Errors
///
/// The operating system's error.
pub fn create_dir(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Creates a file with mode 0600 for writing; it must not exist.
///
/// # Errors
///
/// The operating system's error.
pub fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// The mode of a path if others than its owner can read it, links followed; `None`: they cannot, or
/// nothing is there.
pub fn readable_by_others(path: &Path) -> Option<u32> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o7777;
    (mode & 0o044 != 0).then_some(mode)
}

/// Takes the rights of all others away from a directory, from the entries in it that `is_ours`
/// names, and from everything below those. Returns the paths that were wider. Symbolic links in it
/// are not followed. A directory that is there for all users is never narrowed: one with the sticky
/// bit, such as `/tmp`, and one with entries none of which is ours.
///
/// # Errors
///
/// [`NotPrivate`] of the first path that cannot be narrowed.
pub fn narrow(dir: &Path, is_ours: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, NotPrivate> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| NotPrivate { path, mode: 0, source }
    };
    let dir = std::fs::canonicalize(dir).map_err(io(dir))?;
    let (mut open, mut entries) = (Vec::new(), 0);
    for entry in std::fs::read_dir(&dir).map_err(io(&dir))? {
        let entry = entry.map_err(io(&dir))?;
        entries += 1;
        if entry.file_name().to_str().is_some_and(&is_ours) {
            open.push(entry.path());
        }
    }
    let mode = mode_of(&std::fs::symlink_metadata(&dir).map_err(io(&dir))?);
    if mode & OTHERS != 0 && (mode & STICKY != 0 || (entries > 0 && open.is_empty())) {
        let source = io::Error::other("it is used for other things too");
        return Err(NotPrivate { path: dir, mode, source });
    }
    let mut narrowed = Vec::new();
    narrow_one(&dir, &mut narrowed)?;
    while let Some(path) = open.pop() {
        narrow_one(&path, &mut narrowed)?;
        if std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
            let below = std::fs::read_dir(&path).into_iter().flatten();
            open.extend(below.filter_map(Result::ok).map(|entry| entry.path()));
        }
    }
    Ok(narrowed)
}

fn mode_of(meta: &Metadata) -> u32 {
    meta.permissions().mode() & 0o7777
}

fn narrow_one(path: &Path, narrowed: &mut Vec<PathBuf>) -> Result<(), NotPrivate> {
    // What disappears meanwhile, as files of a log do, needs no mode.
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    let mode = mode_of(&meta);
    if meta.is_symlink() || mode & OTHERS == 0 {
        return Ok(());
    }
    match std::fs::set_permissions(path, Permissions::from_mode(mode & 0o700)) {
        Ok(()) => narrowed.push(path.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(NotPrivate { path: path.to_owned(), mode, source }),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        mode_of(&std::fs::symlink_metadata(path).expect("it exists"))
    }

    fn set(path: &Path, mode: u32) {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("set");
    }

    #[test]
    fn every_wider_mode_is_narrowed_and_what_is_not_ours_is_left() {
        let root = std::env::temp_dir().join(format!("tagfast-private-{}", std::process::id()));
        let (data, outside) = (root.join("data"), root.join("outside"));
        let (foreign, file) = (data.join("notes"), data.join("search").join("f"));
        create_dir(&data.join("search")).expect("made");
        for path in [&outside, &foreign] {
            std::fs::write(path, "x").expect("made");
            set(path, 0o644);
        }
        std::os::unix::fs::symlink(&outside, data.join("search").join("link")).expect("made");
        drop(create_file(&data.join("private")).expect("made"));
        assert_eq!((mode(&data), mode(&data.join("private"))), (0o700, 0o600));
        let ours = |name: &str| ["search", "private"].contains(&name);
        assert_eq!(narrow(&data, ours).expect("narrow"), Vec::<PathBuf>::new());
        for bits in 1..=OTHERS {
            std::fs::write(&file, "x").expect("made");
            for path in [&file, &data, &data.join("search")] {
                set(path, 0o700 | bits);
            }
            assert_eq!(readable_by_others(&file).is_some(), bits & 0o044 != 0, "{bits:o}");
            assert_eq!(narrow(&data, ours).expect("narrow").len(), 3, "{bits:o}");
            for path in [&file, &data, &data.join("search")] {
                assert_eq!(mode(path), 0o700, "{bits:o}");
            }
        }
        assert_eq!((mode(&outside), mode(&foreign)), (0o644, 0o644));
        // A directory for all users is refused, not narrowed.
        for (wide, ours) in [(0o1777, true), (0o755, false)] {
            set(&data, wide);
            let refused = narrow(&data, |name| ours && name == "search").expect_err("not ours");
            assert_eq!((refused.mode, mode(&data)), (wide, wide));
        }
        std::fs::remove_dir_all(root).expect("removed");
    }
}
