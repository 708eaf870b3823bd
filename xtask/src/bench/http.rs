//! Figures over HTTP: the service with authentication and all middleware, in turns with a baseline.

use std::process::Command;

use anyhow::{Context, Result, bail};
use tagfast_testkit::{ServerOptions, ServerProcess};

use super::figure::Figure;
use super::load::{Load, Measured, measure_alternately};
use super::setup::Setup;

const QUERY: &str = "role::program AND interface::commandline";
const CONNECTIONS: &str = "64";

fn token(setup: &Setup, secret: &str) -> Result<String> {
    let output = Command::new(&setup.program)
        .args(["token", "issue", "--tenant", "bench", "--user", "bench"])
        .args(["--scope", "tags:read tags:write admin", "--secret-file", secret])
        .output()?;
    if !output.status.success() {
        bail!("no token: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A bare server whose answers have as many bytes as the service's answer on `path`.
fn hello(setup: &Setup, service: &ServerProcess, token: &str, path: &str) -> Result<ServerProcess> {
    let answer = service.client().with_token(token).get(path);
    if answer.status != 200 {
        bail!("{path}: {}", answer.text());
    }
    let bytes = answer.body.len().to_string();
    Ok(ServerOptions::other(setup.example("hello")).arg("--body-bytes").arg(bytes).start())
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

/// A figure of the service beside its baseline.
fn beside(what: &str, baseline: &str, [own, base]: [Measured; 2]) -> Figure {
    Figure {
        baseline: Some(baseline.to_owned()),
        baseline_value: Some(base.per_second),
        cpu_us: Some(own.cpu_us),
        baseline_cpu_us: Some(base.cpu_us),
        latency_us: Some(own.latency_us),
        ..Figure::new(what, own.per_second, "req/s")
    }
}

pub(crate) fn figures(setup: &Setup) -> Result<Vec<Figure>> {
    let secret = setup.scratch.join("secret");
    std::fs::write(&secret, "the secret of a benchmark, at least thirty-two bytes\n")?;
    let secret = secret.to_str().context("the target directory's name is not UTF-8")?.to_owned();
    let token = token(setup, &secret)?;
    let service = ServerOptions::new(&setup.program, setup.scratch.join("http"))
        .env("TAGFAST__AUTH__MODE", "jwt")
        .env("TAGFAST__AUTH__HS256_SECRET_FILE", &secret)
        .start();
    service.wait_until_ready();
    let sample = setup.sample.display().to_string();
    let loaded = Command::new(&setup.program)
        .args([
            "import",
            "--wait",
            "--restart",
            "--url",
            &service.url(),
            "--token",
            &token,
            "--state",
        ])
        .arg(setup.scratch.join("http-import-state"))
        .arg(&sample)
        .output()?;
    if !loaded.status.success() {
        bail!("the import failed: {}", String::from_utf8_lossy(&loaded.stderr));
    }

    let with = |more: &[&str]| [words(&["--token", &token]), words(more)].concat();
    let bare = with(&["--path", "/hello", "--connections", CONNECTIONS]);
    let mut figures = Vec::new();

    // A package with about as many bytes of tags as the average one.
    let base = hello(setup, &service, &token, "/v1/content/debian.package/fonts-amiga/tags")?;
    let own = Load {
        server: &service,
        args: with(&["--mix", "view=1", "--connections", CONNECTIONS, "--ids-from", &sample]),
    };
    let measured = measure_alternately(setup, [&own, &Load { server: &base, args: bare.clone() }])?;
    let figure = beside("view of an item's tags", "bare axum hello, same body size", measured);
    let ok =
        figure.cpu_ratio().is_some_and(|r| r <= 2.5) && figure.ratio().is_some_and(|r| r >= 0.4);
    figures.push(figure.target("CPU <= 2.5x, req/s >= 0.4x of hello", ok));

    for (facets, fraction, absolute) in [(false, 0.15, 12_000.0), (true, 0.05, 4_000.0)] {
        let flag = if facets { "&facets=true" } else { "" };
        let encoded = QUERY.replace(' ', "%20").replace(':', "%3A");
        let base =
            hello(setup, &service, &token, &format!("/v1/search?q={encoded}&limit=20{flag}"))?;
        let mut args = with(&[
            "--mix",
            "search=1",
            "--query",
            QUERY,
            "--limit",
            "20",
            "--connections",
            CONNECTIONS,
        ]);
        if facets {
            args.push("--facets".to_owned());
        }
        let mut own = Load { server: &service, args };
        let measured =
            measure_alternately(setup, [&own, &Load { server: &base, args: bare.clone() }])?;
        let what = format!(
            "AND of 2 tags over debtags, 20 hits, facets {}",
            if facets { "on" } else { "off" }
        );
        let figure = beside(&what, "bare axum hello, same body size", measured);
        let ok = figure.value >= absolute || figure.ratio().is_some_and(|r| r >= fraction);
        let target = format!(">= {absolute}/s, or >= {fraction}x of hello");
        figures.push(figure.target(&target, ok));

        let half = (measured[0].per_second / 2.0).max(1.0).round();
        own.args.extend(["--rate".to_owned(), half.to_string()]);
        let [calm] = measure_alternately(setup, [&own])?;
        let p99 = calm.latency_us[1] / 1000.0;
        let mut figure =
            Figure::new(format!("the same at half load ({half}/s, open loop), p99"), p99, "ms");
        figure.latency_us = Some(calm.latency_us);
        figure.cpu_us = Some(calm.cpu_us);
        figures.push(figure.target("p99 < 10 ms", p99 < 10.0));
    }

    let base = hello(setup, &service, &token, "/v1/tags/popular?window=all&limit=20")?;
    let own = Load {
        server: &service,
        args: with(&["--mix", "popular=1", "--limit", "20", "--connections", CONNECTIONS]),
    };
    let measured = measure_alternately(setup, [&own, &Load { server: &base, args: bare }])?;
    let figure = beside("popular top 20", "bare axum hello, same body size", measured);
    let ok = figure.ratio().is_some_and(|r| r >= 0.5);
    figures.push(figure.target(">= 0.5x of hello", ok));

    let nothing = ServerOptions::other(setup.example("noop_store_server")).start();
    let args = with(&["--mix", "tag=1", "--write", "--connections", "256"]);
    let own = Load { server: &service, args: args.clone() };
    let measured = measure_alternately(setup, [&own, &Load { server: &nothing, args }])?;
    let figure = beside(
        "single-tag writes, durable, 256 connections",
        "the same HTTP layer over a store that keeps nothing",
        measured,
    );
    let p99 = measured[0].latency_us[1];
    let ok =
        (figure.value >= 20_000.0 || figure.ratio().is_some_and(|r| r >= 0.8)) && p99 <= 50_000.0;
    figures.push(figure.target(">= 20,000/s, or >= 0.8x of the no-op store; p99 <= 50 ms", ok));
    Ok(figures)
}
