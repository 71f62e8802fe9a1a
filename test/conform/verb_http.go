// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A request asks one of a proxy's pages, "15000/config_dump", or something
// else's, "10.0.0.1:80/path".
type request struct {
	place, method, page string
	headers             []string // "name: value"
}

type answerPage struct {
	status int
	header http.Header
	body   []byte
}

// requestTimeout bounds one request, so that others may follow in a step.
const requestTimeout = 5 * time.Second

func (g *group) ask(ctx context.Context, q request) (*answerPage, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	authority, path, _ := strings.Cut(q.page, "/")
	if !strings.Contains(authority, ":") {
		authority = "127.0.0.1:" + authority
	}
	req, err := http.NewRequestWithContext(ctx, q.method, "http://"+authority+"/"+path, nil)
	if err != nil {
		return nil, err
	}
	for _, h := range q.headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	t := &http.Transport{DisableKeepAlives: true, DisableCompression: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		to, err := netip.ParseAddrPort(addr)
		if err != nil {
			return nil, err
		}
		return g.suite.Stage.Dial(ctx, q.place, "tcp", to)
	}}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return &answerPage{resp.StatusCode, resp.Header, body}, err
}

// A check looks at an answer.
type check struct {
	kind, text string
	pattern    *regexp.Regexp
}

// httpVerb: http place METHOD page ["name: value"...] -> status [check...]
func httpVerb(r *reader) action {
	q := request{place: r.place(), method: r.bare("a method"), page: r.bare("port/path")}
	for r.more() && !r.maybe("->") {
		q.headers = append(q.headers, r.text("a header"))
	}
	status := r.number("status")
	checks := readChecks(r)
	return func(ctx context.Context, p *player) error {
		q := q
		page, err := p.expand(q.page)
		if err != nil {
			return err
		}
		q.page = page
		a, err := p.ask(ctx, q)
		if err != nil {
			return err
		}
		if a.status != status {
			return fmt.Errorf("it answered %d %.200q", a.status, a.body)
		}
		for _, c := range checks {
			text, err := p.expand(c.text)
			if err != nil {
				return err
			}
			if err := c.look(a, text); err != nil {
				return err
			}
		}
		return nil
	}
}

func readChecks(r *reader) (checks []check) {
	for r.more() {
		c := check{kind: r.oneOf("check", "body", "has", "lacks", "ends", "matches", "header", "noheader", "json")}
		if c.kind == "json" {
			checks = append(checks, c)
			continue
		}
		c.text = r.text("a text")
		if c.kind == "matches" && r.err == nil {
			var err error
			if c.pattern, err = regexp.Compile(c.text); err != nil {
				r.fail("%w", err)
			}
		}
		checks = append(checks, c)
	}
	return checks
}

func (c check) look(a *answerPage, text string) error {
	const some = 600
	switch c.kind {
	case "body":
		if string(a.body) != text {
			return fmt.Errorf("the body is %.*q", some, a.body)
		}
	case "has":
		if !bytes.Contains(a.body, []byte(text)) {
			return fmt.Errorf("%q is not in the body: %.*q", text, some, a.body)
		}
	case "lacks":
		if bytes.Contains(a.body, []byte(text)) {
			return fmt.Errorf("%q is in the body", text)
		}
	case "ends":
		if !bytes.HasSuffix(a.body, []byte(text)) {
			return fmt.Errorf("the body ends with %q", a.body[max(0, len(a.body)-len(text)):])
		}
	case "matches":
		if !c.pattern.Match(a.body) {
			return fmt.Errorf("the body is %.*q", some, a.body)
		}
	case "header":
		name, value, _ := strings.Cut(text, ": ")
		if got := strings.Join(a.header.Values(name), ", "); got != value {
			return fmt.Errorf("header %s is %q", name, got)
		}
	case "noheader":
		if v := a.header.Values(text); len(v) > 0 {
			return fmt.Errorf("header %s is %q", text, v)
		}
	case "json":
		if !json.Valid(a.body) {
			return fmt.Errorf("no JSON: %.*q", some, a.body)
		}
	}
	return nil
}

