// SPDX-License-Identifier: Apache-2.0

package conform

import (
	"io/fs"
	"strings"
	"testing"
)

const head = "title: A sentence.\ncontract: 13.1\n"

func TestAScenarioIsUnderstood(t *testing.T) {
	s, err := Parse("dir/x.txt", []byte(`# a comment
title: A sentence with "quotes" and a # in it.
contract: 13.4.1
env: RUST_LOG=debug,access=info
state:
    services:
    - {name: x, namespace: default, hostname: x.example, vips: ["/{b}"], ports: {80: 80}}

    policies: []
http node1 GET 15021/healthz/ready -> 200 body "ready\n" # and why
await http node1 GET 15021/healthz/ready -> 200
state:
    without: [default/b.default.svc.cluster.local]
`))
	if err != nil {
		t.Fatal(err)
	}
	if s.Name != "x" || s.Contract != "13.4.1" || s.env["RUST_LOG"] != "debug,access=info" || len(s.steps) != 3 || len(s.state.Services) != 1 {
		t.Errorf("read as %+v", s)
	}
}

// TestWhatIsNotUnderstoodIsRefusedWithItsLine has one mistake to each case.
func TestWhatIsNotUnderstoodIsRefusedWithItsLine(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"unknown verb", head + "fetch node1 x", `x.txt:3: "fetch" is no verb`},
		{"unknown heading", "colour: red\n", "x.txt:1: colour: is no heading"},
		{"unknown place", head + "http node9 GET 15021/ -> 200", "x.txt:3: node9 is no place"},
		{"unknown check", head + "http node1 GET 15021/ -> 200 resembles \"x\"", "x.txt:3: resembles is no check"},
		{"unknown variable", head + "http node1 GET {d}:15021/ -> 200", "x.txt:3: {d} is no variable"},
		{"unknown state key", head + "state:\n    workload: []\nalive node1", "x.txt:3: state: yaml"},
		{"unknown pod", head + "state:\n    workloads: [{pod: z}]\nalive node1", `there is no pod "z"`},
		{"bad address in the state", head + "state:\n    workloads: [{pod: a, workloadIps: [1.2.3]}]\nalive node1", "x.txt:3: state:"},
		{"unknown enum", head + "state:\n    policies: [{name: p, namespace: n, scope: Galaxy}]\nalive node1", `"Galaxy" is none of`},
		{"no arrow", head + "http node1 GET 15021/ 200", "x.txt:3: "},
		{"no number", head + "http node1 GET 15021/ -> fine", `"fine" is no status`},
		{"line too short", head + "dial C a ->", "the line ends where a target is wanted"},
		{"line too long", head + "alive node1 really", `"really" is one word too many`},
		{"text without quotes", head + "nolog node1 info access hello", "hello where a message is wanted, in quotes"},
		{"word with quotes", head + "alive \"node1\"", `"node1" where node is wanted, without quotes`},
		{"open string", head + "send C \"x", "a string that does not end"},
		{"open quote", head + "log node1 info access \"m\" a=\"x", "a quote that is not closed"},
		{"bad regexp", head + "http node1 GET 15021/ -> 200 matches \"(\"", "missing closing"},
		{"bad path", head + "json node1 15000/x a[b = 1", "a bracket that is not closed"},
		{"bad labels", head + "metric node1 m{x=1} = 1", "without a value in quotes"},
		{"bad type", head + "dns a @192.0.2.1 TAXI x -> NOERROR", `"TAXI" is no type`},
		{"bad rcode", head + "dns a @192.0.2.1 A x -> MAYBE", `"MAYBE" is no code`},
		{"bad identity", head + "tunnel T a -> b:15008 as somebody", "somebody"},
		{"bad hex", head + "zds raw 0xzz -> ok", "invalid byte"},
		{"await without a look", head + "await close C", "close does not go with await"},
		{"indented lines below a step", head + "alive node1\n    more", "indented lines below a step"},
		{"indented lines below nothing", "   x\n", "x.txt:1: an indented line that belongs to nothing"},
		{"heading after a step", head + "alive node1\nenv: A=B", "env: comes after the first step"},
		{"heading without a value", "title:\n", "wants a value"},
		{"no title", "contract: 13\nalive node1", "no title"},
		{"no contract", "title: A.\nalive node1", "is no section"},
		{"no step", head, "no step: it would assert nothing"},
		{"unknown node", head + "nodes: node3\nalive node1", `nodes: "node3" is none`},
		{"unknown agent", head + "agent: secret\nalive node1", "neither usual nor script"},
		{"no assignment", head + "env: A\nalive node1", "is not NAME=VALUE"},
		{"long file", strings.Repeat("#", maxScript+1), "longer than"},
	} {
		if _, err := Parse("x.txt", []byte(tc.text)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

// TestNoProperPrefixOfAStepIsTaken cuts a line at every word: what is left
// out is missed, unless the rest is a step as well.
func TestNoProperPrefixOfAStepIsTaken(t *testing.T) {
	for _, step := range []string{
		"http node1 GET 15021/healthz/ready -> 200",
		`json node1 15000/config_dump workloads[uid=x].name = "a"`,
		"dial C a -> b:80", "accept C L", "listen L b:80", `send C "x"`, `echo C 100 bytes`, "ends C fin", "peer C = {a}",
		`socks C a "name":80 -> 0`, `log node1 info access "m"`, `metric node1 m{a="b"} += 1`, `labels node1 m : "a b"`,
		`dns a @192.0.2.1 A x. -> NOERROR`, `run args "version" -> 0`, "signal node1 TERM", "exit node1 0",
		"zds add x a -> ok", "zds keep x -> ok", "record R a", `wire R has "x"`, `ask S T CONNECT "x:1" -> 200`,
		`take S W CONNECT "x:1"`, "answer S 200", `header S baggage = "x"`, `headers S = "a"`, `hello S sni = ""`, "goaway T NO_ERROR",
		`settings T = "x"`, `certificate T = "x"`, "tunnel T a -> b:15008", "serve W a:15008", "unenrol b", "agent node1 restart",
		`xds nacked "x"`, `xds asked address subscribe = "*"`, `fields node1 info access "m" : "a b"`, "refused a -> b:80", "call a -> b:80",
	} {
		words := strings.Fields(strings.ReplaceAll(step, `"name":80`, `"name" 80`))
		if _, err := Parse("x.txt", []byte(head+strings.Join(words, " "))); err != nil {
			t.Errorf("%s: %v", step, err)
		}
		for n := 1; n < len(words); n++ {
			if _, err := Parse("x.txt", []byte(head+strings.Join(words[:n], " "))); err == nil {
				t.Errorf("%q was taken", words[:n])
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	names, err := fs.Glob(scenarios, "testdata/*.txt")
	if err != nil || len(names) == 0 {
		f.Fatal(err)
	}
	for _, name := range names {
		b, err := fs.ReadFile(scenarios, name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Parse("x.txt", b)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "x.txt") {
				t.Errorf("an error that does not say where: %v", err)
			}
			return
		}
		if s.Title == "" || s.Contract == "" || len(s.steps) == 0 {
			t.Errorf("taken without what it needs: %+v", s)
		}
	})
}
