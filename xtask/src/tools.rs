//! Tools that the tests need and the machine may not have.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run::{run, succeeds, target_dir};

/// The contract tester, from PyPI.
const SCHEMATHESIS: &str = "schemathesis==4.32.5";

/// A Python virtual environment below `target/` with the contract tester; quick when it is there.
pub(crate) fn schemathesis() -> Result<PathBuf> {
    let venv = target_dir().join("tools").join("schemathesis");
    let program = venv.join("bin").join("schemathesis");
    let stamp = venv.join("installed");
    if program.is_file() && std::fs::read_to_string(&stamp).is_ok_and(|s| s == SCHEMATHESIS) {
        println!("{SCHEMATHESIS} is installed");
        return Ok(program);
    }
    if venv.exists() {
        std::fs::remove_dir_all(&venv)
            .with_context(|| format!("cannot remove {}", venv.display()))?;
    }
    make_venv(&venv)?;
    let pip = venv.join("bin").join("pip");
    run(Command::new(pip).args([
        "install",
        "--quiet",
        "--disable-pip-version-check",
        SCHEMATHESIS,
    ]))?;
    std::fs::write(&stamp, SCHEMATHESIS)?;
    Ok(program)
}

fn make_venv(venv: &Path) -> Result<()> {
    let pythons = ["python3", "/usr/bin/python3"];
    let try_all =
        || pythons.iter().any(|p| succeeds(Command::new(p).args(["-m", "venv"]).arg(venv)));
    if try_all() {
        return Ok(());
    }
    // Debian keeps the part of venv that installs pip in a package of its own.
    println!("python3 cannot make a virtual environment; installing python3-venv");
    let apt = |args: &[&str]| {
        run(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(args))
    };
    apt(&["update", "-q"]).context("install python3-venv by hand, then run the command again")?;
    apt(&["install", "-y", "-q", "python3", "python3-venv"])
        .context("install python3-venv by hand, then run the command again")?;
    if !try_all() {
        bail!("python3 -m venv still fails; make {} work by hand", venv.display());
    }
    Ok(())
}
