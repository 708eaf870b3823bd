//! Installs the servers of a stack: Debian packages, Patroni from PyPI, Kafka and OpenSearch
//! through Maven.
//!
//! Versions are pinned. The programs are in one folder that an unprivileged user can read; a stamp
//! file marks a complete installation. No service of a package is started.
//!
//! How it fails: the last lines of an installer's output are part of the error.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::host::{find_program, run};

const PATRONI_VERSION: &str = "4.1.5";
const PSYCOPG_REQUIREMENT: &str = "psycopg[binary]==3.3.9";
const PSUTIL_REQUIREMENT: &str = "psutil==7.2.2";
const KAFKA_VERSION: &str = "4.1.0";
const OPENSEARCH_VERSION: &str = "2.19.3";
/// Folder of PostgreSQL's programs on Debian.
pub(super) const POSTGRES_BIN: &str = "/usr/lib/postgresql/15/bin";

/// Receives a line for each step.
pub type Progress<'a> = &'a dyn Fn(&str);

/// Which parts must be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// etcd, PostgreSQL, Patroni.
    pub clusters: bool,
    /// Redis.
    pub redis: bool,
    /// Kafka.
    pub kafka: bool,
    /// OpenSearch.
    pub opensearch: bool,
    /// Network namespaces.
    pub netns: bool,
}

/// The installed programs.
#[derive(Debug, Clone)]
pub struct Tools {
    /// Folder of the programs from PyPI and Maven.
    pub home: PathBuf,
}

impl Tools {
    pub(super) fn patroni(&self) -> PathBuf {
        self.home.join("patroni/bin/patroni")
    }

    pub(super) fn kafka(&self) -> PathBuf {
        self.home.join("kafka")
    }

    pub(super) fn opensearch(&self) -> PathBuf {
        self.home.join(format!("opensearch/opensearch-{OPENSEARCH_VERSION}"))
    }
}

/// Installs what is missing; fast when nothing is.
pub fn install(needs: Needs, progress: Progress<'_>) -> Result<Tools> {
    debian(needs, progress)?;
    let home = PathBuf::from("/var/tmp/tagfast-tools");
    std::fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o755))?;
    // Concurrent installations would corrupt each other: the second one waits.
    let lock = std::fs::File::create(home.join("lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    let tools = Tools { home };
    if needs.clusters {
        once(&tools.home, "patroni", PATRONI_VERSION, progress, patroni)?;
    }
    if needs.kafka {
        once(&tools.home, "kafka", KAFKA_VERSION, progress, kafka)?;
    }
    if needs.opensearch {
        once(&tools.home, "opensearch", OPENSEARCH_VERSION, progress, opensearch)?;
    }
    Ok(tools)
}

fn once(
    home: &Path,
    name: &str,
    version: &str,
    progress: Progress<'_>,
    work: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let (dir, stamp) = (home.join(name), home.join(format!("{name}.installed")));
    if dir.is_dir() && std::fs::read_to_string(&stamp).is_ok_and(|text| text == version) {
        return Ok(());
    }
    progress(&format!("installing {name} {version}"));
    if dir.exists() {
        std::fs::remove_dir_all(&dir)
            .with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    work(&dir).with_context(|| format!("cannot install {name} {version}"))?;
    run(Command::new("chmod").args(["-R", "a+rX"]).arg(&dir))?;
    std::fs::write(stamp, version).with_context(|| format!("cannot note that {name} is installed"))
}

fn debian(needs: Needs, progress: Progress<'_>) -> Result<()> {
    let postgres = Path::new(POSTGRES_BIN).join("postgres").is_file();
    let mut packages = Vec::new();
    let mut want = |wanted: bool, there: bool, package: &'static str| {
        if wanted && !there {
            packages.push(package);
        }
    };
    let there = |program: &str| find_program(program).is_some();
    want(needs.clusters, postgres, "postgresql-15");
    want(needs.clusters, there("etcd"), "etcd-server");
    want(needs.clusters, Path::new("/usr/bin/python3").is_file(), "python3");
    want(needs.redis, there("redis-server"), "redis-server");
    want(needs.kafka || needs.opensearch, there("java"), "openjdk-17-jre-headless");
    want(needs.kafka || needs.opensearch, there("mvn"), "maven");
    want(needs.opensearch, there("unzip"), "unzip");
    want(needs.netns, there("ip"), "iproute2");
    if packages.is_empty() {
        return Ok(());
    }
    // Debian's package would create and start its own cluster.
    let own_cluster = Path::new("/etc/postgresql-common/createcluster.conf");
    let fresh = packages.contains(&"postgresql-15")
        && !own_cluster.exists()
        && rustix::process::geteuid().is_root();
    if fresh {
        std::fs::create_dir_all("/etc/postgresql-common")?;
        std::fs::write(own_cluster, "create_main_cluster = false\n")?;
    }
    install_packages(&packages, progress)
}

/// Installs the libraries that the Kafka client is compiled with.
pub fn install_libraries(progress: Progress<'_>) -> Result<()> {
    let header = |name: &str| Path::new("/usr/include").join(name).is_file();
    let missing: Vec<&str> = [
        (header("openssl/ssl.h"), "libssl-dev"),
        (header("zlib.h"), "zlib1g-dev"),
        (find_program("make").is_some(), "make"),
        (find_program("perl").is_some(), "perl"),
    ]
    .into_iter()
    .filter_map(|(there, package)| (!there).then_some(package))
    .collect();
    if missing.is_empty() { Ok(()) } else { install_packages(&missing, progress) }
}

/// Installs Debian packages without starting their services.
pub fn install_packages(packages: &[&str], progress: Progress<'_>) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("these Debian packages are missing; install them as root: {}", packages.join(" "));
    }
    progress(&format!("installing {}", packages.join(", ")));
    let _no_service_start = ServiceStartGuard::new()?;
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1").args(args);
        run(&mut command)
    };
    let mut install = vec!["install", "-y", "-q", "--no-install-recommends"];
    install.extend(packages);
    if apt(&install).is_err() {
        apt(&["update", "-q"])?;
        apt(&install)?;
    }
    Ok(())
}

