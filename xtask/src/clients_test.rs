//! The clients test: the OpenAPI document is valid, and the clients that are generated from it
//! compile under the strictest settings and work against a running server.
//!
//! `xtask/clients` has a program for each language that calls every operation; what is generated
//! is below `target/tools`. Each step is one test of the totals.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tagfast_testkit::ServerOptions;

use crate::run::{output, root, run, target_dir};
use crate::tools;
use crate::totals::Totals;

/// The installed generators.
pub(crate) struct Generators {
    python: PathBuf,
    typescript: PathBuf,
    /// `None`: the Go client is not asked for.
    go: Option<PathBuf>,
}

/// Installs what generates and compiles the clients.
pub(crate) fn install(full: bool) -> Result<Generators> {
    Ok(Generators {
        python: tools::python_client()?,
        typescript: tools::typescript_client()?,
        go: full.then(tools::go_client).transpose()?,
    })
}

/// Counts what passes; a step that fails is told, and the steps that need it are not run.
#[derive(Default)]
struct Steps(Totals);

impl Steps {
    fn run(&mut self, name: &str, step: impl FnOnce() -> Result<()>) -> bool {
        println!("--- {name}");
        match step() {
            Ok(()) => {
                self.0.passed += 1;
                true
            }
            Err(error) => {
                println!("FAILED: {name}: {error:#}");
                self.0.failed += 1;
                false
            }
        }
    }
}

/// `cargo xtask clients`: installs and tests.
pub(crate) fn alone(full: bool) -> Result<()> {
    let totals = test(&install(full)?)?;
    println!("{} passed, {} failed", totals.passed, totals.failed);
    if totals.failed == 0 { Ok(()) } else { bail!("a generated client does not work") }
}

/// Runs all steps; a language whose client does not compile is not called.
pub(crate) fn test(generators: &Generators) -> Result<Totals> {
    let dir = target_dir().join("tools").join("clients");
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    std::fs::create_dir_all(&dir)?;
    let document = dir.join("openapi.json");
    std::fs::write(&document, output(Command::new(program()).arg("openapi"))?)?;

    let Generators { python, typescript, go } = generators;
    let mut steps = Steps::default();
    steps.run("the document is valid OpenAPI 3.1", || {
        let validator = python.join("openapi-spec-validator");
        run(Command::new(validator).args(["--schema", "3.1"]).arg(&document))
    });
    if steps.run("TypeScript: the client compiles", || compile_typescript(typescript, &document)) {
        let calls = typescript.join("out").join("calls.js");
        steps.run("TypeScript: the client calls a server", || {
            call(&dir, "typescript", Command::new("node").arg(calls))
        });
    }
    let packages = dir.join("python");
    if steps.run("Python: the client type-checks", || check_python(python, &document, &packages)) {
        let calls = packages.join("calls.py");
        steps.run("Python: the client calls a server", || {
            call(&dir, "python-calls", Command::new(python.join("python")).arg(calls))
        });
    }
    if let Some(go) = go {
        let module = dir.join("go");
        let program = module.join("calls");
        if steps.run("Go: the client compiles", || compile_go(go, &document, &module, &program)) {
            steps.run("Go: the client calls a server", || {
                call(&dir, "go-calls", &mut Command::new(&program))
            });
        }
    }
    Ok(steps.0)
}

/// The program that the tests were built with.
fn program() -> PathBuf {
    target_dir().join("debug").join("tagfast")
}

/// Runs the caller of one language against a fresh server, with a token of the scope `admin`.
fn call(dir: &Path, name: &str, caller: &mut Command) -> Result<()> {
    let secret = dir.join("secret");
    std::fs::write(&secret, "a secret of thirty-two bytes or more")?;
    std::fs::set_permissions(&secret, Permissions::from_mode(0o600))?;
    let issue = ["token", "issue", "--tenant", "acme", "--user", "ana", "--scope", "admin"];
    let token = output(Command::new(program()).args(issue).arg("--secret-file").arg(&secret))?;
    let server = ServerOptions::new(program(), dir.join(format!("{name}-data")))
        .env("TAGFAST__AUTH__MODE", "jwt")
        .env("TAGFAST__AUTH__HS256_SECRET_FILE", &secret.to_string_lossy())
        .start();
    server.wait_until_ready();
    run(caller.env("TAGFAST_URL", server.url()).env("TAGFAST_TOKEN", token.trim()))
        .inspect_err(|_| println!("the server's log:\n{}", server.log()))
}

/// Copies a file of `xtask/clients`.
fn copy(from: &str, to: &Path) -> Result<()> {
    let from = root().join("xtask").join("clients").join(from);
    std::fs::copy(&from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

fn compile_typescript(dir: &Path, document: &Path) -> Result<()> {
    for file in ["calls.ts", "tsconfig.json"] {
        copy(&format!("typescript/{file}"), &dir.join(file))?;
    }
    let bin = dir.join("node_modules").join(".bin");
    let generate = ["--alphabetize", "--output", "schema.d.ts"];
    run(Command::new(bin.join("openapi-typescript"))
        .arg(document)
        .args(generate)
        .current_dir(dir))?;
    run(Command::new(bin.join("tsc")).args(["--project", "tsconfig.json"]).current_dir(dir))
}

fn check_python(bin: &Path, document: &Path, packages: &Path) -> Result<()> {
    std::fs::create_dir_all(packages)?;
    for file in ["calls.py", "config.yml"] {
        copy(&format!("python/{file}"), &packages.join(file))?;
    }
    let options = ["--config", "config.yml", "--meta", "none", "--fail-on-warning"];
    run(Command::new(bin.join("openapi-python-client"))
        .args(["generate", "--path"])
        .arg(document)
        .args(options)
        .current_dir(packages))?;
    let strict = ["--strict", "--no-incremental", "calls.py", "tagfast_client"];
    run(Command::new(bin.join("mypy")).args(strict).current_dir(packages))
}

fn compile_go(generator: &Path, document: &Path, module: &Path, program: &Path) -> Result<()> {
    std::fs::create_dir_all(module.join("client"))?;
    for file in ["calls.go", "go.mod", "config.yml"] {
        copy(&format!("go/{file}"), &module.join(file))?;
    }
    let generated = module.join("client").join("client.go");
    run(Command::new(generator)
        .args(["-config", "config.yml", "-o"])
        .arg(generated)
        .arg(document)
        .current_dir(module))?;
    let go = |arguments: &[&str]| run(Command::new("go").args(arguments).current_dir(module));
    // The sums of what go.mod pins are made here: no file of sums is kept.
    go(&["mod", "tidy"])?;
    go(&["vet", "./..."])?;
    run(Command::new("go").args(["build", "-o"]).arg(program).current_dir(module))
}
