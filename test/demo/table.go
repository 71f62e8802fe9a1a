// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"
)

// A table is what the demo prints: a line for each claim, with what was seen.
// Lines appear as they are checked.
type table struct {
	out     io.Writer
	over    context.Context //nolint:containedctx // when it ends, what is not checked yet is left out
	began   time.Time
	checked int
	failed  []string
}

func newTable(over context.Context, out io.Writer) *table {
	return &table{over: over, out: out, began: time.Now()}
}

// claimWidth fits the longest claim.
const claimWidth = 56

func (t *table) title(s string) { fmt.Fprintf(t.out, "\n%s\n", s) }

// check makes a line: the claim holds if see returns no error, and what it
// returns is what was seen.
func (t *table) check(claim string, see func() (string, error)) {
	if t.over.Err() != nil {
		return
	}
	began := time.Now()
	saw, err := see()
	if t.over.Err() != nil {
		return // it saw the interruption
	}
	t.checked++
	took := fmt.Sprintf("%6d ms", time.Since(began).Milliseconds())
	mark := "ok  "
	if err != nil {
		mark = "FAIL"
		saw = err.Error()
		t.failed = append(t.failed, claim)
	}
	// What was seen may have several lines.
	saw = strings.ReplaceAll(strings.TrimSpace(saw), "\n", "\n"+strings.Repeat(" ", claimWidth+20))
	fmt.Fprintf(t.out, "  %s  %-*s %s  %s\n", mark, claimWidth, claim, took, saw)
}

// summary prints the last line and returns whether every claim held.
func (t *table) summary() bool {
	held := t.checked > 0 && len(t.failed) == 0
	fmt.Fprintf(t.out, "\n%d of %d lines held in %.1f s\n", t.checked-len(t.failed), t.checked, time.Since(t.began).Seconds())
	for _, claim := range t.failed {
		fmt.Fprintf(t.out, "  failed: %s\n", claim)
	}
	return held
}
