//! The alert rules: Prometheus' own tool reads them and runs their tests.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use tagfast_testkit::stack::install_packages;

use crate::run::{root, run};
use crate::totals::Totals;

/// Installs Debian's `prometheus` for its `promtool`; quick when it is there.
pub(crate) fn promtool() -> Result<()> {
    if Path::new("/usr/bin/promtool").is_file() {
        println!("promtool is installed");
        return Ok(());
    }
    install_packages(&["prometheus"], &|line| println!("{line}"))
}

/// Checks the rules, then runs their tests.
pub(crate) fn check() -> Result<Totals> {
    let dir = root().join("deploy").join("prometheus");
    let mut totals = Totals::default();
    for words in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]] {
        match run(Command::new("promtool").args(words).current_dir(&dir)) {
            Ok(()) => totals.passed += 1,
            Err(error) => {
                println!("{error:#}");
                totals.failed += 1;
            }
        }
    }
    Ok(totals)
}
