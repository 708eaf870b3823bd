"""Calls a running server with the client that openapi-python-client generates from the server's
document. Every operation of the document must be called; the last line lists the ones that were
not. The server and the token are in TAGFAST_URL and TAGFAST_TOKEN.

How it fails: an answer that is not what the types say ends the program with its name.
"""

import json
import os
import pkgutil
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, ParamSpec, TypeVar

from tagfast_client import AuthenticatedClient, api
from tagfast_client.api.content import (
    add_content_tag,
    batch_get_contents,
    batch_tag_contents,
    change_content_tags,
    get_content_tags,
    remove_content_tag,
    replace_content_tags,
)
from tagfast_client.api.find import get_popular_tags, get_tag, list_tags, search_contents
from tagfast_client.api.open_ import (
    get_docs,
    get_health,
    get_index,
    get_metrics,
    get_openapi,
    get_problem_page,
    get_readiness,
)
from tagfast_client.api.operations import (
    allow_dead_letter_storm,
    check_receipts,
    discard_dead_letters,
    export_contents,
    get_dead_letter,
    get_failover,
    get_job,
    get_receipt,
    get_status,
    list_breakers,
    list_clusters,
    list_dead_letter_audit,
    list_dead_letters,
    list_failover_writes,
    list_failovers,
    rebuild_index,
    recount_tags,
    replay_dead_letters,
    set_breaker,
)
from tagfast_client.models import (
    AllowedStorm,
    AllowStorm,
    AuditLog,
    BatchBodyView,
    BatchBodyWriteResult,
    BatchGet,
    BatchTag,
    BreakerCommand,
    Breakers,
    CheckedReceipts,
    CheckReceipts,
    ContentItem,
    DeadLetterFilter,
    DeadLetters,
    DiscardDeadLetters,
    DiscardedDeadLetters,
    FailedItem,
    FailedReceipt,
    ForceBreaker,
    GroupName,
    Health,
    ImportedTag,
    Index,
    ListFailoverWritesVerdict,
    PatchTags,
    Popular,
    Problem,
    Ready,
    ReceiptVerdict,
    Recount,
    RecountResult,
    Reindex,
    ReindexResult,
    ReplaceTags,
    ReplayDeadLetters,
    ReplayJob,
    SearchContentsSort,
    SearchResult,
    SourceName,
    Status,
    TagInfo,
    TagItem,
    VerdictName,
    View,
    WriteResult,
)
from tagfast_client.types import Response

P = ParamSpec("P")
T = TypeVar("T")

CLIENT = AuthenticatedClient(
    base_url=os.environ["TAGFAST_URL"],
    token=os.environ["TAGFAST_TOKEN"],
    raise_on_unexpected_status=True,
)
CONTENT_TYPE, ID = "client.test", "p/y ü?#%"
CALLED: set[str] = set()


def call(operation: Callable[P, Response[Any]], *args: P.args, **kwargs: P.kwargs) -> object:
    """The parsed body of an answer; `ok` and `problem` look at its type."""
    CALLED.add(operation.__module__.rsplit(".", 1)[1])
    return operation(*args, **kwargs).parsed


def ok(kind: type[T], body: object) -> T:
    """The body of a success."""
    assert isinstance(body, kind), f"{body!r} is no {kind.__name__}"
    return body


def problem(body: object, code: str) -> Problem:
    """The problem of an error."""
    found = ok(Problem, body)
    assert found.code == code, found
    return found


