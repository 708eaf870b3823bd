//! Tools that the tests need and the machine may not have. Versions are pinned here; nothing is
//! locked in a file of its own.
//!
//! How it fails: what an installer prints is shown; a half installed tool has no stamp and is
//! installed again.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tagfast_testkit::stack::install_packages;

use crate::run::{run, succeeds, target_dir};

/// The contract tester, from PyPI.
const SCHEMATHESIS: &str = "schemathesis==4.32.5";

/// What generates and checks the Python client, and the validator of the document, from PyPI.
const PYTHON_CLIENT: &[&str] =
    &["openapi-spec-validator==0.9.0", "openapi-python-client==0.29.1", "mypy==2.4.1"];

/// What generates, calls and compiles the TypeScript client, from npm.
const TYPESCRIPT_CLIENT: &[&str] =
    &["openapi-typescript@7.13.0", "openapi-fetch@0.17.0", "typescript@5.9.3"];

/// What generates the Go client, and what the generated code uses, as modules of Go.
const GO_GENERATOR: &str = "github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2";

/// A Python virtual environment below `target/` with the contract tester.
pub(crate) fn schemathesis() -> Result<PathBuf> {
    Ok(python_tools("schemathesis", &[SCHEMATHESIS])?.join("schemathesis"))
}

/// The programs of the Python client: the folder that they are in.
pub(crate) fn python_client() -> Result<PathBuf> {
    python_tools("client-python", PYTHON_CLIENT)
}

/// A folder whose `node_modules` has the programs of the TypeScript client.
pub(crate) fn typescript_client() -> Result<PathBuf> {
    installed("client-typescript", TYPESCRIPT_CLIENT, |dir| {
        require("npm", &["nodejs", "npm"])?;
        // The generated client and its caller are modules of ECMAScript.
        std::fs::write(dir.join("package.json"), "{\"private\": true, \"type\": \"module\"}\n")?;
        let install = ["install", "--no-package-lock", "--no-audit", "--no-fund"];
        let quiet = ["--ignore-scripts", "--loglevel=error"];
        run(Command::new("npm").args(install).args(quiet).args(TYPESCRIPT_CLIENT).current_dir(dir))
    })
}

/// The generator of the Go client.
pub(crate) fn go_client() -> Result<PathBuf> {
    let dir = installed("client-go", &[GO_GENERATOR], |dir| {
        require("go", &["golang-go"])?;
        run(Command::new("go").env("GOBIN", dir).args(["install", GO_GENERATOR]))
    })?;
    Ok(dir.join("oapi-codegen"))
}

/// A Python virtual environment with these requirements: the folder of its programs.
fn python_tools(name: &str, requirements: &[&str]) -> Result<PathBuf> {
    let venv = installed(name, requirements, |venv| {
        make_venv(venv)?;
        let pip = venv.join("bin").join("pip");
        let quiet = ["install", "--quiet", "--disable-pip-version-check"];
        run(Command::new(pip).args(quiet).args(requirements))
    })?;
    Ok(venv.join("bin"))
}

/// A folder below `target/tools` that `install` has filled with these packages; quick when it is
/// there.
fn installed(
    name: &str,
    packages: &[&str],
    install: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let dir = target_dir().join("tools").join(name);
    let (stamp, wanted) = (dir.join("installed"), packages.join("\n"));
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        println!("{} is installed", packages.join(", "));
        return Ok(dir);
    }
    if dir.exists() {
        std::fs::remove_dir_all(&dir)
            .with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    std::fs::create_dir_all(&dir)?;
    install(&dir)?;
    std::fs::write(&stamp, wanted)?;
    Ok(dir)
}

/// Makes sure that a program is there, by these Debian packages if it is not.
fn require(program: &str, packages: &[&str]) -> Result<()> {
    let has = |argument| succeeds(Command::new(program).arg(argument));
    // `go` has no `--version`.
    if has("--version") || has("version") {
        return Ok(());
    }
    install_packages(packages, &|line| println!("{line}"))
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
    install_packages(&["python3", "python3-venv"], &|line| println!("{line}"))?;
    if !try_all() {
        bail!("python3 -m venv still fails; make {} work by hand", venv.display());
    }
    Ok(())
}
