// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// A logLine is a line of either format (contract 14.2, 14.3).
type logLine struct {
	level, target, message string
	fields                 []logField
}

type logField struct{ key, value string }

func (l *logLine) get(key string) (string, bool) {
	for _, f := range l.fields {
		if f.key == key {
			return f.value, true
		}
	}
	return "", false
}

// plainTime is contract 14.2's: UTC with six digits.
var plainTime = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$`)

// parseLog reads a line; what is in neither format is an error.
func parseLog(line string) (*logLine, error) {
	if strings.HasPrefix(line, "{") {
		return parseJSONLog(line)
	}
	parts := strings.SplitN(line, "\t", 5)
	if len(parts) < 4 || !plainTime.MatchString(parts[0]) {
		return nil, errors.New("no line of the plain format")
	}
	l := &logLine{level: parts[1], target: withoutSpans(parts[2])}
	if len(parts) == 5 { // a message is followed by a tab; without one there is neither
		l.message = parts[3]
	}
	words, err := splitWords(strings.ReplaceAll(parts[len(parts)-1], "#", "\x00"))
	if err != nil {
		return nil, err
	}
	for _, w := range words {
		key, value, _ := strings.Cut(w.text, "=")
		l.fields = append(l.fields, logField{key, strings.ReplaceAll(value, "\x00", "#")})
	}
	return l, nil
}

// withoutSpans is the target in target:span{field=value}:span, where a target
// may have colons in pairs.
func withoutSpans(text string) string {
	for i := 0; i < len(text); i++ {
		if text[i] != ':' {
			continue
		}
		if i+1 < len(text) && text[i+1] == ':' {
			i++
			continue
		}
		return text[:i]
	}
	return text
}

func parseJSONLog(line string) (*logLine, error) {
	l := &logLine{}
	d := json.NewDecoder(strings.NewReader(line))
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
		text := ""
		_ = json.Unmarshal(value, &text)
		name := fmt.Sprint(key)
		switch name {
		case "level":
			l.level = text
		case "scope":
			l.target = text
		case "message":
			l.message = text
		}
		l.fields = append(l.fields, logField{name, string(bytes.TrimSpace(value))})
	}
	return l, nil
}

// A logPattern says what a line must be like.
type logPattern struct {
	level, target, message string
	with                   []string // key=value, key=*, !key
}

func readLogPattern(r *reader) logPattern {
	m := logPattern{level: r.bare("a level"), target: r.bare("a target"), message: r.text("a message")}
	for r.more() {
		m.with = append(m.with, r.bare("key=value"))
	}
	return m
}

func (m logPattern) matches(p *player, l *logLine) (bool, error) {
	if l.level != m.level || l.target != m.target && m.target != "*" || !m.says(l.message) {
		return false, nil
	}
	for _, with := range m.with {
		want, err := p.expand(with)
		if err != nil {
			return false, err
		}
		key, value, _ := strings.Cut(want, "=")
		got, there := l.get(strings.TrimPrefix(key, "!"))
		switch {
		case strings.HasPrefix(key, "!"):
			if there {
				return false, nil
			}
		case !there, value != "*" && !sameField(value, got):
			return false, nil
		}
	}
	return true, nil
}

// says compares a message, which may end in * for any rest.
func (m logPattern) says(message string) bool {
	prefix, ok := strings.CutSuffix(m.message, "*")
	return message == m.message || ok && strings.HasPrefix(message, prefix)
}

// sameField compares a value, which may end in * or in *" for any rest.
func sameField(want, got string) bool {
	if prefix, ok := strings.CutSuffix(want, `*"`); ok {
		return strings.HasPrefix(got, prefix)
	}
	return want == got
}

// find waits for a line of a node that matches.
func (p *player) find(ctx context.Context, node string, m logPattern) (*logLine, error) {
	proxy := p.running[node]
	if proxy == nil {
		return nil, fmt.Errorf("%s runs no proxy here", node)
	}
	var found *logLine
	err := eventually(ctx, func() error {
		var near []string
		for _, line := range proxy.Output().Lines(p.marks[node]) {
			l, err := parseLog(line)
			if err != nil {
				continue
			}
			ok, err := m.matches(p, l)
			if err != nil {
				return err
			}
			if ok {
				found = l
				return nil
			}
			if m.says(l.message) {
				near = append(near, line)
			}
		}
		return fmt.Errorf("no such line; with this message: %q", near[max(0, len(near)-3):])
	})
	return found, err
}

// logVerb: log node level target "message" [key=value|key=*|!key]...
func logVerb(r *reader) action {
	node, m := r.node(), readLogPattern(r)
	return func(ctx context.Context, p *player) error {
		_, err := p.find(ctx, node, m)
		return err
	}
}

// nologVerb: nolog node level target "message" [key=value]...
func nologVerb(r *reader) action {
	node, m := r.node(), readLogPattern(r)
	return func(_ context.Context, p *player) error {
		for _, line := range p.running[node].Output().Lines(p.marks[node]) {
			l, err := parseLog(line)
			if err != nil {
				continue
			}
			ok, err := m.matches(p, l)
			if err != nil {
				return err
			}
			if ok {
				return fmt.Errorf("there is %q", line)
			}
		}
		return nil
	}
}

// fieldsVerb: fields node level target "message" [key=value]... : "key key..."
// looks at the keys of the first line that matches, and their order.
func fieldsVerb(r *reader) action {
	node := r.node()
	m := logPattern{level: r.bare("a level"), target: r.bare("a target"), message: r.text("a message")}
	for r.more() && !r.maybe(":") {
		m.with = append(m.with, r.bare("key=value"))
	}
	want := strings.Fields(r.text("keys"))
	return func(ctx context.Context, p *player) error {
		l, err := p.find(ctx, node, m)
		if err != nil {
			return err
		}
		var got []string
		for _, f := range l.fields {
			got = append(got, f.key)
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("the keys are %q", got)
		}
		return nil
	}
}