def tags_of_one_content() -> str:
    tag = "implemented-in::c++"
    added = call(add_content_tag.sync_detailed, CONTENT_TYPE, ID, tag, client=CLIENT)
    assert ok(WriteResult, added).content.id == ID
    removed = call(remove_content_tag.sync_detailed, CONTENT_TYPE, ID, tag, client=CLIENT)
    assert ok(WriteResult, removed).removed == ["implemented-in::c++"]
    patch = PatchTags(add=["py-x", "py-y"], remove=[])
    changed = call(
        change_content_tags.sync_detailed, CONTENT_TYPE, ID, client=CLIENT, body=patch
    )
    receipt = ok(WriteResult, changed).receipt
    replaced = call(
        replace_content_tags.sync_detailed,
        CONTENT_TYPE,
        ID,
        client=CLIENT,
        body=ReplaceTags(tags=["py-x", "py-z"]),
        idempotency_key="python-1",
    )
    assert ok(WriteResult, replaced).added == ["py-z"]
    view = ok(View, call(get_content_tags.sync_detailed, CONTENT_TYPE, ID, client=CLIENT))
    assert view.meta.source is SourceName.PRIMARY
    assert [t.tag for t in view.tags] == ["py-x", "py-z"]
    refused = call(
        replace_content_tags.sync_detailed,
        CONTENT_TYPE,
        ID,
        client=CLIENT,
        body=ReplaceTags(tags=[]),
        if_match='"1"',
    )
    assert problem(refused, "version_mismatch").status == HTTPStatus.PRECONDITION_FAILED
    return receipt


def batches() -> None:
    imported = ImportedTag(tag="py-w", by="ana")
    items = [
        TagItem(type_=CONTENT_TYPE, id=ID, add=["py-x", imported]),
        TagItem(type_="NOT A TYPE", id="1"),
    ]
    written = call(batch_tag_contents.sync_detailed, client=CLIENT, body=BatchTag(items=items))
    done, failed = ok(BatchBodyWriteResult, written).results
    # `ok` tells the alternatives apart.
    assert done.ok and not isinstance(done, FailedItem), done
    assert not failed.ok and isinstance(failed, FailedItem), failed
    assert failed.problem.code == "forbidden_character"
    get = BatchGet(items=[ContentItem(type_=item.type_, id=item.id) for item in items])
    read = call(batch_get_contents.sync_detailed, client=CLIENT, body=get)
    first, second = ok(BatchBodyView, read).results
    assert not isinstance(first, FailedItem) and len(first.tags) == 3, first
    assert isinstance(second, FailedItem) and second.content.type_ == "NOT A TYPE"


def finding() -> None:
    for _ in range(100):
        found = call(
            search_contents.sync_detailed,
            client=CLIENT,
            q="py-x",
            sort=SearchContentsSort.UPDATED,
            limit=1,
            facets=True,
        )
        page = ok(SearchResult, found)
        if page.hits:
            break
        time.sleep(0.1)
    assert page.hits[0].id == ID and page.next_cursor is None
    tags = call(list_tags.sync_detailed, client=CLIENT, prefix="py-")
    assert not isinstance(tags, Problem) and getattr(tags, "tags"), tags
    popular = ok(Popular, call(get_popular_tags.sync_detailed, client=CLIENT))
    assert popular.window == "all"
    assert ok(TagInfo, call(get_tag.sync_detailed, "py-x", client=CLIENT)).count == 1


def export_of_all() -> None:
    lines = ok(str, call(export_contents.sync_detailed, client=CLIENT))
    assert ID in [json.loads(line)["id"] for line in lines.splitlines()]