/// Keeps Debian from starting services while it exists: writes the policy file that packages query,
/// unless there is one.
struct ServiceStartGuard {
    created: bool,
}

const POLICY_FILE: &str = "/usr/sbin/policy-rc.d";

impl ServiceStartGuard {
    fn new() -> Result<Self> {
        let created = !Path::new(POLICY_FILE).exists();
        if created {
            std::fs::write(POLICY_FILE, "#!/bin/sh\nexit 101\n")
                .with_context(|| format!("cannot write {POLICY_FILE}"))?;
            std::fs::set_permissions(POLICY_FILE, std::fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self { created })
    }
}

impl Drop for ServiceStartGuard {
    fn drop(&mut self) {
        if self.created {
            // Left behind, it would keep later packages from starting their services.
            let _ = std::fs::remove_file(POLICY_FILE);
        }
    }
}

/// A virtual environment of Debian's Python: the servers' user may not be able to run a different
/// interpreter.
fn patroni(dir: &Path) -> Result<()> {
    run(Command::new("/usr/bin/python3").args(["-m", "venv", "--without-pip"]).arg(dir))?;
    let python = dir.join("bin/python");
    let requirements = [
        &format!("patroni[etcd3,psycopg3]=={PATRONI_VERSION}"),
        PSYCOPG_REQUIREMENT,
        PSUTIL_REQUIREMENT,
    ];
    let pip = find_program("pip").or_else(|| find_program("pip3"));
    let Some(pip) = pip else {
        install_packages(&["python3-pip"], &|_| ())
            .context("pip is missing; install python3-pip")?;
        return pip_install(Path::new("/usr/bin/pip3"), &python, &requirements);
    };
    pip_install(&pip, &python, &requirements)
}

fn pip_install(pip: &Path, python: &Path, requirements: &[&str]) -> Result<()> {
    let mut command = Command::new(pip);
    command
        .arg("--python")
        .arg(python)
        .args(["install", "-q", "--disable-pip-version-check"])
        .args(requirements);
    run(&mut command).map(drop)
}

fn kafka(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let pom = format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\
         <groupId>tagfast</groupId><artifactId>kafka-jars</artifactId><version>1</version><packaging>pom</packaging>\
         <dependencies>\
         <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version></dependency>\
         <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>\
         </dependencies></project>"
    );
    let file = dir.join("pom.xml");
    std::fs::write(&file, pom)?;
    let mut command = Command::new("mvn");
    command.args(["-q", "-B", "-f"]).arg(&file).arg("dependency:copy-dependencies");
    command.arg(format!("-DoutputDirectory={}", dir.join("libs").display()));
    run(&mut command).map(drop)
}

fn opensearch(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let artifact =
        format!("org.opensearch.distribution.integ-test-zip:opensearch:{OPENSEARCH_VERSION}:zip");
    let mut get = Command::new("mvn");
    get.args(["-q", "-B", "dependency:get", "-Dtransitive=false"])
        .arg(format!("-Dartifact={artifact}"));
    run(&mut get)?;
    let mut copy = Command::new("mvn");
    copy.args(["-q", "-B", "dependency:copy"]).arg(format!("-Dartifact={artifact}"));
    copy.arg(format!("-DoutputDirectory={}", dir.display()));
    run(&mut copy)?;
    let zip = std::fs::read_dir(dir)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "zip"))
        .context("Maven copied no archive")?;
    run(Command::new("unzip").arg("-q").arg(&zip).arg("-d").arg(dir))?;
    std::fs::remove_file(zip)?;
    Ok(())
}
