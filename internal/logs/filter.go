// SPDX-License-Identifier: Apache-2.0

package logs

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strings"
)

// levelOff is above every level that is logged.
const levelOff = slog.Level(1 << 20)

// A namedLevel is a level with the word for it.
type namedLevel struct {
	name  string
	level slog.Level
}

// levelNames are all levels, the quietest first, so that the index of each is
// its number in RUST_LOG.
func levelNames() [6]namedLevel {
	return [...]namedLevel{
		{"off", levelOff},
		{"error", slog.LevelError},
		{"warn", slog.LevelWarn},
		{"info", slog.LevelInfo},
		{"debug", slog.LevelDebug},
		{"trace", LevelTrace},
	}
}

// levelName is the word for a level, rounding down to the next named one.
func levelName(level slog.Level) string {
	for _, n := range levelNames() {
		if n.level <= level {
			return n.name
		}
	}
	return "trace"
}

// parseLevel reads a level by its name in any case or by its number, 0 (off)
// to 5 (trace), as RUST_LOG allows both.
func parseLevel(s string) (slog.Level, bool) {
	for i, n := range levelNames() {
		if strings.EqualFold(s, n.name) || s == string(rune('0'+i)) {
			return n.level, true
		}
	}
	return 0, false
}

// isLevelName reports whether s is the lower-case name of a level.
func isLevelName(s string) bool {
	for _, n := range levelNames() {
		if n.name == s {
			return true
		}
	}
	return false
}

// A directive sets the level of the targets that begin with target; of all,
// if it is empty.
type directive struct {
	target string
	level  slog.Level
}

func (d directive) String() string {
	if d.target == "" {
		return levelName(d.level)
	}
	return d.target + "=" + levelName(d.level)
}

// A filter is immutable. Its directives stand most specific first, so that
// the first that matches decides.
type filter struct{ directives []directive }

// parseFilter reads directives separated by commas; of two for one target the
// later wins. A bare target means all of its lines.
func parseFilter(s string) (*filter, error) {
	f := &filter{}
	for clause := range strings.SplitSeq(s, ",") {
		d, err := parseDirective(strings.TrimSpace(clause))
		if err != nil {
			return nil, err
		}
		f.put(d)
	}
	slices.SortFunc(f.directives, func(a, b directive) int {
		return cmp.Or(-cmp.Compare(len(a.target), len(b.target)), -strings.Compare(a.target, b.target))
	})
	return f, nil
}

func parseDirective(s string) (directive, error) {
	target, level, found := strings.Cut(s, "=")
	if !found {
		if l, ok := parseLevel(s); ok {
			return directive{"", l}, nil
		}
		level = "trace"
	}
	if target == "" || strings.ContainsAny(target, "[]{} \t\r\n") {
		return directive{}, fmt.Errorf("invalid filter directive %q", s)
	}
	l, ok := parseLevel(level)
	if !ok {
		return directive{}, fmt.Errorf("invalid level in filter directive %q", s)
	}
	return directive{target, l}, nil
}

func (f *filter) put(d directive) {
	for i := range f.directives {
		if f.directives[i].target == d.target {
			f.directives[i] = d
			return
		}
	}
	f.directives = append(f.directives, d)
}

// level is the lowest level that target may log at. Targets match by plain
// prefix, not by module, as the reference's do. A target that nothing matches
// is off.
func (f *filter) level(target string) slog.Level {
	for _, d := range f.directives {
		if strings.HasPrefix(target, d.target) {
			return d.level
		}
	}
	return levelOff
}

// String is the canonical form: most specific first, separated by commas.
func (f *filter) String() string {
	parts := make([]string, len(f.directives))
	for i, d := range f.directives {
		parts[i] = d.String()
	}
	return strings.Join(parts, ",")
}

// checkClauses holds a change at run time to the narrower form of contract
// 13.5: every clause is a lower-case level or target=level.
func checkClauses(s string) error {
	for clause := range strings.SplitSeq(s, ",") {
		_, level, found := strings.Cut(clause, "=")
		if !found {
			level = clause
		}
		if !isLevelName(level) {
			return fmt.Errorf("invalid clause %q", clause)
		}
	}
	return nil
}