def operating(receipt: str) -> None:
    assert ok(Status, call(get_status.sync_detailed, client=CLIENT)).mode == "embedded"
    verdict = call(get_receipt.sync_detailed, receipt, client=CLIENT)
    if isinstance(verdict, Problem):
        problem(verdict, "not_in_this_mode")
    else:
        assert ok(ReceiptVerdict, verdict).verdict is VerdictName.KEPT
    many = CheckReceipts(receipts=[receipt, "no receipt"])
    checked = call(check_receipts.sync_detailed, client=CLIENT, body=many)
    if isinstance(checked, Problem):
        problem(checked, "not_in_this_mode")
    else:
        first, second = ok(CheckedReceipts, checked).results
        assert not isinstance(first, FailedReceipt) and first.verdict is VerdictName.KEPT, first
        assert isinstance(second, FailedReceipt), second
        assert second.problem.code == "bad_token"
    epoch = "0" * 32
    problem(call(list_failovers.sync_detailed, client=CLIENT, limit=1), "not_in_this_mode")
    problem(call(get_failover.sync_detailed, epoch, client=CLIENT), "not_in_this_mode")
    writes = call(
        list_failover_writes.sync_detailed, epoch, client=CLIENT, verdict=ListFailoverWritesVerdict.LOST
    )
    problem(writes, "not_in_this_mode")
    problem(call(list_clusters.sync_detailed, client=CLIENT), "not_in_this_mode")
    rebuilt = call(rebuild_index.sync_detailed, client=CLIENT, body=Reindex())
    assert ok(ReindexResult, rebuilt).contents >= 1
    recount = call(recount_tags.sync_detailed, client=CLIENT, body=Recount(repair=False))
    assert not ok(RecountResult, recount).repaired
    breakers = ok(Breakers, call(list_breakers.sync_detailed, client=CLIENT))
    assert breakers.next_cursor is None
    force = ForceBreaker(name="none", state=BreakerCommand.AUTO, reason="a test")
    problem(call(set_breaker.sync_detailed, client=CLIENT, body=force), "breaker_not_found")


def dead_letters() -> None:
    page = ok(DeadLetters, call(list_dead_letters.sync_detailed, client=CLIENT, limit=5))
    assert page.items == [] and page.next_cursor is None
    found = call(get_dead_letter.sync_detailed, "indexer/3/1207", client=CLIENT)
    problem(found, "dead_letter_not_found")
    replay = ReplayDeadLetters(all_=True, dry_run=True)
    job = ok(ReplayJob, call(replay_dead_letters.sync_detailed, client=CLIENT, body=replay))
    assert ok(ReplayJob, call(get_job.sync_detailed, job.id, client=CLIENT)).left == 0
    discard = DiscardDeadLetters(
        filter_=DeadLetterFilter(group=GroupName.INDEXER), reason="a test"
    )
    done = call(discard_dead_letters.sync_detailed, client=CLIENT, body=discard)
    assert ok(DiscardedDeadLetters, done).discarded == 0
    storm = AllowStorm(group=GroupName.INDEXER, reason="a test")
    allowed = call(allow_dead_letter_storm.sync_detailed, client=CLIENT, body=storm)
    assert ok(AllowedStorm, allowed).allowed_seconds > 0
    log = ok(AuditLog, call(list_dead_letter_audit.sync_detailed, client=CLIENT, limit=1))
    assert log.items[0].action == "allow_storm" and log.next_cursor is not None
    rest = call(list_dead_letter_audit.sync_detailed, client=CLIENT, cursor=log.next_cursor)
    assert len(ok(AuditLog, rest).items) >= 2


def without_a_token() -> None:
    assert ok(Index, call(get_index.sync_detailed, client=CLIENT)).name == "tagfast"
    assert ok(Health, call(get_health.sync_detailed, client=CLIENT)).status == "ok"
    assert ok(Ready, call(get_readiness.sync_detailed, client=CLIENT)).ready
    assert "tagfast_" in ok(str, call(get_metrics.sync_detailed, client=CLIENT))
    assert "<html" in ok(str, call(get_docs.sync_detailed, client=CLIENT))
    page = call(get_problem_page.sync_detailed, "bad_cursor", client=CLIENT)
    assert "bad_cursor" in ok(str, page)
    assert call(get_openapi.sync_detailed, client=CLIENT) is not None


def main() -> int:
    receipt = tags_of_one_content()
    batches()
    finding()
    export_of_all()
    operating(receipt)
    dead_letters()
    without_a_token()
    generated = {
        module.name.rsplit(".", 1)[1]
        for module in pkgutil.walk_packages(api.__path__, "tagfast_client.api.")
        if not module.ispkg
    }
    left = ", ".join(sorted(generated - CALLED)) or "none"
    print(f"{len(CALLED)} operations called; not called: {left}")
    return 0 if left == "none" else 1


if __name__ == "__main__":
    sys.exit(main())
