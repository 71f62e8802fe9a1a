// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"runtime"
	"strings"
)

// foreign marks the stacks of goroutines that no test of ours can end: those
// of package testing, and those that the runtime and the standard library
// start once and keep.
var foreign = []string{
	"created by testing.",
	"testing.(*M).",
	"testing.tRunner(", // the goroutine of another test
	"created by os/signal.",
	"created by runtime.",
	"created by runtime/pprof.",
	"created by unique.",
	"runtime.runFinalizers",
	"runtime.runCleanups",
}

// goroutines returns the stacks of all goroutines but the foreign ones.
func goroutines() map[string]string {
	found := map[string]string{}
	for stack := range strings.SplitSeq(allStacks(), "\n\n") {
		header, _, ok := strings.Cut(strings.TrimPrefix(stack, "goroutine "), " ")
		if !ok || isForeign(stack) {
			continue
		}
		found[header] = strings.TrimPrefix(stack, "goroutine ")
	}
	return found
}

func isForeign(stack string) bool {
	for _, mark := range foreign {
		if strings.Contains(stack, mark) {
			return true
		}
	}
	return false
}

func allStacks() string {
	for size := 1 << 20; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size {
			return strings.TrimSpace(string(buf[:n]))
		}
	}
}
