// Calls a running server with the client that oapi-codegen generates from the server's document:
// every kind of call once (paths, bodies, unions, pages, lines, problems). The server and the token
// are in TAGFAST_URL and TAGFAST_TOKEN.
//
// How it fails: an answer that is not what the types say ends the program with its name.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"

	"tagfastcalls/client"
)

const (
	contentType = "client.test"
	contentID   = "g/o ü?#%"
)

func check(holds bool, what string, details ...any) {
	if !holds {
		fmt.Fprintln(os.Stderr, append([]any{"FAILED:", what}, details...)...)
		os.Exit(1)
	}
}

// must returns the answer of a call that reached the server.
func must[T any](answer T, err error) T {
	check(err == nil, "the call", err)
	return answer
}

func tagsOfOneContent(ctx context.Context, api *client.ClientWithResponses) {
	added := must(api.AddContentTagWithResponse(ctx, contentType, contentID, "c++", nil))
	check(added.JSON200 != nil && added.JSON200.Changed, "the tag was added", added.Status())
	removed := must(api.RemoveContentTagWithResponse(ctx, contentType, contentID, "c++", nil))
	check(removed.JSON200 != nil && len(removed.JSON200.Removed) == 1, "the tag was removed")
	names := client.ReplaceTags{Tags: []string{"go-x", "go-y"}}
	key := client.ReplaceContentTagsParams{}
	replaced := must(api.ReplaceContentTagsWithResponse(ctx, contentType, contentID, &key, names))
	check(replaced.JSON200 != nil && replaced.JSON200.Content.Id == contentID, "the set was replaced")
	view := must(api.GetContentTagsWithResponse(ctx, contentType, contentID, nil))
	check(view.JSON200 != nil && len(view.JSON200.Tags) == 2, "the content has two tags")
	check(view.JSON200.Meta.Source == "primary", "the source", view.JSON200.Meta.Source)
	refused := must(api.GetContentTagsWithResponse(ctx, "NOT A TYPE", contentID, nil))
	problem := refused.ApplicationproblemJSON422
	check(problem != nil && problem.Code == "forbidden_character", "a problem", refused.Status())
}

func batches(ctx context.Context, api *client.ClientWithResponses) {
	var plain, imported client.TagInput
	by := "ana"
	check(plain.FromTagInput0("go-x") == nil, "a tag is text")
	check(imported.FromImportedTag(client.ImportedTag{Tag: "go-w", By: &by}) == nil, "an import")
	tags := []client.TagInput{plain, imported}
	items := []client.TagItem{{Type: contentType, Id: contentID, Add: &tags}, {Type: "NOT A TYPE"}}
	written := must(api.BatchTagContentsWithResponse(ctx, nil, client.BatchTag{Items: items}))
	check(written.JSON200 != nil && len(written.JSON200.Results) == 2, "two results")
	done := must(written.JSON200.Results[0].AsDoneItemWriteResult())
	failed := must(written.JSON200.Results[1].AsFailedItem())
	check(bool(done.Ok) && done.Changed && !bool(failed.Ok), "one was done and one failed")
	check(failed.Problem.Code == "forbidden_character", "the problem", failed.Problem.Code)
}

func pagesAndLines(ctx context.Context, api *client.ClientWithResponses) {
	query := "go-x"
	found := must(api.SearchContentsWithResponse(ctx, &client.SearchContentsParams{Q: &query}))
	check(found.JSON200 != nil && found.JSON200.NextCursor == nil, "a page", found.Status())
	popular := must(api.GetPopularTagsWithResponse(ctx, nil))
	check(popular.JSON200 != nil, "popular tags", popular.Status())
	export := must(api.ExportContentsWithResponse(ctx, nil))
	check(export.StatusCode() == http.StatusOK, "the export", export.Status())
	for _, text := range strings.Split(strings.TrimSpace(string(export.Body)), "\n") {
		var line client.ExportLine
		check(json.Unmarshal([]byte(text), &line) == nil && line.Id == contentID, "a line", text)
	}
}

func operating(ctx context.Context, api *client.ClientWithResponses) {
	status := must(api.GetStatusWithResponse(ctx))
	check(status.JSON200 != nil && status.JSON200.Mode == "embedded", "the status", status.Status())
	yes := true
	body := client.ReplayDeadLetters{All: &yes, DryRun: &yes}
	job := must(api.ReplayDeadLettersWithResponse(ctx, body))
	check(job.JSON200 != nil && job.JSON200.Left == 0, "a replay", job.Status())
	log := must(api.ListDeadLetterAuditWithResponse(ctx, nil))
	check(log.JSON200 != nil && log.JSON200.Items[0].Action == "dry_run", "the audit log")
	missing := must(api.GetDeadLetterWithResponse(ctx, "indexer/3/1207"))
	check(missing.ApplicationproblemJSON404 != nil, "a dead letter", missing.Status())
	health := must(api.GetHealthWithResponse(ctx))
	check(health.JSON200 != nil && health.JSON200.Status == "ok", "the health", health.Status())
}

func main() {
	ctx := context.Background()
	token := func(_ context.Context, request *http.Request) error {
		request.Header.Set("Authorization", "Bearer "+os.Getenv("TAGFAST_TOKEN"))
		return nil
	}
	url := os.Getenv("TAGFAST_URL")
	api := must(client.NewClientWithResponses(url, client.WithRequestEditorFn(token)))
	tagsOfOneContent(ctx, api)
	batches(ctx, api)
	pagesAndLines(ctx, api)
	operating(ctx, api)
	fmt.Println("every kind of call works")
}
