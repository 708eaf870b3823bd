//! The baseline: PostgreSQL's own load generator, and the CPU time of its processes.

use std::path::{Path, PathBuf};
use std::process::Command;

use tagfast_testkit::stack::{NodeInfo, Stack, host};

/// One measurement.
pub(crate) struct Measured {
    /// Operations a second.
    pub(crate) per_second: f64,
    /// CPU of PostgreSQL an operation, in microseconds: for writes on the primary, for views on
    /// all nodes.
    pub(crate) server_us: f64,
    /// Percentiles of the latency, in milliseconds: the 50th, the 99th and the 99.9th.
    pub(crate) latency_ms: [f64; 3],
}

/// CPU time of all processes of these data directories, with the sessions that ended.
pub(crate) fn cpu_seconds(dirs: &[PathBuf]) -> f64 {
    let ticks: u64 = dirs
        .iter()
        .flat_map(|dir| host::processes_in(dir))
        .filter_map(|p| std::fs::read_to_string(format!("/proc/{}/stat", p.pid)).ok())
        .map(|stat| {
            let fields: Vec<u64> = stat[stat.rfind(')').unwrap_or(0)..]
                .split(' ')
                .map(|f| f.parse().unwrap_or(0))
                .collect();
            fields.get(12..16).map_or(0, |times| times.iter().sum())
        })
        .sum();
    ticks as f64 / 100.0
}

/// PostgreSQL's own load generator, through the same port.
pub(crate) struct Pgbench {
    primary: NodeInfo,
    dirs: Vec<PathBuf>,
    seconds: f64,
    password: String,
    user: String,
    script: PathBuf,
}

impl Pgbench {
    /// Creates its tables.
    pub(crate) fn prepare(stack: &Stack, primary: &NodeInfo, seconds: f64) -> Self {
        let database = &stack.info().database;
        let script = stack.info().config.with_file_name("two-inserts.sql");
        std::fs::write(
            &script,
            "\\set k random(1, 100000000)\nBEGIN;\nINSERT INTO pb_a VALUES (:k, 1);\n\
             INSERT INTO pb_b VALUES (:k, 1);\nCOMMIT;\n",
        )
        .expect("the script");
        let this = Self {
            primary: primary.clone(),
            dirs: vec![primary.data_dir.clone()],
            seconds,
            password: std::fs::read_to_string(&database.password_file).expect("the password"),
            user: database.user.clone(),
            script,
        };
        this.run(
            "psql",
            &[
                "-q",
                "-c",
                "CREATE TABLE pb_a (k bigint, v int); CREATE TABLE pb_b (k bigint, v int)",
            ],
        );
        this.run("pgbench", &["-i", "-q", "-s", "10"]);
        this
    }

    fn run(&self, program: &str, args: &[&str]) -> String {
        let mut command = Command::new(Path::new("/usr/lib/postgresql/15/bin").join(program));
        command
            .env("PGPASSWORD", &self.password)
            .env("PGHOST", self.primary.postgres.ip().to_string());
        command
            .env("PGPORT", self.primary.postgres.port().to_string())
            .env("PGUSER", &self.user)
            .env("PGDATABASE", "tagfast");
        host::run(command.args(args)).expect("it runs")
    }

    /// Two inserts a transaction, 64 clients.
    pub(crate) fn two_inserts(&self) -> Measured {
        let script = self.script.display().to_string();
        self.measure(&["-n", "-M", "prepared", "-c", "64", "-j", "2", "-f", &script])
    }

    /// Selects by key, 16 clients.
    pub(crate) fn selects(&self) -> Measured {
        self.measure(&["-n", "-S", "-M", "prepared", "-c", "16", "-j", "2"])
    }

    fn measure(&self, args: &[&str]) -> Measured {
        let seconds = self.seconds.ceil().to_string();
        let mut args = args.to_vec();
        args.extend(["-T", &seconds]);
        let cpu = cpu_seconds(&self.dirs);
        let output = self.run("pgbench", &args);
        let cpu = cpu_seconds(&self.dirs) - cpu;
        let number = |after: &str| -> f64 {
            let rest = output.split_once(after).map_or("", |(_, rest)| rest);
            rest.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(f64::NAN)
        };
        let per_second = number("tps = ");
        let average = number("latency average = ");
        let count = per_second * self.seconds.ceil();
        Measured {
            per_second,
            server_us: cpu * 1e6 / count,
            latency_ms: [average, f64::NAN, f64::NAN],
        }
    }
}
