// SPDX-License-Identifier: Apache-2.0

//go:debug fips140=on

// Package h2spec plays h2spec, the conformance tests of HTTP/2, against the
// serving side of HBONE, carried by either engine. Each case comes twice: as it
// is, with GET and POST that have to be refused in order, and with CONNECT in
// their place.
//
// h2spec knows RFC 7540 and web servers. What does not apply to a server of
// CONNECT by RFC 9113 is listed, with the reason, in docs/wire/hbone.md; the
// test fails if a listed case passes, and if another one fails.
//
// It is a module of its own, so that ours does not depend on h2spec.
package h2spec

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"

	"github.com/ztunnel-go/ztunnel/dataplane/engine"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

// silence is how long h2spec waits for what does not come. Passing cases
// hardly ever wait so long.
const silence = 5 * time.Second

// document has the exceptions, in a table whose rows begin with the case and how
// it is played.
const document = "../../docs/wire/hbone.md"

// A play is how the requests of all cases are made.
type play struct {
	name    string
	connect bool
}

func TestH2spec(t *testing.T) {
	leak.Check(t)
	listed := exceptions(t)
	for _, p := range []play{{"CONNECT", true}, {"GET", false}} {
		for _, eng := range []string{"reactor", "std"} {
			t.Run(p.name+"/"+eng, func(t *testing.T) {
				t.Parallel() // most of the time is spent on what is listed, waiting
				var e *engine.Engine
				if eng == "reactor" {
					e = loops(t)
				}
				judge(t, p, listed, run(newServer(t, e).forward(t, p.connect).Port))
			})
		}
	}
}

// exceptions reads the document: reasons by play and case.
func exceptions(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	list := map[string]string{}
	row := regexp.MustCompile("(?m)^\\| `([a-z0-9]+/[0-9./]+)` \\| (both|CONNECT|GET) \\| (.+) \\|$")
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		for _, p := range []string{"CONNECT", "GET"} {
			if m[2] == p || m[2] == "both" {
				list[p+" "+m[1]] = m[3]
			}
		}
	}
	return list
}

// A result is how a case went: nil, spec.ErrSkipped, or what was wrong.
type result struct {
	id   string
	desc string
	err  error
}

// run plays all cases, some at a time.
func run(port int) []result {
	var all []result
	var tests []*spec.TestCase
	var collect func(g *spec.TestGroup)
	collect = func(g *spec.TestGroup) {
		for i, c := range append(g.Tests[:len(g.Tests):len(g.Tests)], g.StrictTests...) {
			all = append(all, result{id: fmt.Sprintf("%s/%d", g.ID(), i+1), desc: c.Desc})
			tests = append(tests, c)
		}
		for _, sub := range g.Groups {
			collect(sub)
		}
	}
	for _, g := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		collect(g)
	}
	var running sync.WaitGroup
	places := make(chan struct{}, 8)
	for i, c := range tests {
		places <- struct{}{}
		running.Go(func() {
			all[i].err = once(c, port)
			<-places
		})
	}
	running.Wait()
	return all
}

// once plays one case over a connection of its own.
func once(c *spec.TestCase, port int) error {
	cfg := &config.Config{Host: "127.0.0.1", Port: port, Path: "/", Timeout: silence, MaxHeaderLen: 4000, Strict: true}
	conn, err := spec.Dial(cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	return c.Run(cfg, conn)
}

// judge compares the results with what is listed.
func judge(t *testing.T, p play, listed map[string]string, results []result) {
	t.Helper()
	passed, excepted := 0, 0
	for _, r := range results {
		why, ok := listed[p.name+" "+r.id]
		switch {
		case r.err == nil && !ok:
			passed++
		case r.err == nil:
			t.Errorf("%s (%s) passes, but is listed: %s", r.id, r.desc, why)
		case ok:
			excepted++
		case errors.Is(r.err, spec.ErrSkipped):
			t.Errorf("%s (%s) was skipped by h2spec, and is not listed", r.id, r.desc)
		default:
			t.Errorf("%s (%s): %v", r.id, r.desc, r.err)
		}
	}
	t.Logf("%d passed, %d do not apply", passed, excepted)
}
