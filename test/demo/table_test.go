// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func TestTheTableTellsWhatFailed(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	var out strings.Builder
	table := newTable(ctx, &out)
	if table.summary() {
		t.Error("a table without lines held")
	}
	table.check("good", func() (string, error) { return "one\ntwo", nil })
	if !table.summary() {
		t.Error("every line held, but the table did not")
	}
	table.check("bad", func() (string, error) { return "unsaid", errors.New("why") })
	if table.summary() {
		t.Error("a line failed, but the table held")
	}
	interrupt()
	table.check("late", func() (string, error) { return "", errors.New("nobody should do this") })
	for _, want := range []string{"ok    good", "FAIL  bad", "why", "1 of 2 lines held", "failed: bad"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "unsaid") || strings.Contains(out.String(), "late") {
		t.Errorf("it tells what it should not:\n%s", &out)
	}
}