// jsonVerb: json place page path (= value | has value | absent | keys "a b" | exists | sorted)
func jsonVerb(r *reader) action {
	q := request{place: r.place(), method: http.MethodGet, page: r.bare("port/path")}
	path := r.bare("a path")
	op := r.oneOf("comparison", "=", "has", "absent", "exists", "keys", "sorted")
	want := ""
	switch op {
	case "=", "has":
		w := r.take("a value")
		if want = w.text; w.quoted {
			want = strconv.Quote(w.text)
		}
	case "keys":
		want = r.text("names")
	}
	if _, err := splitPath(path); err != nil {
		r.fail("%w", err)
	}
	return func(ctx context.Context, p *player) error {
		a, err := p.ask(ctx, q)
		if err != nil {
			return err
		}
		var doc any
		d := json.NewDecoder(bytes.NewReader(a.body))
		d.UseNumber()
		if err := d.Decode(&doc); err != nil {
			return fmt.Errorf("no JSON: %w", err)
		}
		where, err := p.expand(path)
		if err != nil {
			return err
		}
		value, err := p.expand(want)
		if err != nil {
			return err
		}
		steps, err := splitPath(where)
		if err != nil {
			return err
		}
		return compareJSON(walk(doc, steps), op, value)
	}
}

// missing stands for what is not in a document.
type missing struct{}

func compareJSON(got any, op, want string) error {
	text, _ := json.Marshal(got)
	_, gone := got.(missing)
	switch op {
	case "absent":
		if !gone {
			return fmt.Errorf("it is %.300s", text)
		}
		return nil
	case "exists":
		if gone {
			return fmt.Errorf("it is not there")
		}
		return nil
	}
	if gone {
		return fmt.Errorf("it is not there")
	}
	switch op {
	case "=":
		if !sameJSON(got, want) {
			return fmt.Errorf("it is %.300s", text)
		}
	case "has":
		list, _ := got.([]any)
		if !slices.ContainsFunc(list, func(e any) bool { return sameJSON(e, want) }) {
			return fmt.Errorf("it is %.300s", text)
		}
	case "keys":
		object, _ := got.(map[string]any)
		var keys []string
		for k := range object {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		if wanted := strings.Fields(want); !slices.Equal(keys, wanted) {
			return fmt.Errorf("the keys are %q", keys)
		}
	case "sorted":
		return sortedByName(got)
	}
	return nil
}

func sortedByName(got any) error {
	list, _ := got.([]any)
	name := func(e any) string {
		o, _ := e.(map[string]any)
		for _, key := range []string{"uid", "hostname", "identity", "name"} {
			if s, ok := o[key].(string); ok {
				return s
			}
		}
		return fmt.Sprint(e)
	}
	if !slices.IsSortedFunc(list, func(a, b any) int { return strings.Compare(name(a), name(b)) }) || len(list) < 2 {
		return fmt.Errorf("%d elements that are not sorted, or too few to say", len(list))
	}
	return nil
}

func sameJSON(got any, want string) bool {
	var w any
	d := json.NewDecoder(strings.NewReader(want))
	d.UseNumber()
	if err := d.Decode(&w); err != nil {
		w = want
	}
	a, _ := json.Marshal(got)
	b, _ := json.Marshal(w)
	return bytes.Equal(a, b)
}

// A pathStep is a key of an object, an index, or [key=value]: the element of a
// list that has this value.
type pathStep struct{ key, value string }

// splitPath reads workloads[uid=x].services[0].
func splitPath(path string) (steps []pathStep, err error) {
	for rest := path; rest != ""; {
		switch rest[0] {
		case '.':
			rest = rest[1:]
		case '[':
			inside, after, ok := strings.Cut(rest[1:], "]")
			if !ok {
				return nil, fmt.Errorf("path %q: a bracket that is not closed", path)
			}
			key, value, _ := strings.Cut(inside, "=")
			steps, rest = append(steps, pathStep{key, value}), after
			continue
		}
		n := strings.IndexAny(rest, ".[")
		if n < 0 {
			n = len(rest)
		}
		if n == 0 {
			return nil, fmt.Errorf("path %q: an empty name", path)
		}
		steps, rest = append(steps, pathStep{key: rest[:n]}), rest[n:]
	}
	return steps, nil
}

func walk(doc any, steps []pathStep) any {
	for _, s := range steps {
		switch d := doc.(type) {
		case map[string]any:
			next, ok := d[s.key]
			if !ok {
				return missing{}
			}
			doc = next
		case []any:
			i, err := strconv.Atoi(s.key)
			if err != nil || s.value != "" {
				i = slices.IndexFunc(d, func(e any) bool {
					o, _ := e.(map[string]any)
					return fmt.Sprint(o[s.key]) == s.value
				})
			}
			if i < 0 || i >= len(d) {
				return missing{}
			}
			doc = d[i]
		default:
			return missing{}
		}
	}
	return doc
}
