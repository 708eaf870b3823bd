// Calls a running server with the client that openapi-typescript generates from the server's
// document. Every operation of the document must be called; the last line lists the ones that were
// not. The server and the token are in TAGFAST_URL and TAGFAST_TOKEN.
//
// How it fails: an answer that is not what the types say ends the program with its name.

import createClient, { type Middleware } from "openapi-fetch";
import type { components, paths } from "./schema.js";

declare const process: { env: Record<string, string | undefined>; exitCode: number | undefined };

type Schemas = components["schemas"];

const { TAGFAST_URL: baseUrl = "", TAGFAST_TOKEN: token = "" } = process.env;
const client = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${token}` } });
const called = new Set<string>();

const record: Middleware = {
  onRequest({ schemaPath, request }) {
    called.add(`${request.method} ${schemaPath}`);
    return undefined;
  },
};
client.use(record);

function check(holds: boolean, what: string): asserts holds {
  if (!holds) {
    throw new Error(what);
  }
}

type Answer<T> = { data?: T; error?: unknown; response: Response };

/** The body of a success. */
function ok<T>(answer: Answer<T>): T {
  const { data, response } = answer;
  check(response.ok && data !== undefined, `${response.url}: ${response.status}`);
  return data;
}

/** The problem of an error. */
function problem(answer: { error?: Schemas["Problem"]; response: Response }, code: string): void {
  const { error, response } = answer;
  check(error !== undefined, `${response.url}: ${response.status} is no error`);
  check(error.code === code, `${response.url}: ${error.code} is not ${code}`);
  check(error.status === response.status, `${response.url}: ${error.status}`);
}

const content = { type: "client.test", id: "a/b ü?#%" };
const one = { params: { path: content } };

async function tagsOfOneContent(): Promise<string> {
  const tag = { params: { path: { ...content, tag: "implemented-in::c++" } } };
  const added = ok(await client.PUT("/v1/content/{type}/{id}/tags/{tag}", tag));
  check(added.changed && added.content.id === content.id, "the tag was added");
  const removed = ok(await client.DELETE("/v1/content/{type}/{id}/tags/{tag}", tag));
  check(removed.removed.length === 1, "the tag was removed");
  const changed = await client.PATCH("/v1/content/{type}/{id}/tags", {
    ...one,
    body: { add: ["client-x", "client-y"], remove: [] },
  });
  const receipt = ok(changed).receipt;
  const replaced = await client.PUT("/v1/content/{type}/{id}/tags", {
    params: { path: content, header: { "Idempotency-Key": "client-1", Consistency: "session" } },
    body: { tags: ["client-x", "client-z"] },
  });
  check(ok(replaced).added.includes("client-z"), "the set was replaced");
  const view = ok(await client.GET("/v1/content/{type}/{id}/tags", one));
  const source: "cache" | "primary" | "replica" | "index" | "snapshot" = view.meta.source;
  check(source === "primary", `source ${source}`);
  check(view.tags.map((t) => t.tag).join() === "client-x,client-z", "the tags are those written");
  const refused = await client.PUT("/v1/content/{type}/{id}/tags", {
    params: { path: content, header: { "If-Match": '"1"' } },
    body: { tags: [] },
  });
  problem(refused, "version_mismatch");
  return receipt;
}

async function batches(): Promise<void> {
  const bad = { type: "NOT A TYPE", id: "1" };
  const written = ok(
    await client.POST("/v1/content:batchTag", {
      body: { items: [{ ...content, add: ["client-x", { tag: "client-w", by: "ana" }] }, bad] },
    }),
  );
  const kinds = written.results.map((result) => {
    // `ok` tells the alternatives apart, for the compiler too.
    if (result.ok) {
      return result.version.length > 0 ? "done" : "no version";
    }
    return result.problem.code;
  });
  check(kinds.join() === "done,forbidden_character", kinds.join());
  const read = ok(await client.POST("/v1/content:batchGet", { body: { items: [content, bad] } }));
  const [first, second] = read.results;
  check(first?.ok === true && first.tags.length === 3, "the first content was read");
  check(second?.ok === false && second.content.type === bad.type, "the second one was refused");
}

async function finding(): Promise<void> {
  const query = { q: "client-x", sort: "updated" as const, limit: 1, total: "exact" as const };
  let page = ok(await client.GET("/v1/search", { params: { query } }));
  for (let attempt = 0; page.hits.length === 0 && attempt < 100; attempt += 1) {
    await new Promise((resolve) => setTimeout(resolve, 100));
    page = ok(await client.GET("/v1/search", { params: { query } }));
  }
  const next: string | null = page.next_cursor;
  check(page.hits[0]?.id === content.id && next === null, "the content is found on one page");
  check(page.total.relation === "eq", "the total is exact");
  const tags = ok(await client.GET("/v1/tags", { params: { query: { prefix: "client-" } } }));
  check(tags.tags.length > 0, "tags are suggested");
  const popular = await client.GET("/v1/tags/popular", { params: { query: { window: "24h" } } });
  check(ok(popular).window === "24h", "the window is the one requested");
  const info = await client.GET("/v1/tags/{tag}", { params: { path: { tag: "client-x" } } });
  check(ok(info).count === 1, "one content has the tag");
}

async function exportOfAll(): Promise<void> {
  const lines = ok(await client.GET("/v1/export", { parseAs: "text" }));
  const contents = lines
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Schemas["ExportLine"]);
  check(contents.some((line) => line.id === content.id), "the content is exported");
}

async function operating(receipt: string): Promise<void> {
  const status = ok(await client.GET("/v1/status"));
  check(status.mode === "embedded", "the mode is embedded");
  const verdict = await client.GET("/v1/receipts/{token}", { params: { path: { token: receipt } } });
  check(verdict.response.status === 501 || ok(verdict).verdict === "kept", "the write is kept");
  const receipts = { body: { receipts: [receipt, "no receipt"] } };
  const checked = await client.POST("/v1/receipts:check", receipts);
  if (checked.response.ok) {
    const [first, second] = ok(checked).results;
    check(first?.ok === true && first.verdict === "kept", "the first receipt is kept");
    check(second?.ok === false && second.problem.code === "bad_token", "the second one is none");
  } else {
    problem(checked, "not_in_this_mode");
  }
  const failover = { params: { path: { epoch: "0".repeat(32) } } };
  const lost = { params: { ...failover.params, query: { verdict: "lost" as const, limit: 1 } } };
  problem(await client.GET("/v1/failovers"), "not_in_this_mode");
  problem(await client.GET("/v1/failovers/{epoch}", failover), "not_in_this_mode");
  problem(await client.GET("/v1/failovers/{epoch}/writes", lost), "not_in_this_mode");
  problem(await client.GET("/v1/clusters"), "not_in_this_mode");
  check(ok(await client.POST("/v1/admin/reindex", { body: {} })).contents >= 1, "contents are indexed");
  const recount = await client.POST("/v1/admin/recount", { body: { repair: false } });
  check(!ok(recount).repaired, "nothing is repaired");
  const breakers = ok(await client.GET("/v1/breakers"));
  check(breakers.next_cursor === null, "all breakers are listed");
  const force = { name: "no such breaker", state: "auto" as const, reason: "a test" };
  problem(await client.POST("/v1/breakers", { body: force }), "breaker_not_found");
}

async function deadLetters(): Promise<void> {
  const query = { group: "indexer" as const, state: "all" as const, limit: 5 };
  const page = ok(await client.GET("/v1/dead-letters", { params: { query } }));
  check(page.items.length === 0 && page.next_cursor === null, "there are no dead letters");
  const id = { params: { path: { id: "indexer/3/1207" } } };
  problem(await client.GET("/v1/dead-letters/{id}", id), "dead_letter_not_found");
  const dry = await client.POST("/v1/dead-letters:replay", { body: { all: true, dry_run: true } });
  const job = ok(dry);
  const progress = await client.GET("/v1/jobs/{id}", { params: { path: { id: job.id } } });
  check(ok(progress).left === 0, "nothing is left to replay");
  const discard = { filter: { group: "indexer" as const }, reason: "a test" };
  check(
    ok(await client.POST("/v1/dead-letters:discard", { body: discard })).discarded === 0,
    "nothing is discarded",
  );
  const storm = { group: "indexer" as const, reason: "a test" };
  check(
    ok(await client.POST("/v1/dead-letters:allow-storm", { body: storm })).allowed_seconds > 0,
    "a storm is allowed",
  );
  const first = ok(
    await client.GET("/v1/dead-letters/audit", { params: { query: { limit: 1 } } }),
  );
  check(first.items[0]?.action === "allow_storm", "the audit log has the newest action");
  check(first.next_cursor !== null, "the audit log goes on");
  const rest = await client.GET("/v1/dead-letters/audit", {
    params: { query: { cursor: first.next_cursor } },
  });
  check(ok(rest).items.length >= 2, "the audit log has the other actions");
}

async function open(): Promise<void> {
  check(ok(await client.GET("/")).name === "tagfast", "the index names the service");
  check(ok(await client.GET("/healthz")).status === "ok", "the process answers");
  check(ok(await client.GET("/readyz")).ready, "the service is ready");
  const metrics = ok(await client.GET("/metrics", { parseAs: "text" }));
  check(metrics.includes("tagfast_http_requests_total"), "metrics are text");
  check(ok(await client.GET("/docs", { parseAs: "text" })).includes("<html"), "docs are HTML");
  const page = { params: { path: { code: "bad_cursor" } }, parseAs: "text" as const };
  check(ok(await client.GET("/docs/problems/{code}", page)).includes("bad_cursor"), "a code");
}

/** The operations of the document that were not called. */
async function missing(): Promise<string[]> {
  const document = ok(await client.GET("/openapi.json")) as {
    paths: Record<string, Record<string, unknown>>;
  };
  const all = Object.entries(document.paths).flatMap(([path, item]) =>
    Object.keys(item).map((method) => `${method.toUpperCase()} ${path}`),
  );
  return all.filter((operation) => !called.has(operation));
}

const receipt = await tagsOfOneContent();
await batches();
await finding();
await exportOfAll();
await operating(receipt);
await deadLetters();
await open();
const left = await missing();
console.log(`${called.size} operations called; not called: ${left.join(", ") || "none"}`);
process.exitCode = left.length === 0 ? 0 : 1;
